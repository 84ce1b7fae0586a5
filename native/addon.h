// Shared by all parts of the addon: registration and the one way a system call's failure becomes a JavaScript error.
#pragma once
#include <cerrno>
#include <cstring>
#include <string>

#include <napi.h>

void RegisterClock(Napi::Env env, Napi::Object exports);
void RegisterEpoch(Napi::Env env, Napi::Object exports);
void RegisterFile(Napi::Env env, Napi::Object exports);
void RegisterMemory(Napi::Env env, Napi::Object exports);
void RegisterProbe(Napi::Env env, Napi::Object exports);
void RegisterProcess(Napi::Env env, Napi::Object exports);
void RegisterNetwork(Napi::Env env, Napi::Object exports);

// An Error with `code` ("ENOENT", or one of our own such as "ERR_CLOSED") and `syscall`, as Node's own errors have.
// src/native/index.ts turns it into a ShadowVmError.
inline Napi::Error MakeError(Napi::Env env, const std::string& code, const std::string& syscall,
                             const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  error.Set("syscall", Napi::String::New(env, syscall));
  return error;
}

inline Napi::Error ErrnoError(Napi::Env env, int number, const std::string& syscall, const std::string& subject) {
  return MakeError(env, strerrorname_np(number) ? strerrorname_np(number) : "EUNKNOWN", syscall,
                   syscall + " " + subject + ": " + strerror(number));
}
