#include "objects.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <climits>

#include "../addon.h"

constexpr double kMaxExact = 9007199254740991.0;  // 2^53 - 1

Napi::FunctionReference DiskReceiverObject::constructor_;
Napi::FunctionReference DiskTwinObject::constructor_;

template <typename Object>
static Object* Unwrapped(Napi::Value value, const Napi::FunctionReference& constructor, const char* name) {
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor.Value()))
    throw MakeTypeError(value.Env(), name, std::string("expected a ") + name);
  return Napi::ObjectWrap<Object>::Unwrap(value.As<Napi::Object>());
}

// ---- DiskReceiver ----

void DiskReceiverObject::Register(Napi::Env env, Napi::Object exports) {
  using Self = DiskReceiverObject;
  Napi::Function constructor = DefineClass(env, "DiskReceiver",
                                           {InstanceMethod<&Self::Expect>("expect"), InstanceMethod<&Self::Finish>("finish"),
                                            InstanceMethod<&Self::Fail>("fail"), InstanceMethod<&Self::Close>("close")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("DiskReceiver", constructor);
}

// DiskReceiver({socketName, pid, bytes, firstPage})
DiskReceiverObject::DiskReceiverObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DiskReceiverObject>(info) {
  const char* const usage = "DiskReceiver({socketName, pid, bytes, firstPage})";
  if (!info[0].IsObject() || !info[0].As<Napi::Object>().Get("socketName").IsString())
    throw MakeTypeError(info.Env(), "DiskReceiver", usage);
  const Napi::Object given = info[0].As<Napi::Object>();
  const std::string name = given.Get("socketName").As<Napi::String>();
  const int64_t pid = WholeNumber(given.Get("pid"), 1, INT_MAX, "DiskReceiver", usage);
  const int64_t bytes = WholeNumber(given.Get("bytes"), 1, kMaxExact, "DiskReceiver", usage);
  const int64_t first = WholeNumber(given.Get("firstPage"), 0, UINT32_MAX, "DiskReceiver", usage);
  try {
    receiver_ = std::make_shared<DiskReceiver>(name, static_cast<int>(pid), static_cast<uint64_t>(bytes),
                                               static_cast<size_t>(first));
  } catch (const struct Failure& f) {
    throw MakeError(info.Env(), f.code, f.syscall, f.message);
  }
}

std::shared_ptr<DiskReceiver> DiskReceiverObject::From(Napi::Value value) {
  const auto* self = Unwrapped<DiskReceiverObject>(value, constructor_, "DiskReceiver");
  if (!self->receiver_) throw MakeError(value.Env(), "ERR_CLOSED", "diskReceiver", "this receiver is closed");
  return self->receiver_;
}

void DiskReceiverObject::Expect(const Napi::CallbackInfo&) { From(Value())->Expect(); }
void DiskReceiverObject::Finish(const Napi::CallbackInfo&) {
  if (receiver_) receiver_->Finish();
}
// fail(why): no effect when it is closed, as its end may be told late.
void DiskReceiverObject::Fail(const Napi::CallbackInfo& info) {
  if (receiver_) receiver_->Fail(info[0].ToString());
}
// close(): idempotent. A commit that waits for its blocks ends with ERR_DISK_LOST, and the socket goes with it.
void DiskReceiverObject::Close(const Napi::CallbackInfo&) {
  if (receiver_) receiver_->Fail("the receiver is closed");
  receiver_.reset();
}

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
  const auto* self = Unwrapped<DiskTwinObject>(value, constructor_, "DiskTwin");
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
  DiskReceiverObject::Register(env, exports);
  DiskTwinObject::Register(env, exports);
  exports.Set("lockDisk", Napi::Function::New(env, LockDisk));
  exports.Set("exchangeFiles", Napi::Function::New(env, ExchangeFiles));
}
