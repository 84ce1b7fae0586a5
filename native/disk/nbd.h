// The parts of the NBD protocol that QEMU's client needs (fixed newstyle handshake, simple replies). All numbers are
// big-endian on the wire. https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
#pragma once
#include <endian.h>

#include <cstdint>

namespace nbd {

constexpr uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
constexpr uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
constexpr uint64_t kOptionReplyMagic = 0x3e889045565a9;
constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint32_t kReplyMagic = 0x67446698;

constexpr uint16_t kFixedNewstyle = 1;
constexpr uint16_t kNoZeroes = 2;

enum Option : uint32_t { kExportName = 1, kAbort = 2, kInfo = 6, kGo = 7 };
enum OptionReply : uint32_t { kAck = 1, kReplyInfo = 3, kUnsupported = 0x80000001, kInvalid = 0x80000003 };
enum InfoType : uint16_t { kInfoExport = 0, kInfoBlockSize = 3 };
enum Command : uint16_t { kRead = 0, kWrite = 1, kDisconnect = 2, kWriteZeroes = 6 };
enum Error : uint32_t { kOk = 0, kIo = 5, kInvalidArgument = 22 };

// What the export can do: flags are valid, and zeros can be written without sending them.
constexpr uint16_t kExportFlags = 1 << 0 | 1 << 6;

struct __attribute__((packed)) Greeting {
  uint64_t magic = htobe64(kMagic);
  uint64_t optionMagic = htobe64(kOptionMagic);
  uint16_t flags = htobe16(kFixedNewstyle | kNoZeroes);
};
struct __attribute__((packed)) OptionHeader {
  uint64_t magic;
  uint32_t option;
  uint32_t bytes;
};
struct __attribute__((packed)) OptionReplyHeader {
  uint64_t magic;
  uint32_t option;
  uint32_t type;
  uint32_t bytes;
};
struct __attribute__((packed)) ExportInfo {
  uint16_t type;
  uint64_t bytes;
  uint16_t flags;
};
struct __attribute__((packed)) BlockSizeInfo {
  uint16_t type;
  uint32_t min;
  uint32_t preferred;
  uint32_t max;
};
struct __attribute__((packed)) Request {
  uint32_t magic;
  uint16_t flags;
  uint16_t command;
  uint64_t handle;
  uint64_t offset;
  uint32_t bytes;
};
struct __attribute__((packed)) Reply {
  uint32_t magic;
  uint32_t error;
  uint64_t handle;
};

}  // namespace nbd
