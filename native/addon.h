// Shared by all parts of the addon: registration and the one way a system call's failure becomes a JavaScript error.
#pragma once
#include <cerrno>
#include <cmath>
#include <cstring>
#include <string>

#include <napi.h>

void RegisterClock(Napi::Env env, Napi::Object exports);
void RegisterDisk(Napi::Env env, Napi::Object exports);
void RegisterEpoch(Napi::Env env, Napi::Object exports);
void RegisterFile(Napi::Env env, Napi::Object exports);
void RegisterImage(Napi::Env env, Napi::Object exports);
void RegisterMemory(Napi::Env env, Napi::Object exports);
void RegisterProbe(Napi::Env env, Napi::Object exports);
void RegisterProcess(Napi::Env env, Napi::Object exports);
void RegisterNetwork(Napi::Env env, Napi::Object exports);
void RegisterAnnounce(Napi::Env env, Napi::Object exports);
void RegisterShaper(Napi::Env env, Napi::Object exports);
void RegisterThreadWatch(Napi::Env env, Napi::Object exports);
void RegisterPacketTrail(Napi::Env env, Napi::Object exports);
void RegisterPager(Napi::Env env, Napi::Object exports);

// An Error with `code` ("ENOENT", or one of our own such as "ERR_CLOSED") and `syscall`, as Node's own errors have.
// src/native/index.ts turns it into a ShadowVmError.
inline Napi::Error MakeError(Napi::Env env, const std::string& code, const std::string& syscall,
                             const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  error.Set("syscall", Napi::String::New(env, syscall));
  return error;
}

// An argument of the wrong type: a TypeError with the same two fields.
inline Napi::Error MakeTypeError(Napi::Env env, const std::string& function, const std::string& usage) {
  Napi::TypeError error = Napi::TypeError::New(env, usage);
  error.Set("code", Napi::String::New(env, "ERR_INVALID_ARG_TYPE"));
  error.Set("syscall", Napi::String::New(env, function));
  return error;
}

// A whole number in [min, max]. JavaScript's own conversion would cut others to valid ones: process 1.5 to init.
inline int64_t WholeNumber(Napi::Value value, double min, double max, const std::string& function,
                           const std::string& usage) {
  if (!value.IsNumber()) throw MakeTypeError(value.Env(), function, usage);
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= min && number <= max) || std::floor(number) != number) {
    Napi::RangeError error = Napi::RangeError::New(value.Env(), usage + ": number out of range");
    error.Set("code", Napi::String::New(value.Env(), "ERR_OUT_OF_RANGE"));
    error.Set("syscall", Napi::String::New(value.Env(), function));
    throw error;
  }
  return static_cast<int64_t>(number);
}

inline Napi::Error ErrnoError(Napi::Env env, int number, const std::string& syscall, const std::string& subject) {
  return MakeError(env, strerrorname_np(number) ? strerrorname_np(number) : "EUNKNOWN", syscall,
                   syscall + " " + subject + ": " + strerror(number));
}
