// A memory as the source of another one's pages.
#pragma once
#include <memory>
#include <vector>

#include "memory.h"
#include "page_source.h"

// The memory must not change from here on: what is a hole in it is looked up once. (Reading one through the mapping would
// make the kernel allocate it.) Pages are read in place, without a copy or a checksum.
class RamSource : public PageSource {
 public:
  explicit RamSource(std::shared_ptr<SharedMemory> memory);
  size_t pages() const override { return hasData_.size(); }
  void ReadAround(size_t page, PageScratch& scratch, const Visit& visit) const override;
  bool Holds(size_t page, const uint8_t* content) const override;
  std::vector<uint32_t> FillOrder() const override;

 private:
  const std::shared_ptr<SharedMemory> memory_;
  std::vector<bool> hasData_;
};

// The JavaScript object RamPageSource(ram).
class RamPageSource : public Napi::ObjectWrap<RamPageSource> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit RamPageSource(const Napi::CallbackInfo& info);
  // nullptr when the value is no RamPageSource.
  static std::shared_ptr<const PageSource> From(Napi::Value value);

 private:
  Napi::Value Pages(const Napi::CallbackInfo& info);
  static Napi::FunctionReference constructor_;
  std::shared_ptr<const PageSource> source_;
};
