// Small file operations that Node lacks.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <climits>

#include "addon.h"
#include "descriptor.h"
#include "worker.h"

// lockFile(path): fd. Takes an exclusive advisory lock that the kernel drops with the process; throws EWOULDBLOCK
// (code "EAGAIN") when another process holds it. The caller keeps the fd open for as long as it wants the lock.
static Napi::Value LockFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsString()) throw MakeTypeError(env, "lockFile", "lockFile(path)");
  const std::string path = info[0].As<Napi::String>();
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) throw ErrnoError(env, errno, "open", path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int number = errno;
    close(fd);
    throw ErrnoError(env, number, "flock", path);
  }
  return Napi::Number::New(env, fd);
}

// createMemoryFile(name): fd of an empty file that lives in memory and vanishes with its last user.
static Napi::Value CreateMemoryFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsString()) throw MakeTypeError(env, "createMemoryFile", "createMemoryFile(name)");
  const std::string name = info[0].As<Napi::String>();
  const int fd = memfd_create(name.c_str(), MFD_CLOEXEC);
  if (fd < 0) throw ErrnoError(env, errno, "memfd_create", name);
  return Napi::Number::New(env, fd);
}

// adoptFile(pid, number): fd, of the same open file that a process has as descriptor `number`.
static Napi::Value AdoptFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const char* const usage = "adoptFile(pid, number)";
  const int pid = static_cast<int>(WholeNumber(info[0], 1, INT_MAX, "pidfd_getfd", usage));
  const int number = static_cast<int>(WholeNumber(info[1], 0, INT_MAX, "pidfd_getfd", usage));
  try {
    return Napi::Number::New(env, TakeDescriptor(pid, number));
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
}

class ReadAhead : public Napi::AsyncWorker {
 public:
  ReadAhead(Napi::Env env, int fd, off_t offset, size_t bytes)
      : Napi::AsyncWorker(env, "readAhead"), deferred_(Napi::Promise::Deferred::New(env)), fd_(fd), offset_(offset), bytes_(bytes) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  // It waits where the disk's queue is full, which is why it is not done on the event loop.
  void Execute() override { (void)!readahead(fd_, offset_, bytes_); }
  void OnOK() override { deferred_.Resolve(Env().Undefined()); }

 private:
  const Napi::Promise::Deferred deferred_;
  const int fd_;
  const off_t offset_;
  const size_t bytes_;
};

// readAhead(fd, offset, bytes): a part of a file comes into the page cache, if there is room. The file must stay open.
static Napi::Value ReadAheadFile(const Napi::CallbackInfo& info) {
  const char* const usage = "readAhead(fd, offset, bytes)";
  const int fd = static_cast<int>(WholeNumber(info[0], 0, INT_MAX, "readahead", usage));
  const auto offset = static_cast<off_t>(WholeNumber(info[1], 0, int64_t{1} << 50, "readahead", usage));
  const auto bytes = static_cast<size_t>(WholeNumber(info[2], 0, INT_MAX, "readahead", usage));
  auto* work = new ReadAhead(info.Env(), fd, offset, bytes);
  const Napi::Promise promise = work->promise();
  work->Queue();
  return promise;
}

void RegisterFile(Napi::Env env, Napi::Object exports) {
  exports.Set("lockFile", Napi::Function::New(env, LockFile));
  exports.Set("adoptFile", Napi::Function::New(env, AdoptFile));
  exports.Set("readAhead", Napi::Function::New(env, ReadAheadFile));
  exports.Set("createMemoryFile", Napi::Function::New(env, CreateMemoryFile));
}
