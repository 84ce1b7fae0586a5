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

void RegisterFile(Napi::Env env, Napi::Object exports) {
  exports.Set("lockFile", Napi::Function::New(env, LockFile));
  exports.Set("adoptFile", Napi::Function::New(env, AdoptFile));
  exports.Set("createMemoryFile", Napi::Function::New(env, CreateMemoryFile));
}
