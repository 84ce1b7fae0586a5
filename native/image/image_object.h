// The JavaScript object ShadowImage.
#pragma once
#include <atomic>
#include <memory>

#include <napi.h>

#include "../worker.h"
#include "shadow_image.h"

class ShadowImageObject : public Napi::ObjectWrap<ShadowImageObject> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit ShadowImageObject(const Napi::CallbackInfo& info);
  // The image behind a JavaScript value; throws a TypeError when it is none, ERR_CLOSED when it is not open.
  static std::shared_ptr<ShadowImage> From(Napi::Value value);

 private:
  using Job = std::function<Worker::Finish(ShadowImage&)>;
  Napi::Value Create(const Napi::CallbackInfo& info);
  Napi::Value Open(const Napi::CallbackInfo& info);
  Napi::Value Describe(const Napi::CallbackInfo& info);
  Napi::Value Epochs(const Napi::CallbackInfo& info);
  Napi::Value DeviceState(const Napi::CallbackInfo& info);
  Napi::Value Append(const Napi::CallbackInfo& info);
  Napi::Value Rewind(const Napi::CallbackInfo& info);
  Napi::Value Flush(const Napi::CallbackInfo& info);
  Napi::Value Fill(const Napi::CallbackInfo& info);
  Napi::Value FillDisk(const Napi::CallbackInfo& info);
  Napi::Value ReadPage(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Compact(const Napi::CallbackInfo& info);
  Napi::Value Pack(const Napi::CallbackInfo& info);
  Napi::Value Verify(const Napi::CallbackInfo& info);
  void Stop(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  // Runs a job on one of the workers. Whatever speaks against it is a rejection too: callers look at the promise only.
  template <typename MakeJob>
  Napi::Value Run(Napi::Env env, std::unique_ptr<Worker>& worker, bool needsImage, MakeJob makeJob);

  static Napi::FunctionReference constructor_;
  std::shared_ptr<ShadowImage> image_;
  // What takes seconds (compact, pack, verify) does not hold up what a promotion waits for (rewind, device state, fill).
  std::unique_ptr<Worker> quick_;
  std::unique_ptr<Worker> upkeep_;
  std::shared_ptr<std::atomic<bool>> stop_ = std::make_shared<std::atomic<bool>>(false);
};
