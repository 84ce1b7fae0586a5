// Guest RAM as a shared-memory file: created here, mapped here and in QEMU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <napi.h>

constexpr size_t kPageBytes = 4096;
// Keeps page numbers within 32 bits.
constexpr double kRamBytesMax = 17592186044416.0;

// A sealed memfd and the manager's mapping of it. Sealing its size (F_SEAL_SHRINK) is what makes it sound to read and
// write through `base` for as long as this object lives: no process, a broken QEMU included, can truncate the file
// under us and turn an access into SIGBUS.
class SharedMemory {
 public:
  SharedMemory(const std::string& name, size_t bytes);
  ~SharedMemory();
  // One that another process has open. Throws Failure: ERR_NOT_SEALED when it could be cut off under us.
  static std::shared_ptr<SharedMemory> Take(int pid, int number);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  const int fd;
  const size_t bytes;
  uint8_t* const base;

 private:
  SharedMemory(int fd, size_t bytes);
  static int Create(const std::string& name, size_t bytes);
};

// Calls visit(from, to, hasData) for consecutive byte ranges that cover the file. Reading a hole through the mapping
// would make the kernel allocate its pages; this lets callers leave holes alone. Throws Failure.
template <typename Visit>
void VisitExtents(const SharedMemory& memory, Visit visit);
// The first page from `page` on that is no hole; the number of pages when there is none. Throws Failure.
size_t NextDataPage(const SharedMemory& memory, size_t page);

// The JavaScript object GuestRam(name, bytes); GuestRam.adopt(pid, number) for one that a process has open.
class GuestRam : public Napi::ObjectWrap<GuestRam> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit GuestRam(const Napi::CallbackInfo& info);
  // The memory behind a JavaScript value; throws a TypeError when it is no GuestRam, ERR_CLOSED when it is closed.
  static std::shared_ptr<SharedMemory> From(Napi::Value value);

 private:
  static Napi::Value Adopt(const Napi::CallbackInfo& info);
  Napi::Value Fd(const Napi::CallbackInfo& info);
  Napi::Value Bytes(const Napi::CallbackInfo& info);
  Napi::Value ResidentBytes(const Napi::CallbackInfo& info);
  Napi::Value Differences(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  SharedMemory& Open(Napi::Env env) const;
  static Napi::FunctionReference constructor_;
  std::shared_ptr<SharedMemory> memory_;
};

// ---- implementation of the template ----
#include <cerrno>
#include <unistd.h>

#include "worker.h"

template <typename Visit>
void VisitExtents(const SharedMemory& memory, Visit visit) {
  off_t at = 0;
  const off_t end = static_cast<off_t>(memory.bytes);
  while (at < end) {
    const off_t data = static_cast<off_t>(NextDataPage(memory, static_cast<size_t>(at) / kPageBytes) * kPageBytes);
    if (data > at) visit(static_cast<size_t>(at), static_cast<size_t>(data), false);
    if (data >= end) return;
    const off_t hole = lseek(memory.fd, data, SEEK_HOLE);
    if (hole < 0) throw ErrnoFailure(errno, "lseek", "guest RAM");
    visit(static_cast<size_t>(data), static_cast<size_t>(hole), true);
    at = hole;
  }
}
