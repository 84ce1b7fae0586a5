// The JavaScript object EpochSource: an EpochBuffer behind a worker thread.
#include <fcntl.h>
#include <unistd.h>

#include <climits>
#include <string>

#include "addon.h"
#include "disk/objects.h"
#include "epoch.h"
#include "image/image_object.h"
#include "worker.h"

class EpochSource : public Napi::ObjectWrap<EpochSource> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit EpochSource(const Napi::CallbackInfo& info);

 private:
  Napi::Value Sync(const Napi::CallbackInfo& info);
  Napi::Value Follow(const Napi::CallbackInfo& info);
  Napi::Value AttachDisks(const Napi::CallbackInfo& info);
  Napi::Value Collect(const Napi::CallbackInfo& info);
  Napi::Value CollectPaused(const Napi::CallbackInfo& info);
  Napi::Value Commit(const Napi::CallbackInfo& info);
  Napi::Value CommitBehind(const Napi::CallbackInfo& info);
  Napi::Value Rewind(const Napi::CallbackInfo& info);
  Napi::Value AdvanceTwins(const Napi::CallbackInfo& info);
  Napi::Value Scrub(const Napi::CallbackInfo& info);
  Napi::Value AwaitAnswers(const Napi::CallbackInfo& info);
  void NoteSign(const Napi::CallbackInfo& info);
  Napi::Value Abort(const Napi::CallbackInfo& info);
  Napi::Value MemoryBytes(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  enum class Turn { kAlone, kBehind };
  // Runs a job on the worker. Whatever speaks against it is a rejection too: callers look at the promise only.
  template <typename MakeJob>
  Napi::Value Run(Napi::Env env, MakeJob makeJob, Turn turn = Turn::kAlone);

  std::shared_ptr<EpochBuffer> buffer_;
  std::unique_ptr<Worker> worker_;
};

static Napi::Object ToObject(Napi::Env env, const EpochStats& stats) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("epoch", static_cast<double>(stats.epoch));
  result.Set("changedPages", static_cast<double>(stats.changedPages));
  result.Set("zeroPages", static_cast<double>(stats.zeroPages));
  result.Set("droppedPages", static_cast<double>(stats.droppedPages));
  result.Set("diskPages", static_cast<double>(stats.diskPages));
  result.Set("storedBytes", static_cast<double>(stats.storedBytes));
  result.Set("released", stats.released);
  result.Set("ms", static_cast<double>(stats.ns) / 1e6);
  result.Set("cpuMs", static_cast<double>(stats.cpuNs) / 1e6);
  return result;
}

static Napi::Object ToObject(Napi::Env env, const PassStats& stats) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("scannedPages", static_cast<double>(stats.scannedPages));
  result.Set("stagedPages", static_cast<double>(stats.stagedPages));
  result.Set("copiedPages", static_cast<double>(stats.copiedPages));
  result.Set("diskPages", static_cast<double>(stats.diskPages));
  result.Set("repairedPages", static_cast<double>(stats.repairedPages));
  result.Set("complete", stats.complete);
  result.Set("ms", static_cast<double>(stats.ns) / 1e6);
  result.Set("cpuMs", static_cast<double>(stats.cpuNs) / 1e6);
  return result;
}

// {ram, control, share}, or null where no part of the shadow is resident.
static std::shared_ptr<Resident> ResidentArgument(Napi::Value value) {
  if (!value.IsObject()) return nullptr;
  const Napi::Object waiting = value.As<Napi::Object>();
  const double share = waiting.Get("share").ToNumber().DoubleValue();
  return std::make_shared<Resident>(
      Resident{GuestRam::From(waiting.Get("ram")), QemuControl::From(waiting.Get("control")), share});
}

// DiskTwin[]; nothing for a VM without disks.
static DiskTwins TwinsArgument(Napi::Value value) {
  DiskTwins twins;
  if (!value.IsArray()) return twins;
  const auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) twins.push_back(DiskTwinObject::From(array.Get(i)));
  return twins;
}

void EpochSource::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("EpochSource",
              DefineClass(env, "EpochSource",
                          {InstanceMethod<&EpochSource::Sync>("sync"), InstanceMethod<&EpochSource::Follow>("follow"),
                           InstanceMethod<&EpochSource::AttachDisks>("attachDisks"),
                           InstanceMethod<&EpochSource::Collect>("collect"),
                           InstanceMethod<&EpochSource::CollectPaused>("collectPaused"),
                           InstanceMethod<&EpochSource::Commit>("commit"),
                           InstanceMethod<&EpochSource::CommitBehind>("commitBehind"), InstanceMethod<&EpochSource::Scrub>("scrub"),
                           InstanceMethod<&EpochSource::Rewind>("rewind"),
                           InstanceMethod<&EpochSource::AdvanceTwins>("advanceTwins"),
                           InstanceMethod<&EpochSource::AwaitAnswers>("awaitAnswers"),
                           InstanceMethod<&EpochSource::NoteSign>("noteSign"),
                           InstanceMethod<&EpochSource::Abort>("abort"),
                           InstanceMethod<&EpochSource::MemoryBytes>("memoryBytes"),
                           InstanceMethod<&EpochSource::Close>("close")}));
}

// EpochSource({ram, control, pid, tracking: 'write' | 'checksum', image})
EpochSource::EpochSource(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EpochSource>(info) {
  Napi::Env env = info.Env();
  const char* const usage = "EpochSource({ram, control, pid, tracking: 'write' | 'checksum', image})";
  if (!info[0].IsObject()) throw MakeTypeError(env, "EpochSource", usage);
  Napi::Object options = info[0].As<Napi::Object>();
  const int pid = static_cast<int>(WholeNumber(options.Get("pid"), 1, INT_MAX, "EpochSource", usage));
  const Napi::Value tracking = options.Get("tracking");
  const std::string mode = tracking.IsString() ? tracking.As<Napi::String>().Utf8Value() : "";
  if (mode != "write" && mode != "checksum") throw MakeTypeError(env, "EpochSource", usage);
  const std::shared_ptr<SharedMemory> ram = GuestRam::From(options.Get("ram"));
  const std::shared_ptr<ControlPage> control = QemuControl::From(options.Get("control"));
  const std::shared_ptr<ShadowImage> image = ShadowImageObject::From(options.Get("image"));
  try {
    std::unique_ptr<WriteTracker> tracker;
    if (mode == "write")
      tracker = std::make_unique<WriteTracker>(pid, control, ram->bytes);
    buffer_ = std::make_shared<EpochBuffer>(ram, control, std::move(tracker), image);
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  } catch (const std::bad_alloc&) {
    throw MakeError(env, "ENOMEM", "malloc", "not enough memory for the page tables of this RAM");
  }
  worker_ = std::make_unique<Worker>(env, "shadowvm-epoch");
}

template <typename MakeJob>
Napi::Value EpochSource::Run(Napi::Env env, MakeJob makeJob, Turn turn) {
  try {
    if (!buffer_) throw MakeError(env, "ERR_CLOSED", "epochSource", "this epoch source is closed");
    return turn == Turn::kBehind ? worker_->RunBehind(env, Value(), makeJob()) : worker_->Run(env, Value(), makeJob());
  } catch (const Napi::Error& error) {
    Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(error.Value());
    return deferred.Promise();
  }
}

Napi::Value EpochSource::Sync(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    return [buffer = buffer_]() -> Worker::Finish {
      const PassStats stats = buffer->Sync();
      return [stats](Napi::Env env) { return ToObject(env, stats); };
    };
  });
}

Napi::Value EpochSource::Follow(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    return [buffer = buffer_]() -> Worker::Finish {
      buffer->Follow();
      return [](Napi::Env env) { return env.Undefined(); };
    };
  });
}

// attachDisks([{fd, firstPage, bytes}], known)
Napi::Value EpochSource::AttachDisks(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    const char* const usage = "attachDisks([{fd, firstPage, bytes}], known)";
    if (!info[0].IsArray()) throw MakeTypeError(info.Env(), "attachDisks", usage);
    std::vector<CapturedDisk> disks;
    for (uint32_t i = 0; i < info[0].As<Napi::Array>().Length(); i++) {
      const Napi::Object disk = info[0].As<Napi::Array>().Get(i).ToObject();
      const auto number = [&](const char* name, double max) {
        return WholeNumber(disk.Get(name), 0, max, "attachDisks", usage);
      };
      disks.push_back({static_cast<int>(number("fd", INT_MAX)), static_cast<size_t>(number("firstPage", UINT32_MAX)),
                       static_cast<size_t>(number("bytes", 9007199254740991.0)) / kPageBytes});
    }
    return [buffer = buffer_, disks, known = info[1].ToBoolean().Value()]() -> Worker::Finish {
      buffer->AttachDisks(disks, known);
      return [](Napi::Env env) { return env.Undefined(); };
    };
  });
}

// collect({urgent?: boolean, pagesMax?: number})
Napi::Value EpochSource::Collect(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    ScanOptions options;
    if (info[0].IsObject()) {
      const Napi::Object given = info[0].As<Napi::Object>();
      options.urgent = given.Get("urgent").ToBoolean();
      const Napi::Value pagesMax = given.Get("pagesMax");
      if (!pagesMax.IsUndefined())
        options.pagesMax = static_cast<size_t>(WholeNumber(pagesMax, 1, INT_MAX, "collect", "{pagesMax} is a number of pages"));
    }
    return [buffer = buffer_, options]() -> Worker::Finish {
      const PassStats stats = buffer->Collect(options);
      return [stats](Napi::Env env) { return ToObject(env, stats); };
    };
  });
}

// collectPaused({timeoutMs, pagesMax?: number, hold?: number, countOffset?: number})
Napi::Value EpochSource::CollectPaused(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    const char* const usage = "collectPaused({timeoutMs, pagesMax?, hold?, countOffset?})";
    if (!info[0].IsObject()) throw MakeTypeError(info.Env(), "collectPaused", usage);
    const Napi::Object given = info[0].As<Napi::Object>();
    const auto number = [&](const char* name, double min, double max) {
      return WholeNumber(given.Get(name), min, max, "collectPaused", usage);
    };
    PauseOptions options;
    options.timeoutNs = number("timeoutMs", 1, 60'000) * 1000000;
    if (!given.Get("pagesMax").IsUndefined()) options.pagesMax = static_cast<size_t>(number("pagesMax", 1, INT_MAX));
    if (!given.Get("hold").IsUndefined()) options.hold = static_cast<int>(number("hold", 0, SHADOWVM_HOLDS_MAX - 1));
    if (!given.Get("countOffset").IsUndefined())
      options.countOffset = static_cast<size_t>(number("countOffset", 0, 9007199254740991.0));
    return [buffer = buffer_, options]() -> Worker::Finish {
      const PauseStats stats = buffer->CollectPaused(options);
      return [stats](Napi::Env env) {
        Napi::Object result = ToObject(env, stats.pass);
        result.Set("cutAtNs", Napi::BigInt::New(env, stats.cutAtNs));
        result.Set("cutAtMs", static_cast<double>(stats.cutAtWallNs / 1000000));
        result.Set("pauseMs", static_cast<double>(stats.pausedNs) / 1e6);
        result.Set("count", stats.count);
        result.Set("holdFailed", stats.holdFailed);
        return result;
      };
    };
  });
}

// {generation, holdsOutput?, releases?}: a cut without its time.
static EpochCut OrderArgument(Napi::Object order, const char* method, const char* usage) {
  EpochCut cut = {};
  cut.generation = static_cast<uint32_t>(WholeNumber(order.Get("generation"), 0, UINT32_MAX, method, usage));
  cut.holdsOutput = order.Get("holdsOutput").ToBoolean();
  const Napi::Value releases = order.Get("releases");
  if (!releases.IsUndefined())
    cut.releases = static_cast<uint32_t>(WholeNumber(releases, 0, (1u << SHADOWVM_HOLDS_MAX) - 1, method, usage));
  return cut;
}

// commit({generation, cutAtWallMs, cutAtNs: bigint, holdsOutput?, releases?}, deviceState: Buffer, resident: {ram, control, share} | null,
//        twins: DiskTwin[])
Napi::Value EpochSource::Commit(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    Napi::Env env = info.Env();
    const char* const usage = "commit({generation, cutAtWallMs, cutAtNs}, deviceState: Buffer, {ram, control, share} | null)";
    if (!info[0].IsObject() || !info[1].IsBuffer()) throw MakeTypeError(env, "commit", usage);
    const Napi::Object when = info[0].As<Napi::Object>();
    if (!when.Get("cutAtNs").IsBigInt()) throw MakeTypeError(env, "commit", usage);
    bool lossless = false;
    EpochCut cut = OrderArgument(when, "commit", usage);
    cut.wallMs = WholeNumber(when.Get("cutAtWallMs"), 0, 9007199254740991.0, "commit", usage);
    cut.monotonicNs = when.Get("cutAtNs").As<Napi::BigInt>().Int64Value(&lossless);
    // Copied: JavaScript may write its buffer, or let it go, before the worker is done.
    const auto device = info[1].As<Napi::Buffer<uint8_t>>();
    std::vector<uint8_t> deviceState(device.Data(), device.Data() + device.Length());
    return [buffer = buffer_, cut, deviceState = std::move(deviceState),
            resident = ResidentArgument(info[2]), twins = TwinsArgument(info[3])]() -> Worker::Finish {
      const EpochStats stats = buffer->Commit(cut, deviceState.data(), deviceState.size(), resident.get(), twins);
      return [stats](Napi::Env env) { return ToObject(env, stats); };
    };
  });
}

// commitBehind({generation, holdsOutput?, releases?}, deviceStateFd, resident: {ram, control, share} | null, twins: DiskTwin[]):
// as commit, or null when nothing was cut
Napi::Value EpochSource::CommitBehind(const Napi::CallbackInfo& info) {
  const auto makeJob = [&] {
    const char* const usage = "commitBehind({generation}, deviceStateFd, {ram, control, share} | null)";
    if (!info[0].IsObject()) throw MakeTypeError(info.Env(), "commitBehind", usage);
    const EpochCut cut = OrderArgument(info[0].As<Napi::Object>(), "commitBehind", usage);
    // Of its own: JavaScript may close its descriptor before the worker is done.
    const int fd = fcntl(static_cast<int>(WholeNumber(info[1], 0, INT_MAX, "commitBehind", usage)), F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
      const Failure failure = ErrnoFailure(errno, "dup", "device state");
      throw MakeError(info.Env(), failure.code, failure.syscall, failure.message);
    }
    const std::shared_ptr<const int> devices(new int(fd), [](const int* open) {
      close(*open);
      delete open;
    });
    return [buffer = buffer_, cut, devices, resident = ResidentArgument(info[2]),
            twins = TwinsArgument(info[3])]() -> Worker::Finish {
      const std::optional<EpochStats> stats = buffer->CommitPaused(cut, *devices, resident.get(), twins);
      return [stats](Napi::Env env) { return stats ? Napi::Value(ToObject(env, *stats)) : env.Null(); };
    };
  };
  return Run(info.Env(), makeJob, Turn::kBehind);
}

// rewind(epoch, resident: {ram, control, share} | null, twins: DiskTwin[])
Napi::Value EpochSource::Rewind(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    const auto epoch = static_cast<uint64_t>(WholeNumber(info[0], 1, 9007199254740991.0, "rewind", "rewind(epoch)"));
    return [buffer = buffer_, epoch, resident = ResidentArgument(info[1]),
            twins = TwinsArgument(info[2])]() -> Worker::Finish {
      buffer->Rewind(epoch, resident.get(), twins);
      return [](Napi::Env env) { return env.Undefined(); };
    };
  });
}

// advanceTwins(twins, pages): how many pages are left to compare
Napi::Value EpochSource::AdvanceTwins(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    const auto pages = static_cast<size_t>(WholeNumber(info[1], 0, UINT32_MAX, "advanceTwins", "advanceTwins(twins, pages)"));
    return [buffer = buffer_, pages, twins = TwinsArgument(info[0])]() -> Worker::Finish {
      const uint64_t left = buffer->AdvanceTwins(twins, pages);
      return [left](Napi::Env env) { return Napi::Number::New(env, static_cast<double>(left)); };
    };
  });
}

// scrub(firstPage, count): {nextPage, comparedPages, suspectPages}
Napi::Value EpochSource::Scrub(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    const char* const usage = "scrub(firstPage, count)";
    const auto first = static_cast<size_t>(WholeNumber(info[0], 0, UINT32_MAX, "scrub", usage));
    const auto count = static_cast<size_t>(WholeNumber(info[1], 1, UINT32_MAX, "scrub", usage));
    return [buffer = buffer_, first, count]() -> Worker::Finish {
      const ScrubStats stats = buffer->Scrub(first, count);
      return [stats](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("nextPage", static_cast<double>(stats.nextPage));
        result.Set("comparedPages", static_cast<double>(stats.comparedPages));
        result.Set("suspectPages", static_cast<double>(stats.suspectPages));
        return result;
      };
    };
  });
}

// awaitAnswers(offset, wanted, vcpus: ThreadWatch | null, timeoutMs): whether the counter got there and they sleep
Napi::Value EpochSource::AwaitAnswers(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    const char* const usage = "awaitAnswers(offset, wanted, vcpus, timeoutMs)";
    const auto offset = static_cast<size_t>(WholeNumber(info[0], 0, 9007199254740991.0, "awaitAnswers", usage));
    const auto wanted = static_cast<uint16_t>(WholeNumber(info[1], 0, UINT16_MAX, "awaitAnswers", usage));
    const int64_t timeoutNs = WholeNumber(info[3], 0, 1000, "awaitAnswers", usage) * 1000000;
    const std::shared_ptr<const ThreadWatch> vcpus = ThreadWatchObject::From(info[2]);
    if (!vcpus && !info[2].IsNull()) throw MakeTypeError(info.Env(), "awaitAnswers", usage);
    return [buffer = buffer_, offset, wanted, vcpus, timeoutNs]() -> Worker::Finish {
      const bool came = buffer->AwaitAnswers(offset, wanted, vcpus.get(), timeoutNs);
      return [came](Napi::Env env) { return Napi::Boolean::New(env, came); };
    };
  });
}

// noteSign(atNs: bigint): also while an operation is under way.
void EpochSource::NoteSign(const Napi::CallbackInfo& info) {
  if (!info[0].IsBigInt()) throw MakeTypeError(info.Env(), "epochSource", "noteSign(atNs: bigint)");
  bool lossless = false;
  if (buffer_) buffer_->NoteSign(info[0].As<Napi::BigInt>().Int64Value(&lossless));
}

Napi::Value EpochSource::Abort(const Napi::CallbackInfo& info) {
  return Run(info.Env(), [&] {
    return [buffer = buffer_]() -> Worker::Finish {
      buffer->Abort();
      return [](Napi::Env env) { return env.Undefined(); };
    };
  });
}

Napi::Value EpochSource::MemoryBytes(const Napi::CallbackInfo& info) {
  if (!buffer_) throw MakeError(info.Env(), "ERR_CLOSED", "epochSource", "this epoch source is closed");
  return Napi::Number::New(info.Env(), static_cast<double>(buffer_->MemoryBytes()));
}

// close(): idempotent. ERR_BUSY while an operation is under way: its promise must settle first.
void EpochSource::Close(const Napi::CallbackInfo& info) {
  if (worker_ && worker_->busy())
    throw MakeError(info.Env(), "ERR_BUSY", "epochSource", "an operation is still under way");
  worker_.reset();
  buffer_.reset();
}

// measureScan(ram): one pass of memcpy and one of checksumming over the same memory (which must have no holes), in one
// thread, for the benchmark that compares them. Returns {bytes, copyMs, checksumMs}.
static Napi::Value MeasureScan(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::shared_ptr<SharedMemory> ram = GuestRam::From(info[0]);
  const SharedMemory copy("shadowvm-bench", ram->bytes);
  memset(copy.base, 1, copy.bytes);  // its page faults are not what is measured
  uint8_t key[kHashKeyBytes];
  memset(key, 7, sizeof key);
  const HashPage hash = BestHashPage();
  struct timespec t[3];
  clock_gettime(CLOCK_MONOTONIC, &t[0]);
  for (size_t at = 0; at < ram->bytes; at += kPageBytes) memcpy(copy.base + at, ram->base + at, kPageBytes);
  clock_gettime(CLOCK_MONOTONIC, &t[1]);
  uint64_t sum = 0;
  for (size_t at = 0; at < ram->bytes; at += kPageBytes) sum ^= hash(ram->base + at, key);
  clock_gettime(CLOCK_MONOTONIC, &t[2]);
  const auto ms = [&](int i) { return (t[i + 1].tv_sec - t[i].tv_sec) * 1e3 + (t[i + 1].tv_nsec - t[i].tv_nsec) / 1e6; };
  Napi::Object result = Napi::Object::New(env);
  result.Set("bytes", static_cast<double>(ram->bytes));
  result.Set("copyMs", ms(0));
  result.Set("checksumMs", ms(1));
  result.Set("sum", Napi::BigInt::New(env, sum));  // keeps the loop from being optimised away
  return result;
}

void RegisterEpoch(Napi::Env env, Napi::Object exports) {
  EpochSource::Register(env, exports);
  exports.Set("measureScan", Napi::Function::New(env, MeasureScan));
}
