// Reading pages of the head.
#include <algorithm>
#include <cstring>

#include "shadow_image.h"
#include "state.h"

void ShadowImage::ReadAround(size_t page, PageScratch& scratch, const Visit& visit) const {
  ImageState& s = *state_;
  if (page >= s.identity.pages()) throw Failure{"ERR_SIZE", "read", "the VM has no such page"};
  const auto isOfRam = [&](size_t each) { return each < s.identity.ramPages(); };
  Location at;
  uint64_t hash;
  std::shared_ptr<Segment> segment;  // keeps the file open when the segment is dropped meanwhile
  {
    std::shared_lock<std::shared_mutex> lock(s.mutex);
    at = s.table.At(page);
    hash = s.table.Hash(page);
    if (at.stored()) segment = s.segments.At(at.segment());
  }
  if (!at.stored()) {
    if (at.kind() == EntryKind::kZero || !s.base) return visit(page, nullptr);
    return s.base->ReadAround(page, scratch, [&](size_t each, const uint8_t* content) {
      if (each == page || s.table.At(each).kind() == EntryKind::kBase) visit(each, content);
    });
  }
  const auto damaged = [&](const std::string& why) {
    s.MarkDamaged(static_cast<uint32_t>(page));
    return Failure{"ERR_IMAGE_CORRUPT", "read", "page " + std::to_string(page) + ": " + why};
  };
  BlockView block;
  try {
    block = ReadBlock(*segment, at.offset(), s.key(), scratch);
  } catch (const Failure& failure) {
    if (failure.code != "ERR_IMAGE_CORRUPT") throw;
    throw damaged(failure.message);
  }
  // Every slot below `slots` has kPageBytes in `raw`: ReadBlock saw to it.
  const auto content = [&](size_t slot) { return block.raw + slot * kPageBytes; };
  if (at.slot() >= block.header.slots || block.pages[at.slot()] != page || s.HashOf(content(at.slot())) != hash)
    throw damaged("its checksum does not match");
  visit(page, content(at.slot()));
  for (size_t slot = 0; slot < block.header.slots; slot++) {
    const size_t other = block.pages[slot];
    if (slot == at.slot() || other >= s.identity.pages() || isOfRam(other) != isOfRam(page)) continue;
    {
      std::shared_lock<std::shared_mutex> lock(s.mutex);
      if (!(s.table.At(other) == Location::In(EntryKind::kBlock, at.segment(), at.offset(), slot))) continue;
      hash = s.table.Hash(other);
    }
    if (s.HashOf(content(slot)) == hash) visit(other, content(slot));
  }
}

void ShadowImage::VisitBlocks(const std::vector<uint32_t>& pages,
                              const std::function<void(const File&, uint64_t)>& visit) const {
  const ImageState& s = *state_;
  std::vector<uint32_t> ofBase;
  std::vector<std::pair<std::shared_ptr<Segment>, uint64_t>> blocks;
  {
    std::shared_lock<std::shared_mutex> lock(s.mutex);
    for (const uint32_t page : pages) {
      if (page >= s.identity.pages()) continue;
      const Location at = s.table.At(page);
      if (at.stored() && s.segments.At(at.segment()))
        blocks.emplace_back(s.segments.At(at.segment()), at.offset());
      else if (at.kind() == EntryKind::kBase)
        ofBase.push_back(page);
    }
  }
  for (const auto& [segment, offset] : blocks)
    if (segment->file) visit(*segment->file, offset);
  if (s.base && !ofBase.empty()) s.base->VisitBlocks(ofBase, visit);
}

void ShadowImage::Expect(const std::vector<uint32_t>& pages) const {
  VisitBlocks(pages, [](const File& file, uint64_t offset) { file.Expect(offset, kMostBlocksBytes); });
}

void ShadowImage::Forget(const std::vector<uint32_t>& pages) const {
  VisitBlocks(pages, [](const File& file, uint64_t offset) { file.DropCache(offset, kMostBlocksBytes); });
}

bool ShadowImage::Holds(size_t page, const uint8_t* content) const {
  std::shared_lock<std::shared_mutex> lock(state_->mutex);
  return state_->PageHash(page) == state_->HashOf(content);
}

void ShadowImage::ReadPage(size_t page, uint8_t* out) const {
  PageScratch scratch;
  ReadAround(page, scratch, [&](size_t each, const uint8_t* content) {
    if (each != page) return;
    if (content == nullptr)
      memset(out, 0, kPageBytes);
    else
      memcpy(out, content, kPageBytes);
  });
}

std::vector<uint32_t> ShadowImage::FillOrder() const { return StoredOrder(0, pages()); }

std::vector<uint32_t> ShadowImage::StoredOrder(size_t first, size_t end) const {
  const ImageState& s = *state_;
  struct Place {
    uint64_t recency;
    uint64_t at;  // offset and slot
    uint32_t page;
  };
  std::vector<Place> places;
  std::vector<bool> ofBase;
  if (s.base) ofBase.resize(s.identity.pages());
  {
    std::shared_lock<std::shared_mutex> lock(s.mutex);
    std::vector<uint64_t> recency(s.segments.size());
    for (size_t slot = 0; slot < recency.size(); slot++)
      if (s.segments.At(slot)) recency[slot] = s.segments.At(slot)->recency();
    for (size_t page = first; page < end; page++) {
      const Location at = s.table.At(page);
      if (at.stored())
        places.push_back({recency[at.segment()], at.offset() << 4 | at.slot(), static_cast<uint32_t>(page)});
      else if (s.base)
        ofBase[page] = at.kind() == EntryKind::kBase;
    }
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return a.recency != b.recency ? a.recency > b.recency : a.at > b.at;
  });
  std::vector<uint32_t> order;
  order.reserve(places.size());
  for (const Place& place : places) order.push_back(place.page);
  if (s.base)
    for (const uint32_t page : s.base->StoredOrder(first, end))
      if (ofBase[page]) order.push_back(page);
  return order;
}

std::vector<EpochInfo> ShadowImage::Epochs() const {
  std::shared_lock<std::shared_mutex> lock(state_->mutex);
  std::vector<EpochInfo> epochs;
  for (const EpochRecord& record : state_->chain) {
    if (record.info.meta.epoch < state_->reachableFrom) continue;
    epochs.push_back(record.info);
    epochs.back().durable = record.sequence <= state_->durableSequence;
  }
  return epochs;
}

std::vector<uint8_t> ShadowImage::DeviceState(uint64_t epoch) const {
  const EpochRecord record = state_->ChainTo(epoch).back();
  return ReadDeviceState(*record.segment->file, record.commitOffset, state_->key());
}
