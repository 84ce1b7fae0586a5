// The JavaScript object DiskTwin.
#pragma once
#include <memory>

#include <napi.h>

#include "twin.h"

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
