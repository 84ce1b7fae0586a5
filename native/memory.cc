#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <system_error>
#include <thread>
#include <vector>

#include "addon.h"
#include "descriptor.h"
#include "thread_nice.h"

constexpr int kFreeNice = 19;

std::shared_ptr<SharedMemory> SharedMemory::Take(int pid, int number) {
  const int fd = TakeDescriptor(pid, number);
  struct stat st;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) != 0 || st.st_size <= 0 || st.st_size % kPageBytes != 0) {
    close(fd);
    throw Failure{"ERR_NOT_SEALED", "fcntl", "the descriptor is no memory whose size is sealed"};
  }
  return std::shared_ptr<SharedMemory>(new SharedMemory(fd, static_cast<size_t>(st.st_size)));
}

int SharedMemory::Create(const std::string& name, size_t bytes) {
  const int fd = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) throw ErrnoFailure(errno, "memfd_create", name);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    const int number = errno;
    close(fd);
    throw ErrnoFailure(number, "ftruncate", name);
  }
  return fd;
}

SharedMemory::SharedMemory(const std::string& name, size_t bytes) : SharedMemory(Create(name, bytes), bytes) {}

SharedMemory::SharedMemory(int fd, size_t bytes)
    : fd(fd),
      bytes(bytes),
      base(static_cast<uint8_t*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0))) {
  if (base == MAP_FAILED) {
    const int number = errno;
    close(fd);
    throw ErrnoFailure(number, "mmap", "guest RAM");
  }
}

// To take a RAM apart that nobody else has open costs 60 ms of CPU time per GiB, which no event loop has to spare. It comes
// with the end of the mapping, which is the last one to hold it.
SharedMemory::~SharedMemory() {
  close(fd);
  try {
    std::thread([bytes = bytes, base = base] {
      pthread_setname_np(pthread_self(), "shadowvm-free");
      SetThreadNice(kFreeNice);
      munmap(base, bytes);
    }).detach();
  } catch (const std::system_error&) {
    munmap(base, bytes);
  }
}

size_t NextDataPage(const SharedMemory& memory, size_t page) {
  const off_t data = lseek(memory.fd, static_cast<off_t>(page * kPageBytes), SEEK_DATA);
  if (data >= 0) return static_cast<size_t>(data) / kPageBytes;
  if (errno != ENXIO) throw ErrnoFailure(errno, "lseek", "guest RAM");
  return memory.bytes / kPageBytes;  // nothing but a hole up to the end
}

Napi::FunctionReference GuestRam::constructor_;

void GuestRam::Register(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(env, "GuestRam",
                                           {StaticMethod<&GuestRam::Adopt>("adopt"), InstanceAccessor<&GuestRam::Fd>("fd"), InstanceAccessor<&GuestRam::Bytes>("bytes"),
                                            InstanceMethod<&GuestRam::ResidentBytes>("residentBytes"),
                                            InstanceMethod<&GuestRam::Differences>("differences"),
                                            InstanceMethod<&GuestRam::Close>("close")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("GuestRam", constructor);
}

GuestRam::GuestRam(const Napi::CallbackInfo& info) : Napi::ObjectWrap<GuestRam>(info) {
  Napi::Env env = info.Env();
  if (info[0].IsExternal()) {  // from Adopt: nothing else makes one
    memory_ = *info[0].As<Napi::External<std::shared_ptr<SharedMemory>>>().Data();
    return;
  }
  if (!info[0].IsString() || !info[1].IsNumber())
    throw MakeTypeError(env, "GuestRam", "GuestRam(name: string, bytes: number)");
  const double bytes = info[1].As<Napi::Number>().DoubleValue();
  if (!(bytes >= kPageBytes) || bytes > kRamBytesMax || static_cast<uint64_t>(bytes) % kPageBytes != 0 ||
      bytes != static_cast<double>(static_cast<uint64_t>(bytes)))
    throw MakeError(env, "ERR_SIZE", "memfd_create", "guest RAM must be a positive whole number of 4 KiB pages");
  try {
    memory_ = std::make_shared<SharedMemory>(info[0].As<Napi::String>(), static_cast<size_t>(bytes));
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
}

// GuestRam.adopt(pid, number): the memory that a process has open as descriptor `number`.
Napi::Value GuestRam::Adopt(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const char* const usage = "GuestRam.adopt(pid, number)";
  const int pid = static_cast<int>(WholeNumber(info[0], 1, INT_MAX, "pidfd_getfd", usage));
  const int number = static_cast<int>(WholeNumber(info[1], 0, INT_MAX, "pidfd_getfd", usage));
  try {
    std::shared_ptr<SharedMemory> memory = SharedMemory::Take(pid, number);
    return constructor_.New({Napi::External<std::shared_ptr<SharedMemory>>::New(env, &memory)});
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
}

std::shared_ptr<SharedMemory> GuestRam::From(Napi::Value value) {
  Napi::Env env = value.Env();
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor_.Value()))
    throw MakeTypeError(env, "GuestRam", "expected a GuestRam");
  GuestRam* self = Unwrap(value.As<Napi::Object>());
  self->Open(env);
  return self->memory_;
}

SharedMemory& GuestRam::Open(Napi::Env env) const {
  if (!memory_) throw MakeError(env, "ERR_CLOSED", "guestRam", "this guest RAM is closed");
  return *memory_;
}

Napi::Value GuestRam::Fd(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), Open(info.Env()).fd); }

Napi::Value GuestRam::Bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(Open(info.Env()).bytes));
}

// residentBytes(): how much memory the file really takes.
Napi::Value GuestRam::ResidentBytes(const Napi::CallbackInfo& info) {
  struct stat st;
  if (fstat(Open(info.Env()).fd, &st) != 0) throw ErrnoError(info.Env(), errno, "fstat", "guest RAM");
  return Napi::Number::New(info.Env(), static_cast<double>(st.st_blocks) * 512);
}

// differences(other): number of pages whose contents differ; a hole counts as zeros. Blocks: for scrubs and tests on
// stopped VMs, not for hot paths.
Napi::Value GuestRam::Differences(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  SharedMemory& a = Open(env);
  const std::shared_ptr<SharedMemory> b = From(info[0]);
  if (a.bytes != b->bytes) throw MakeError(env, "ERR_SIZE", "differences", "the two memories differ in size");
  static const uint8_t zeros[kPageBytes] = {};
  const size_t pages = a.bytes / kPageBytes;
  std::vector<bool> hasData[2] = {std::vector<bool>(pages), std::vector<bool>(pages)};
  SharedMemory* sides[2] = {&a, b.get()};
  try {
    for (int side = 0; side < 2; side++)
      VisitExtents(*sides[side], [&](size_t from, size_t to, bool data) {
        for (size_t p = from / kPageBytes; data && p < to / kPageBytes; p++) hasData[side][p] = true;
      });
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
  size_t count = 0;
  for (size_t p = 0; p < pages; p++) {
    if (!hasData[0][p] && !hasData[1][p]) continue;
    const uint8_t* x = hasData[0][p] ? a.base + p * kPageBytes : zeros;
    const uint8_t* y = hasData[1][p] ? b->base + p * kPageBytes : zeros;
    if (memcmp(x, y, kPageBytes) != 0) count++;
  }
  return Napi::Number::New(env, static_cast<double>(count));
}

// close(): idempotent. Operations under way keep the mapping alive until they end.
void GuestRam::Close(const Napi::CallbackInfo&) { memory_.reset(); }

void RegisterMemory(Napi::Env env, Napi::Object exports) { GuestRam::Register(env, exports); }
