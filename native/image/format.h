// The bytes on disk, as docs/shadow-image.md describes them. Little-endian and naturally aligned: the structs are the
// format, copied in and out with memcpy (files are read at any offset, so never through a cast pointer).
#pragma once
#include <cstddef>
#include <cstdint>

#include "../checksum.h"
#include "../memory.h"

constexpr char kSegmentMagic[8] = {'S', 'h', 'a', 'd', 'o', 'w', 'V', 'M'};
// An image without disks is written as version 1, which knows none: older readers can read it.
constexpr uint32_t kFormatVersion = 2;
constexpr uint32_t kFormatVersionWithoutDisks = 1;
constexpr uint32_t kRecordMagic = 0x44524353;  // "SCRD"
constexpr uint32_t kBlockMagic = 0x4b4c4253;   // "SBLK"
constexpr uint32_t kCommitMagic = 0x544d4353;  // "SCMT"
constexpr uint64_t kTrailerMagic = 0x21454c4f48574353;  // "SCWHOLE!"

constexpr size_t kBlockSlots = 16;
constexpr size_t kBlockBytes = kBlockSlots * kPageBytes;
constexpr size_t kIdBytes = 16;
// Limits of what a reader believes, so that a damaged length never becomes a huge allocation.
constexpr size_t kMaxDeviceBytes = 256u << 20;
constexpr size_t kMaxVmBytes = 256;
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kMaxPageBytes = uint64_t{1} << 44;  // of RAM and disks together: page numbers have 32 bits
constexpr uint64_t kMaxSegmentBytes = uint64_t{1} << 41;
constexpr size_t kMaxSegments = 65535;  // 65535 itself is a fold that is being written

enum class SegmentKind : uint32_t { kLog = 1, kFold = 2 };
enum class RecordKind : uint32_t { kEpoch = 1, kRewind = 2, kFold = 3 };
enum class BlockKind : uint8_t { kPages = 1 };
enum class Codec : uint8_t { kRaw = 0, kZstd = 1 };
// Where a page's content is. kBase is what a page is that no epoch ever changed: zeros when there is no base.
enum class EntryKind : uint8_t { kBase = 0, kZero = 1, kBlock = 2, kEnd = 255 };

// First bytes of every file; `vmBytes` bytes of name and `labelBytes` of label follow.
struct SegmentHeader {
  char magic[8];
  uint32_t version;
  SegmentKind kind;
  uint8_t imageId[kIdBytes];
  uint8_t baseId[kIdBytes];  // zeros: no base
  uint64_t baseEpoch;
  uint64_t ramBytes;
  int64_t createdAtWallMs;
  uint32_t number;
  uint32_t vmBytes;
  uint32_t labelBytes;
  uint32_t diskMiB;  // of all writable disks; 0 in version 1
  uint8_t key[kHashKeyBytes];
  uint64_t textChecksum;  // of name and label
  uint64_t checksum;      // of all above; without the key, which it guards
};
static_assert(sizeof(SegmentHeader) == 296, "on disk");

struct RecordHeader {
  uint32_t magic;
  RecordKind kind;
  uint64_t sequence;  // 1, 2, 3, ... over all records of an image
  uint64_t offset;    // of this header, and the segment's number: a stray copy is no record
  uint32_t segment;
  uint32_t reserved;
  uint64_t checksum;
};
static_assert(sizeof(RecordHeader) == 40, "on disk");

// Followed by the numbers of the pages in it (4 bytes each) and the payload.
struct BlockHeader {
  uint32_t magic;
  BlockKind kind;
  Codec codec;
  uint8_t slots;  // 1 to 16
  uint8_t reserved;
  uint32_t storedBytes;
  uint32_t rawBytes;
  uint64_t payloadChecksum;  // of the stored bytes
  uint64_t checksum;         // of this header and the page numbers
};
static_assert(sizeof(BlockHeader) == 32, "on disk");

// Ends a record. Followed by the device state, the list of segments (fold only), table groups and the trailer.
struct CommitHeader {
  uint32_t magic;
  RecordKind kind;
  uint64_t sequence;         // of a fold: that of the epoch it stands for
  uint64_t durableSequence;  // records up to this one were known to be safe from a power loss
  uint64_t epoch;            // of a rewind: the epoch that became the head
  uint64_t parent;
  uint64_t lastEpoch;  // the highest number used so far
  int64_t cutAtWallMs;
  int64_t cutAtMonotonicNs;
  uint64_t changedPages;
  uint64_t epochBytes;  // of a fold: what the epoch's own record took
  uint32_t generation;
  uint32_t deviceRawBytes;
  uint32_t deviceStoredBytes;
  uint32_t segments;
  uint64_t deviceChecksum;  // of the stored bytes
  uint64_t checksum;        // of all above
};
static_assert(sizeof(CommitHeader) == 112, "on disk");

// A segment that a fold's table refers to.
struct SegmentEntry {
  uint32_t number;
  uint32_t reserved;
  uint64_t storedPages;
  uint64_t lastSequence;  // of its records
};
static_assert(sizeof(SegmentEntry) == 24, "on disk");

// Pages of one block, or any number of zero or base pages. Followed by `count` page numbers (4 bytes each) and, for a
// block, as many content checksums (8 bytes each), both in slot order. A group of kind kEnd ends the table.
struct GroupHeader {
  uint64_t offset;   // of the block
  uint32_t count;
  uint16_t segment;  // 0: the file that this table is in, else 1 + index into the list of segments
  uint16_t mask;     // which slots of the block
  EntryKind kind;
  uint8_t reserved[7];
};
static_assert(sizeof(GroupHeader) == 24, "on disk");

struct Trailer {
  uint64_t recordBytes;  // from the record header (of a fold: the file's start) to the trailer's end
  uint64_t commitBytes;  // from the commit header
  uint64_t checksum;     // of everything from the commit header to here
  uint64_t magic;
};
static_assert(sizeof(Trailer) == 32, "on disk");
