// The JavaScript object Pager: a Pager whose fill runs on a worker thread.
#include <algorithm>
#include <climits>

#include "addon.h"
#include "image/image_object.h"
#include "pager.h"
#include "ram_source.h"

constexpr size_t kFaultThreads = 2;
constexpr double kFaultThreadsMax = 64;

// Calls a JavaScript function once, from any thread; does not keep the process alive.
class TroubleCall {
 public:
  TroubleCall(Napi::Env env, Napi::Function callback)
      : call_(Napi::ThreadSafeFunction::New(env, callback, "pagerTrouble", 0, 1)) {
    call_.Unref(env);
  }
  ~TroubleCall() { call_.Release(); }
  void operator()(size_t page, const Failure& failure) {
    call_.NonBlockingCall([page, failure](Napi::Env env, Napi::Function callback) {
      Napi::Object trouble = Napi::Object::New(env);
      trouble.Set("page", static_cast<double>(page));
      trouble.Set("code", failure.code);
      trouble.Set("message", failure.message);
      callback.Call({trouble});
    });
  }

 private:
  Napi::ThreadSafeFunction call_;
};

class PagerObject : public Napi::ObjectWrap<PagerObject> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit PagerObject(const Napi::CallbackInfo& info);
  ~PagerObject();

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Needed(const Napi::CallbackInfo& info);
  Napi::Value KeepHot(const Napi::CallbackInfo& info);
  void Throttle(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  Pager& Open(Napi::Env env) const;

  size_t faultThreads_ = kFaultThreads;
  bool started_ = false;
  std::shared_ptr<Pager> pager_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<Worker> keeper_;  // of hot pages; made when it is needed
};

// The objects that pages can come from.
static std::shared_ptr<const PageSource> SourceFrom(Napi::Value value) {
  if (std::shared_ptr<const PageSource> ram = RamPageSource::From(value)) return ram;
  return ShadowImageObject::From(value);
}

void PagerObject::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("Pager",
              DefineClass(env, "Pager",
                          {InstanceMethod<&PagerObject::Start>("start"), InstanceMethod<&PagerObject::Stats>("stats"),
                           InstanceMethod<&PagerObject::Throttle>("throttle"),
                           InstanceMethod<&PagerObject::Needed>("needed"),
                           InstanceMethod<&PagerObject::KeepHot>("keepHot"),
                           InstanceMethod<&PagerObject::Close>("close")}));
}

// Pager({control, pid, ram, source, faultThreads?, onTrouble({page, code, message})})
PagerObject::PagerObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PagerObject>(info) {
  Napi::Env env = info.Env();
  const char* const usage = "Pager({control, pid, ram, source, faultThreads?, onTrouble})";
  if (!info[0].IsObject()) throw MakeTypeError(env, "Pager", usage);
  Napi::Object options = info[0].As<Napi::Object>();
  const int pid = static_cast<int>(WholeNumber(options.Get("pid"), 1, INT_MAX, "Pager", usage));
  if (!options.Get("faultThreads").IsUndefined())
    faultThreads_ = static_cast<size_t>(WholeNumber(options.Get("faultThreads"), 1, kFaultThreadsMax, "Pager", usage));
  const Napi::Value onTrouble = options.Get("onTrouble");
  if (!onTrouble.IsFunction()) throw MakeTypeError(env, "Pager", usage);
  const std::shared_ptr<ControlPage> control = QemuControl::From(options.Get("control"));
  const std::shared_ptr<SharedMemory> ram = GuestRam::From(options.Get("ram"));
  const std::shared_ptr<const PageSource> source = SourceFrom(options.Get("source"));
  const auto call = std::make_shared<TroubleCall>(env, onTrouble.As<Napi::Function>());
  try {
    pager_ = std::make_shared<Pager>(pid, control, ram, source,
                                     [call](size_t page, const Failure& failure) { (*call)(page, failure); });
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
  worker_ = std::make_unique<Worker>(env, "shadowvm-fill");
}

// Before the worker goes, which would wait for the end of the fill.
PagerObject::~PagerObject() {
  if (pager_) pager_->Stop();
}

Pager& PagerObject::Open(Napi::Env env) const {
  if (!pager_) throw MakeError(env, "ERR_CLOSED", "pager", "this pager is closed");
  return *pager_;
}

static std::vector<uint32_t> PagesFrom(Napi::Value value, const char* usage) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
    throw MakeTypeError(value.Env(), "pager", usage);
  const auto pages = value.As<Napi::Uint32Array>();
  return std::vector<uint32_t>(pages.Data(), pages.Data() + pages.ElementLength());
}

// start(hotPath?: string, laterHotPath?: string): serves faults from now on, and fills; the promise settles with the end
// of the fill.
Napi::Value PagerObject::Start(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Pager& pager = Open(env);
  if (started_) throw MakeError(env, "ERR_BUSY", "pager", "this pager was started already");
  started_ = true;
  std::vector<std::string> hotPaths;
  for (size_t i = 0; i < 2 && info[i].IsString(); i++) hotPaths.push_back(info[i].As<Napi::String>());
  pager.Start(faultThreads_);
  return worker_->Run(env, Value(), [pager = pager_, hotPaths]() -> Worker::Finish {
    const FillResult result = pager->Fill(hotPaths);
    return [result](Napi::Env env) {
      Napi::Object object = Napi::Object::New(env);
      object.Set("pages", static_cast<double>(result.pages));
      object.Set("faults", static_cast<double>(result.faults));
      object.Set("ms", static_cast<double>(result.ns) / 1e6);
      return object;
    };
  });
}

Napi::Value PagerObject::Stats(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const PagerStats stats = Open(env).Stats();
  Napi::Object result = Napi::Object::New(env);
  result.Set("faults", static_cast<double>(stats.faults));
  result.Set("faultMsP50", stats.faultMsP50);
  result.Set("faultMsMax", stats.faultMsMax);
  result.Set("filledPages", static_cast<double>(stats.filledPages));
  result.Set("filling", stats.filling);
  return result;
}

// needed(before?: Uint32Array): Uint32Array of the hot pages of this awakening and of those that were waited for all the
// same; with `before`, of the second file's, and without those
Napi::Value PagerObject::Needed(const Napi::CallbackInfo& info) {
  const bool later = !info[0].IsUndefined();
  const std::vector<uint32_t> before =
      later ? PagesFrom(info[0], "needed(before?: Uint32Array)") : std::vector<uint32_t>();
  const std::vector<uint32_t> pages = Open(info.Env()).Needed(later ? 1 : 0, before);
  Napi::Uint32Array result = Napi::Uint32Array::New(info.Env(), pages.size());
  std::copy(pages.begin(), pages.end(), result.Data());
  return result;
}

// keepHot(path, pages: Uint32Array): Promise. One at a time.
Napi::Value PagerObject::KeepHot(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const char* const usage = "keepHot(path, pages: Uint32Array)";
  Open(env);
  if (!info[0].IsString()) throw MakeTypeError(env, "pager", usage);
  const std::string path = info[0].As<Napi::String>();
  if (!keeper_) keeper_ = std::make_unique<Worker>(env, "shadowvm-hot");
  return keeper_->Run(env, Value(), [pager = pager_, path, pages = PagesFrom(info[1], usage)]() -> Worker::Finish {
    pager->KeepHot(path, pages);
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

// throttle(bytesPerSecond): a limit for the fill, not for faults; 0 is none.
void PagerObject::Throttle(const Napi::CallbackInfo& info) {
  const int64_t limit = WholeNumber(info[0], 0, 1e15, "pager", "throttle(bytesPerSecond)");
  Open(info.Env()).Throttle(static_cast<uint64_t>(limit));
}

// close(): idempotent. A fill under way ends, and rejects with ERR_CLOSED.
void PagerObject::Close(const Napi::CallbackInfo&) {
  if (pager_) pager_->Stop();
  pager_.reset();
}

void RegisterPager(Napi::Env env, Napi::Object exports) {
  RamPageSource::Register(env, exports);
  PagerObject::Register(env, exports);
}
