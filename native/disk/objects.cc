#include "objects.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <climits>

#include "../addon.h"
#include "../memory.h"

constexpr double kMaxExact = 9007199254740991.0;  // 2^53 - 1

Napi::FunctionReference DiskTwinObject::constructor_;

// ---- DiskTwin ----

void DiskTwinObject::Register(Napi::Env env, Napi::Object exports) {
  using Self = DiskTwinObject;
  Napi::Function constructor =
      DefineClass(env, "DiskTwin", {InstanceMethod<&Self::Failure>("failure"), InstanceMethod<&Self::Close>("close")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("DiskTwin", constructor);
}

// DiskTwin({fd, bytes, firstPage})
DiskTwinObject::DiskTwinObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DiskTwinObject>(info) {
  const char* const usage = "DiskTwin({fd, bytes, firstPage})";
  if (!info[0].IsObject()) throw MakeTypeError(info.Env(), "DiskTwin", usage);
  const Napi::Object given = info[0].As<Napi::Object>();
  const int64_t fd = WholeNumber(given.Get("fd"), 0, INT_MAX, "DiskTwin", usage);
  const int64_t bytes = WholeNumber(given.Get("bytes"), 1, kMaxExact, "DiskTwin", usage);
  const int64_t first = WholeNumber(given.Get("firstPage"), 0, UINT32_MAX, "DiskTwin", usage);
  try {
    twin_ = std::make_shared<DiskTwin>(static_cast<int>(fd), static_cast<size_t>(first),
                                       static_cast<size_t>(bytes) / kPageBytes);
  } catch (const struct Failure& f) {
    throw MakeError(info.Env(), f.code, f.syscall, f.message);
  }
}

std::shared_ptr<DiskTwin> DiskTwinObject::From(Napi::Value value) {
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor_.Value()))
    throw MakeTypeError(value.Env(), "DiskTwin", "expected a DiskTwin");
  const auto* self = Unwrap(value.As<Napi::Object>());
  if (!self->twin_) throw MakeError(value.Env(), "ERR_CLOSED", "diskTwin", "this twin is closed");
  return self->twin_;
}

// failure(): why it had to be begun anew; empty when it had not
Napi::Value DiskTwinObject::Failure(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), From(Value())->failure());
}

void DiskTwinObject::Close(const Napi::CallbackInfo&) { twin_.reset(); }

// ---- Locks ----

// lockDisk(fd): takes part in QEMU's own way of sharing disks, so that its tools and other VMs of this host
// respect the lock and it respects theirs. QEMU marks what it does to a file, and what it lets others do, by read locks on
// bytes; write is bit 1 of both. The lock goes with the descriptor. Throws EAGAIN when somebody is in the way.
static void LockDisk(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int fd = static_cast<int>(WholeNumber(info[0], 0, INT_MAX, "lockDisk", "lockDisk(fd)"));
  constexpr off_t kWrites = 101;      // somebody writes
  constexpr off_t kNoWriters = 201;   // somebody wants nobody to write
  struct flock lock = {};
  lock.l_type = F_RDLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kNoWriters;
  lock.l_len = 1;
  if (fcntl(fd, F_OFD_SETLK, &lock) != 0) throw ErrnoError(env, errno, "fcntl", "the disk");
  lock.l_type = F_WRLCK;
  lock.l_start = kWrites;
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0) throw ErrnoError(env, errno, "fcntl", "the disk");
  if (lock.l_type != F_UNLCK) throw ErrnoError(env, EAGAIN, "fcntl", "the disk");
}

// exchangeFiles(a, b): swaps two names, at once or not at all.
static void ExchangeFiles(const Napi::CallbackInfo& info) {
  if (!info[0].IsString() || !info[1].IsString()) throw MakeTypeError(info.Env(), "exchangeFiles", "exchangeFiles(a, b)");
  const std::string a = info[0].As<Napi::String>();
  const std::string b = info[1].As<Napi::String>();
  if (renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) != 0)
    throw ErrnoError(info.Env(), errno, "renameat2", a);
}

void RegisterDisk(Napi::Env env, Napi::Object exports) {
  DiskTwinObject::Register(env, exports);
  exports.Set("lockDisk", Napi::Function::New(env, LockDisk));
  exports.Set("exchangeFiles", Napi::Function::New(env, ExchangeFiles));
}
