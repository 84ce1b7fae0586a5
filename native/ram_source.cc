#include "ram_source.h"

#include <cstring>

#include "addon.h"

static bool IsZero(const uint8_t* page) { return page[0] == 0 && memcmp(page, page + 1, kPageBytes - 1) == 0; }

RamSource::RamSource(std::shared_ptr<SharedMemory> memory)
    : memory_(std::move(memory)), hasData_(memory_->bytes / kPageBytes) {
  VisitExtents(*memory_, [&](size_t from, size_t to, bool hasData) {
    for (size_t page = from / kPageBytes; hasData && page < to / kPageBytes; page++) hasData_[page] = true;
  });
}

void RamSource::ReadAround(size_t page, PageScratch&, const Visit& visit) const {
  const uint8_t* content = hasData_[page] ? memory_->base + page * kPageBytes : nullptr;
  visit(page, content != nullptr && IsZero(content) ? nullptr : content);
}

bool RamSource::Holds(size_t page, const uint8_t* content) const {
  return hasData_[page] ? memcmp(memory_->base + page * kPageBytes, content, kPageBytes) == 0 : IsZero(content);
}

std::vector<uint32_t> RamSource::FillOrder() const {
  std::vector<uint32_t> order;
  for (size_t page = 0; page < hasData_.size(); page++)
    if (hasData_[page] && !IsZero(memory_->base + page * kPageBytes)) order.push_back(static_cast<uint32_t>(page));
  return order;
}

Napi::FunctionReference RamPageSource::constructor_;

void RamPageSource::Register(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(env, "RamPageSource", {InstanceAccessor<&RamPageSource::Pages>("pages")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("RamPageSource", constructor);
}

RamPageSource::RamPageSource(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RamPageSource>(info) {
  try {
    source_ = std::make_shared<RamSource>(GuestRam::From(info[0]));
  } catch (const Failure& f) {
    throw MakeError(info.Env(), f.code, f.syscall, f.message);
  }
}

Napi::Value RamPageSource::Pages(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(source_->pages()));
}

std::shared_ptr<const PageSource> RamPageSource::From(Napi::Value value) {
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor_.Value())) return nullptr;
  return Unwrap(value.As<Napi::Object>())->source_;
}
