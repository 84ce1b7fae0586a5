#include "image_object.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "../addon.h"
#include "../disk/twin.h"
#include "../memory.h"

// A GiB at a time: what differs is noted in a bit for each page.
constexpr size_t kFillDiskPages = 1u << 18;
constexpr double kMaxExact = 9007199254740991.0;  // 2^53 - 1

namespace {

double Double(uint64_t value) { return static_cast<double>(value); }

std::string Text(Napi::Object options, const char* name, const char* usage) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return "";
  if (!value.IsString()) throw MakeTypeError(options.Env(), "ShadowImage", usage);
  return value.As<Napi::String>();
}

uint64_t Whole(Napi::Object options, const char* name, double fallback, double max, const char* usage) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined() && fallback >= 0) return static_cast<uint64_t>(fallback);
  return static_cast<uint64_t>(WholeNumber(value, 0, max, "ShadowImage", usage));
}

bool Flag(Napi::Object options, const char* name, bool fallback, const char* usage) {
  const Napi::Value value = options.Get(name);
  if (value.IsUndefined()) return fallback;
  if (!value.IsBoolean()) throw MakeTypeError(options.Env(), "ShadowImage", usage);
  return value.As<Napi::Boolean>();
}

Napi::Object Options(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  if (!info[index].IsObject()) throw MakeTypeError(info.Env(), "ShadowImage", usage);
  return info[index].As<Napi::Object>();
}

std::shared_ptr<ShadowImage> BaseOf(Napi::Value value) {
  return value.IsUndefined() || value.IsNull() ? nullptr : ShadowImageObject::From(value);
}

EpochMeta MetaOf(Napi::Object options) {
  const char* const usage = "append({epoch, parent, generation, cutAtWallMs, cutAtMonotonicNs}, deviceState, ram)";
  EpochMeta meta;
  meta.epoch = Whole(options, "epoch", -1, kMaxExact, usage);
  meta.parent = Whole(options, "parent", -1, kMaxExact, usage);
  meta.generation = static_cast<uint32_t>(Whole(options, "generation", -1, UINT32_MAX, usage));
  meta.cutAtWallMs = static_cast<int64_t>(Whole(options, "cutAtWallMs", -1, kMaxExact, usage));
  const Napi::Value ns = options.Get("cutAtMonotonicNs");
  if (!ns.IsBigInt()) throw MakeTypeError(options.Env(), "ShadowImage", usage);
  bool lossless;
  meta.cutAtMonotonicNs = ns.As<Napi::BigInt>().Int64Value(&lossless);
  return meta;
}

Napi::Object ToObject(Napi::Env env, const EpochInfo& info) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("epoch", Double(info.meta.epoch));
  result.Set("parent", Double(info.meta.parent));
  result.Set("generation", info.meta.generation);
  result.Set("cutAtWallMs", static_cast<double>(info.meta.cutAtWallMs));
  result.Set("cutAtMonotonicNs", Napi::BigInt::New(env, info.meta.cutAtMonotonicNs));
  result.Set("changedPages", Double(info.changedPages));
  result.Set("storedBytes", Double(info.storedBytes));
  result.Set("durable", info.durable);
  return result;
}

// A whole memory, and disks that nobody writes, as one epoch: every page that differs from the head.
AppendStats AppendMemory(ShadowImage& image, const EpochMeta& meta, const std::vector<uint8_t>& device,
                         const SharedMemory& ram, const std::vector<int>& disks) {
  if (ram.bytes != image.ramBytes()) throw Failure{"ERR_SIZE", "append", "image and memory differ in RAM size"};
  static const uint8_t zeros[kPageBytes] = {};
  image.Begin();
  try {
    VisitExtents(ram, [&](size_t from, size_t to, bool hasData) {
      for (size_t at = from; at < to; at += kPageBytes) {
        const size_t page = at / kPageBytes;
        if (!hasData) {
          if (image.PageHash(page) != image.ZeroHash()) image.Add(page, image.ZeroHash(), zeros);
          continue;
        }
        // Checksum and content must be of the same moment, should somebody write this memory meanwhile.
        uint8_t copy[kPageBytes];
        memcpy(copy, ram.base + at, kPageBytes);
        image.Add(page, image.HashOf(copy), copy);
      }
    });
    size_t page = image.pages();
    for (const int disk : disks)
      page += VisitDisk(disk, [&](size_t each, const uint8_t* content) {
        if (page + each >= (image.ramBytes() + image.diskBytes()) / kPageBytes)
          throw Failure{"ERR_SIZE", "append", "the disks are bigger than the image knows of"};
        if (content != nullptr || image.PageHash(page + each) != image.ZeroHash())
          image.Add(page + each, content == nullptr ? image.ZeroHash() : image.HashOf(content),
                    content == nullptr ? zeros : content);
      });
    return image.Commit(meta, device.data(), device.size());
  } catch (...) {
    image.Abandon();
    throw;
  }
}

// Copies the first `share` of the image's pages into an empty memory, the most recently written ones first.
uint64_t FillMemory(const ShadowImage& image, const SharedMemory& ram, double share) {
  if (ram.bytes != image.ramBytes()) throw Failure{"ERR_SIZE", "fill", "image and memory differ in RAM size"};
  std::vector<uint32_t> order = image.FillOrder();
  order.resize(static_cast<size_t>(static_cast<double>(order.size()) * share + 0.5));
  std::vector<bool> wanted(image.pages());
  for (const uint32_t page : order) wanted[page] = true;
  PageScratch scratch;
  uint64_t filled = 0;
  for (const uint32_t page : order) {
    if (!wanted[page]) continue;  // came with another
    image.ReadAround(page, scratch, [&](size_t each, const uint8_t* content) {
      if (!wanted[each]) return;
      wanted[each] = false;
      filled++;
      // `each` is below pages(), which the memory has: its size was compared.
      if (content != nullptr) memcpy(ram.base + each * kPageBytes, content, kPageBytes);
    });
  }
  return filled;
}

}  // namespace

Napi::FunctionReference ShadowImageObject::constructor_;

void ShadowImageObject::Register(Napi::Env env, Napi::Object exports) {
  using Self = ShadowImageObject;
  Napi::Function constructor = DefineClass(
      env, "ShadowImage",
      {InstanceMethod<&Self::Create>("create"), InstanceMethod<&Self::Open>("open"),
       InstanceMethod<&Self::Describe>("describe"), InstanceMethod<&Self::Epochs>("epochs"),
       InstanceMethod<&Self::DeviceState>("deviceState"), InstanceMethod<&Self::Append>("append"),
       InstanceMethod<&Self::Rewind>("rewind"), InstanceMethod<&Self::Flush>("flush"),
       InstanceMethod<&Self::Fill>("fill"), InstanceMethod<&Self::FillDisk>("fillDisk"), InstanceMethod<&Self::ReadPage>("readPage"),
       InstanceMethod<&Self::Stats>("stats"), InstanceMethod<&Self::Compact>("compact"),
       InstanceMethod<&Self::Pack>("pack"), InstanceMethod<&Self::Verify>("verify"),
       InstanceMethod<&Self::Stop>("stop"), InstanceMethod<&Self::Close>("close")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("ShadowImage", constructor);
}

ShadowImageObject::ShadowImageObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ShadowImageObject>(info) {
  quick_ = std::make_unique<Worker>(info.Env(), "shadowvm-image");
  upkeep_ = std::make_unique<Worker>(info.Env(), "shadowvm-upkeep", [stop = stop_] { *stop = true; });
}

std::shared_ptr<ShadowImage> ShadowImageObject::From(Napi::Value value) {
  Napi::Env env = value.Env();
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor_.Value()))
    throw MakeTypeError(env, "ShadowImage", "expected a ShadowImage");
  ShadowImageObject* self = Unwrap(value.As<Napi::Object>());
  if (!self->image_) throw MakeError(env, "ERR_CLOSED", "shadowImage", "this shadow image is not open");
  return self->image_;
}

template <typename MakeJob>
Napi::Value ShadowImageObject::Run(Napi::Env env, std::unique_ptr<Worker>& worker, bool needsImage, MakeJob makeJob) {
  try {
    if (!worker || (needsImage && !image_))
      throw MakeError(env, "ERR_CLOSED", "shadowImage", "this shadow image is not open");
    return worker->Run(env, Value(), makeJob());
  } catch (const Napi::Error& error) {
    Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(error.Value());
    return deferred.Promise();
  }
}

// create(folder, {vm, ramBytes, diskBytes?, base?, label?, segmentBytes?})
Napi::Value ShadowImageObject::Create(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, false, [&] {
    const char* const usage = "create(folder, {vm, ramBytes, diskBytes?, base?, label?, segmentBytes?})";
    if (!info[0].IsString()) throw MakeTypeError(info.Env(), "ShadowImage", usage);
    Napi::Object given = Options(info, 1, usage);
    ImageOptions options;
    options.vm = Text(given, "vm", usage);
    options.label = Text(given, "label", usage);
    options.ramBytes = Whole(given, "ramBytes", -1, 17592186044416.0, usage);
    options.diskBytes = Whole(given, "diskBytes", 0, 17592186044416.0, usage);
    options.segmentBytes = Whole(given, "segmentBytes", 64 << 20, 1099511627776.0, usage);
    options.base = BaseOf(given.Get("base"));
    return [this, folder = info[0].As<Napi::String>().Utf8Value(), options]() -> Worker::Finish {
      auto image = ShadowImage::Create(folder, options);
      return [this, image](Napi::Env env) {
        image_ = image;
        return env.Undefined();
      };
    };
  });
}

// open(path, base | null): what was found and lost
Napi::Value ShadowImageObject::Open(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, false, [&] {
    if (!info[0].IsString()) throw MakeTypeError(info.Env(), "ShadowImage", "open(path, base)");
    return [this, path = info[0].As<Napi::String>().Utf8Value(), base = BaseOf(info[1])]() -> Worker::Finish {
      OpenReport report;
      auto image = ShadowImage::Open(path, base, &report);
      return [this, image, report](Napi::Env env) {
        image_ = image;
        Napi::Object result = Napi::Object::New(env);
        result.Set("headEpoch", Double(report.headEpoch));
        result.Set("lostEpochs", Double(report.lostEpochs));
        result.Set("cutBytes", Double(report.cutBytes));
        result.Set("removedFiles", Double(report.removedFiles));
        result.Set("words", report.words);
        return result;
      };
    };
  });
}

// describe(): what never changes, and the head
Napi::Value ShadowImageObject::Describe(const Napi::CallbackInfo& info) {
  const std::shared_ptr<ShadowImage> image = From(Value());
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("vm", image->vm());
  result.Set("label", image->label());
  result.Set("id", image->id());
  result.Set("baseId", image->baseId());
  result.Set("ramBytes", Double(image->ramBytes()));
  result.Set("diskBytes", Double(image->diskBytes()));
  result.Set("headEpoch", Double(image->HeadEpoch()));
  result.Set("lastEpoch", Double(image->LastEpoch()));
  return result;
}

Napi::Value ShadowImageObject::Epochs(const Napi::CallbackInfo& info) {
  const std::vector<EpochInfo> epochs = From(Value())->Epochs();
  Napi::Array result = Napi::Array::New(info.Env(), epochs.size());
  for (size_t i = 0; i < epochs.size(); i++) result.Set(static_cast<uint32_t>(i), ToObject(info.Env(), epochs[i]));
  return result;
}

Napi::Value ShadowImageObject::DeviceState(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    const int64_t epoch = WholeNumber(info[0], 0, kMaxExact, "deviceState", "deviceState(epoch)");
    return [image = image_, epoch]() -> Worker::Finish {
      auto bytes = image->DeviceState(static_cast<uint64_t>(epoch));
      return [bytes](Napi::Env env) { return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size()); };
    };
  });
}

// append(meta, deviceState, ram, descriptors of the disks)
Napi::Value ShadowImageObject::Append(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    const EpochMeta meta = MetaOf(Options(info, 0, "append(meta, deviceState, ram)"));
    if (!info[1].IsBuffer()) throw MakeTypeError(info.Env(), "ShadowImage", "append(meta, deviceState, ram)");
    const auto buffer = info[1].As<Napi::Buffer<uint8_t>>();
    std::vector<uint8_t> device(buffer.Data(), buffer.Data() + buffer.Length());
    std::vector<int> disks;
    if (info[3].IsArray())
      for (uint32_t i = 0; i < info[3].As<Napi::Array>().Length(); i++)
        disks.push_back(static_cast<int>(
            WholeNumber(info[3].As<Napi::Array>().Get(i), 0, INT32_MAX, "append", "a disk is a descriptor")));
    return [image = image_, meta, device = std::move(device), ram = GuestRam::From(info[2]), disks]() -> Worker::Finish {
      const AppendStats stats = AppendMemory(*image, meta, device, *ram, disks);
      return [stats](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("changedPages", Double(stats.changedPages));
        result.Set("zeroPages", Double(stats.zeroPages));
        result.Set("basePages", Double(stats.basePages));
        result.Set("droppedPages", Double(stats.droppedPages));
        result.Set("storedBytes", Double(stats.storedBytes));
        return result;
      };
    };
  });
}

Napi::Value ShadowImageObject::Rewind(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    const int64_t epoch = WholeNumber(info[0], 0, kMaxExact, "rewind", "rewind(epoch)");
    return [image = image_, epoch]() -> Worker::Finish {
      image->Rewind(static_cast<uint64_t>(epoch));
      return [](Napi::Env env) { return env.Undefined(); };
    };
  });
}

Napi::Value ShadowImageObject::Flush(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    return [image = image_]() -> Worker::Finish {
      image->Flush();
      return [](Napi::Env env) { return env.Undefined(); };
    };
  });
}

// fill(ram, share): number of pages filled
Napi::Value ShadowImageObject::Fill(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    const double share = info[1].IsNumber() ? info[1].As<Napi::Number>().DoubleValue() : -1;
    if (!(share >= 0 && share <= 1)) throw MakeTypeError(info.Env(), "fill", "fill(ram, share of 0 to 1)");
    return [image = image_, ram = GuestRam::From(info[0]), share]() -> Worker::Finish {
      const uint64_t filled = FillMemory(*image, *ram, share);
      return [filled](Napi::Env env) { return Napi::Number::New(env, Double(filled)); };
    };
  });
}

// fillDisk(fd, firstPage, bytes): how many pages of the file were not what the head holds. The file must stay open.
Napi::Value ShadowImageObject::FillDisk(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    const char* const usage = "fillDisk(fd, firstPage, bytes)";
    const int fd = static_cast<int>(WholeNumber(info[0], 0, INT32_MAX, "fillDisk", usage));
    const auto first = static_cast<size_t>(WholeNumber(info[1], 0, UINT32_MAX, "fillDisk", usage));
    const auto pages = static_cast<size_t>(WholeNumber(info[2], 0, kMaxExact, "fillDisk", usage)) / kPageBytes;
    if (first < image_->pages() || first + pages > (image_->ramBytes() + image_->diskBytes()) / kPageBytes)
      throw MakeError(info.Env(), "ERR_SIZE", "fillDisk", "the image has no such disk");
    return [image = image_, fd, first, pages]() -> Worker::Finish {
      uint64_t mended = 0;
      for (size_t from = 0; from < pages; from += kFillDiskPages)
        mended += ::FillDisk(*image, fd, first, from, std::min(pages, from + kFillDiskPages));
      return [mended](Napi::Env env) { return Napi::Number::New(env, Double(mended)); };
    };
  });
}

Napi::Value ShadowImageObject::ReadPage(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    const int64_t page = WholeNumber(info[0], 0, UINT32_MAX, "readPage", "readPage(page)");
    return [image = image_, page]() -> Worker::Finish {
      std::vector<uint8_t> content(kPageBytes);
      image->ReadPage(static_cast<size_t>(page), content.data());
      return [content](Napi::Env env) { return Napi::Buffer<uint8_t>::Copy(env, content.data(), content.size()); };
    };
  });
}

Napi::Value ShadowImageObject::Stats(const Napi::CallbackInfo& info) {
  return Run(info.Env(), quick_, true, [&] {
    return [image = image_]() -> Worker::Finish {
      const ImageStats stats = image->Stats();
      return [stats](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("bytesOnDisk", Double(stats.bytesOnDisk));
        result.Set("liveBytes", Double(stats.liveBytes));
        result.Set("indexBytes", Double(stats.indexBytes));
        result.Set("storedPages", Double(stats.storedPages));
        result.Set("segments", Double(stats.segments));
        result.Set("headEpoch", Double(stats.headEpoch));
        result.Set("oldestEpoch", Double(stats.oldestEpoch));
        result.Set("pageCacheBytes", Double(stats.pageCacheBytes));
        return result;
      };
    };
  });
}

// compact({keepFromWallMs?, maxBytes?, dutyPercent?, force?})
Napi::Value ShadowImageObject::Compact(const Napi::CallbackInfo& info) {
  return Run(info.Env(), upkeep_, true, [&] {
    const char* const usage = "compact({keepFromWallMs?, maxBytes?, dutyPercent?, force?})";
    Napi::Object given = Options(info, 0, usage);
    CompactOptions options;
    options.keepFromWallMs = static_cast<int64_t>(Whole(given, "keepFromWallMs", 0, kMaxExact, usage));
    options.maxBytes = Whole(given, "maxBytes", 0, kMaxExact, usage);
    options.dutyPercent = static_cast<int>(Whole(given, "dutyPercent", 100, 100, usage));
    options.force = Flag(given, "force", false, usage);
    *stop_ = false;
    return [image = image_, options, stop = stop_]() -> Worker::Finish {
      const CompactStats stats = image->Compact(options, *stop);
      return [stats](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("done", stats.done);
        result.Set("bytesBefore", Double(stats.bytesBefore));
        result.Set("bytesAfter", Double(stats.bytesAfter));
        result.Set("movedPages", Double(stats.movedPages));
        result.Set("removedSegments", Double(stats.removedSegments));
        result.Set("oldestEpoch", Double(stats.oldestEpoch));
        return result;
      };
    };
  });
}

// pack({path, epoch?, flatten?, label?, effort?})
Napi::Value ShadowImageObject::Pack(const Napi::CallbackInfo& info) {
  return Run(info.Env(), upkeep_, true, [&] {
    const char* const usage = "pack({path, epoch?, flatten?, label?, effort?})";
    Napi::Object given = Options(info, 0, usage);
    PackOptions options;
    if (!given.Get("path").IsString()) throw MakeTypeError(info.Env(), "ShadowImage", usage);
    options.path = Text(given, "path", usage);
    options.epoch = Whole(given, "epoch", 0, kMaxExact, usage);
    options.flatten = Flag(given, "flatten", true, usage);
    options.label = Text(given, "label", usage);
    options.effort = static_cast<int>(Whole(given, "effort", 9, 19, usage));
    *stop_ = false;
    return [image = image_, options, stop = stop_]() -> Worker::Finish {
      const PackStats stats = image->Pack(options, *stop);
      return [stats](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("pages", Double(stats.pages));
        result.Set("bytes", Double(stats.bytes));
        return result;
      };
    };
  });
}

// verify({dutyPercent?})
Napi::Value ShadowImageObject::Verify(const Napi::CallbackInfo& info) {
  return Run(info.Env(), upkeep_, true, [&] {
    Napi::Object given = Options(info, 0, "verify({dutyPercent?})");
    const int duty = static_cast<int>(Whole(given, "dutyPercent", 100, 100, "verify({dutyPercent?})"));
    *stop_ = false;
    return [image = image_, duty, stop = stop_]() -> Worker::Finish {
      const VerifyStats stats = image->Verify(duty, *stop);
      return [stats](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("pages", Double(stats.pages));
        result.Set("blocks", Double(stats.blocks));
        Napi::Array damaged = Napi::Array::New(env, stats.damagedPages.size());
        for (size_t i = 0; i < stats.damagedPages.size(); i++) damaged.Set(static_cast<uint32_t>(i), stats.damagedPages[i]);
        result.Set("damagedPages", damaged);
        result.Set("deviceStateDamaged", stats.deviceStateDamaged);
        return result;
      };
    };
  });
}

// stop(): whatever upkeep is under way ends early and rejects with ERR_CANCELLED.
void ShadowImageObject::Stop(const Napi::CallbackInfo&) { *stop_ = true; }

// close(): idempotent. ERR_BUSY while an operation is under way: its promise must settle first. The files stay open for
// as long as an epoch source or a pager uses them.
void ShadowImageObject::Close(const Napi::CallbackInfo& info) {
  if ((quick_ && quick_->busy()) || (upkeep_ && upkeep_->busy()))
    throw MakeError(info.Env(), "ERR_BUSY", "shadowImage", "an operation is still under way");
  quick_.reset();
  upkeep_.reset();
  image_.reset();
}

// measureAppend(image, ram, deviceState): commits what differs as the next epoch and returns {changedPages, storedBytes,
// cpuMs, ms}: the cost of storing alone, finding and checksumming the pages apart. Blocks; for the benchmark.
static Napi::Value MeasureAppend(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::shared_ptr<ShadowImage> image = ShadowImageObject::From(info[0]);
  const std::shared_ptr<SharedMemory> ram = GuestRam::From(info[1]);
  if (!info[2].IsBuffer()) throw MakeTypeError(env, "measureAppend", "measureAppend(image, ram, deviceState)");
  const auto device = info[2].As<Napi::Buffer<uint8_t>>();
  if (ram->bytes != image->ramBytes()) throw MakeError(env, "ERR_SIZE", "measureAppend", "image and memory differ");
  std::vector<std::pair<size_t, uint64_t>> changed;
  for (size_t page = 0; page < image->pages(); page++) {
    const uint64_t hash = image->HashOf(ram->base + page * kPageBytes);
    if (hash != image->PageHash(page)) changed.emplace_back(page, hash);
  }
  EpochMeta meta;
  meta.epoch = image->LastEpoch() + 1;
  meta.parent = image->HeadEpoch();
  const clockid_t clocks[2] = {CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC};
  struct timespec from[2], to[2];
  AppendStats stats;
  try {
    for (int i = 0; i < 2; i++) clock_gettime(clocks[i], &from[i]);
    image->Begin();
    for (const auto& [page, hash] : changed) image->Add(page, hash, ram->base + page * kPageBytes);
    stats = image->Commit(meta, device.Data(), device.Length());
    for (int i = 0; i < 2; i++) clock_gettime(clocks[i], &to[i]);
  } catch (const Failure& f) {
    image->Abandon();
    throw MakeError(env, f.code, f.syscall, f.message);
  }
  const auto ms = [&](int i) { return (to[i].tv_sec - from[i].tv_sec) * 1e3 + (to[i].tv_nsec - from[i].tv_nsec) / 1e6; };
  Napi::Object result = Napi::Object::New(env);
  result.Set("changedPages", Double(stats.changedPages));
  result.Set("storedBytes", Double(stats.storedBytes));
  result.Set("cpuMs", ms(0));
  result.Set("ms", ms(1));
  return result;
}

void RegisterImage(Napi::Env env, Napi::Object exports) {
  ShadowImageObject::Register(env, exports);
  exports.Set("measureAppend", Napi::Function::New(env, MeasureAppend));
}
