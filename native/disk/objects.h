// The JavaScript objects DiskReceiver and DiskTwin.
#pragma once
#include <memory>

#include <napi.h>

#include "receiver.h"
#include "twin.h"

class DiskReceiverObject : public Napi::ObjectWrap<DiskReceiverObject> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit DiskReceiverObject(const Napi::CallbackInfo& info);
  static std::shared_ptr<DiskReceiver> From(Napi::Value value);

 private:
  void Expect(const Napi::CallbackInfo& info);
  void Finish(const Napi::CallbackInfo& info);
  void Fail(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  static Napi::FunctionReference constructor_;
  std::shared_ptr<DiskReceiver> receiver_;
};

class DiskTwinObject : public Napi::ObjectWrap<DiskTwinObject> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit DiskTwinObject(const Napi::CallbackInfo& info);
  static std::shared_ptr<DiskTwin> From(Napi::Value value);

 private:
  Napi::Value Failure(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  static Napi::FunctionReference constructor_;
  std::shared_ptr<DiskTwin> twin_;
};
