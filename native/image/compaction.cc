#include "compaction.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "../fault_point.h"
#include "fold_writer.h"
#include "shadow_image.h"

// A segment with less garbage than this is left alone unless the space is needed: moving costs more than it gains.
constexpr double kWorthwhileGarbage = 0.25;
// How many pages are moved in the index under one taking of its lock, about 20 µs.
constexpr size_t kSwapPages = 4096;

static double Garbage(const SegmentUse& use) {
  if (use.storedPages == 0) return use.isTable ? 0 : 1;
  return 1 - static_cast<double>(use.livePages) / static_cast<double>(use.storedPages);
}
static uint64_t LiveBytes(const SegmentUse& use) {
  return static_cast<uint64_t>(static_cast<double>(use.bytes) * (1 - Garbage(use)));
}

VictimChoice ChooseVictims(std::vector<SegmentUse> uses, uint64_t tableBytes, uint64_t maxBytes, bool force) {
  VictimChoice choice;
  uint64_t total = 0;
  for (const SegmentUse& use : uses) total += use.bytes;
  choice.bytesAfter = total;
  uses.erase(std::remove_if(uses.begin(), uses.end(), [](const SegmentUse& use) { return !use.closed; }), uses.end());
  std::sort(uses.begin(), uses.end(), [](const SegmentUse& a, const SegmentUse& b) { return Garbage(a) > Garbage(b); });
  uint64_t gained = 0;
  for (const SegmentUse& use : uses) {
    const bool pressed = maxBytes > 0 && total - gained + tableBytes > maxBytes && Garbage(use) > 0;
    if (!force && !pressed && Garbage(use) < kWorthwhileGarbage) break;
    choice.slots.push_back(use.slot);
    gained += use.bytes - LiveBytes(use);
  }
  const bool pressed = maxBytes > 0 && total > maxBytes;
  if (choice.slots.empty() || (!force && (pressed ? gained <= tableBytes : gained < 2 * tableBytes))) {
    choice.slots.clear();
    return choice;
  }
  choice.bytesAfter = total - gained + tableBytes;
  return choice;
}

namespace {

class Compaction {
 public:
  Compaction(ImageState& image, const CompactOptions& options, const std::atomic<bool>& stop)
      : image_(image), options_(options), pace_(options.dutyPercent, stop) {}
  // False when there was nothing worth doing.
  bool FoldAt(uint64_t epoch, CompactStats* stats);

 private:
  void Publish(const EpochRecord& fold, uint64_t epoch, CompactStats* stats);

  ImageState& image_;
  const CompactOptions& options_;
  Pace pace_;
  std::vector<bool> victim_;  // by slot
  std::unique_ptr<PageTable> table_;
};

bool Compaction::FoldAt(uint64_t epoch, CompactStats* stats) {
  std::vector<EpochRecord> records;
  SegmentSet segments;  // as of now; those that come later are none of the fold's
  uint64_t reachableFrom;
  std::vector<SegmentUse> uses;
  table_ = std::make_unique<PageTable>(image_.identity.pages());
  {
    std::lock_guard<std::mutex> moving(image_.tableMutex);  // a Rewind comes before this or sees its effect
    records = image_.ChainTo(epoch);
    image_.Load(records, table_.get());
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    if (image_.active && !image_.recordOpen) image_.active->sealed = true;
    segments = image_.segments;
    reachableFrom = image_.reachableFrom;
    image_.reachableFrom = epoch;
    uses.resize(segments.size());
    for (size_t slot = 0; slot < uses.size(); slot++) {
      const std::shared_ptr<Segment>& segment = segments.At(slot);
      uses[slot].slot = slot;
      if (!segment || !segment->file) continue;
      uses[slot].bytes = segment->bytes;
      uses[slot].storedPages = segment->storedPages;
      uses[slot].isTable = records.size() == 1 && segment == records[0].segment && segment->kind == SegmentKind::kFold;
      uses[slot].closed = segment->lastSequence <= records.back().sequence && (segment != image_.active || segment->sealed);
    }
  }
  try {
    uint64_t storedPages = 0;
    for (size_t page = 0; page < table_->pages(); page++)
      if (table_->At(page).stored()) {
        uses[table_->At(page).segment()].livePages++;
        storedPages++;
      }
    // 12 bytes for each page, and a group for each block.
    const uint64_t tableBytes = storedPages * 14 + sizeof(CommitHeader);
    const VictimChoice choice = ChooseVictims(uses, tableBytes, options_.maxBytes, options_.force);
    if (choice.slots.empty()) {
      std::unique_lock<std::shared_mutex> lock(image_.mutex);
      image_.reachableFrom = reachableFrom;
      return false;
    }
    victim_.assign(kThisFold + 1, false);
    for (const size_t slot : choice.slots) victim_[slot] = true;
    FaultPoint("compact", 1);
    // Nothing that a durable fold says may rest on records that are not.
    image_.Flush();
    uint32_t number;
    {
      std::unique_lock<std::shared_mutex> lock(image_.mutex);
      number = image_.nextNumber++;
    }
    const std::string path = image_.PathOf(SegmentKind::kFold, number);
    FoldWriter writer(image_.identity, path, number, kAppendLevel);
    writer.Move(segments, StoredPages(segments, *table_, victim_), true, table_.get(), pace_);
    FaultPoint("compact", 2);
    const EpochRecord& at = records.back();
    CommitHeader header = {};
    header.sequence = at.sequence;
    header.epoch = at.info.meta.epoch;
    header.parent = at.info.meta.parent;
    {
      std::shared_lock<std::shared_mutex> lock(image_.mutex);
      header.lastEpoch = image_.lastEpoch;
    }
    header.generation = at.info.meta.generation;
    header.cutAtWallMs = at.info.meta.cutAtWallMs;
    header.cutAtMonotonicNs = at.info.meta.cutAtMonotonicNs;
    header.changedPages = at.info.changedPages;
    header.epochBytes = at.info.storedBytes;
    EpochRecord fold = at;
    fold.commitOffset = writer.Finish(header, ReadDeviceState(*at.segment->file, at.commitOffset, image_.key()), segments,
                                      table_.get());
    fold.end = writer.bytes();
    FaultPoint("compact", 3);
    writer.Name(true);
    fold.segment = std::make_shared<Segment>(std::make_unique<File>(path, O_RDWR), SegmentKind::kFold, number);
    fold.segment->bytes = fold.end;
    fold.segment->storedPages = writer.movedPages();
    fold.segment->lastSequence = at.sequence;
    image_.folder->Sync();
    stats->movedPages += writer.movedPages();
    FaultPoint("compact", 4);
    Publish(fold, epoch, stats);
  } catch (...) {
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    image_.reachableFrom = reachableFrom;
    throw;
  }
  return true;
}

// Moves the index over to the fold and drops the victims. Only the head's pages that lie in victims move: whatever else
// it has was written after the fold's epoch, or stays where it is.
void Compaction::Publish(const EpochRecord& fold, uint64_t epoch, CompactStats* stats) {
  std::lock_guard<std::mutex> moving(image_.tableMutex);
  size_t foldSlot;
  {
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    foldSlot = image_.segments.Add(fold.segment);
  }
  for (size_t from = 0; from < table_->pages(); from += kSwapPages) {
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    for (size_t page = from; page < std::min(from + kSwapPages, table_->pages()); page++) {
      const Location now = image_.table.At(page);
      if (!now.stored() || !victim_[now.segment()]) continue;
      const Location to = table_->At(page);
      image_.table.Set(page, Location::In(to.kind(), foldSlot, to.offset(), to.slot()), image_.table.Hash(page));
    }
  }
  std::vector<std::shared_ptr<Segment>> removed;
  {
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    const auto first = std::find_if(image_.chain.begin(), image_.chain.end(),
                                    [&](const EpochRecord& record) { return record.info.meta.epoch == epoch; });
    *first = fold;
    image_.undo.epoch = 0;  // it may lead into victims, also when it came during the loop above
    image_.chain.erase(image_.chain.begin(), first);
    for (size_t slot = 0; slot < image_.segments.size(); slot++) {
      if (!victim_[slot] || slot == foldSlot) continue;
      removed.push_back(image_.segments.At(slot));
      image_.segments.Remove(slot);
      image_.unsynced.erase(std::remove(image_.unsynced.begin(), image_.unsynced.end(), removed.back()),
                            image_.unsynced.end());
    }
  }
  FaultPoint("compact", 5);
  // Readers in the middle of one keep its file; a name that does not go now goes when the image is opened again.
  for (const auto& segment : removed) unlink(segment->file->path.c_str());
  stats->removedSegments += removed.size();
}

}  // namespace

CompactStats ShadowImage::Compact(const CompactOptions& options, const std::atomic<bool>& stop) {
  ImageState& s = *state_;
  if (!s.folder) throw Failure{"ERR_READ_ONLY", "compact", "a packed image is for reading only"};
  std::unique_lock<std::mutex> turn(s.upkeepMutex, std::try_to_lock);
  if (!turn) throw Failure{"ERR_BUSY", "compact", "other upkeep of this image is under way"};
  const auto bytesOnDisk = [&] {
    std::shared_lock<std::shared_mutex> lock(s.mutex);
    uint64_t bytes = 0;
    for (size_t slot = 0; slot < s.segments.size(); slot++)
      if (s.segments.At(slot)) bytes += s.segments.At(slot)->bytes;
    return bytes;
  };
  CompactStats stats;
  stats.bytesBefore = bytesOnDisk();
  size_t keepFrom = 0;  // index in the list of epochs
  for (;;) {
    const std::vector<EpochInfo> epochs = Epochs();
    if (epochs.empty()) break;
    for (size_t i = 0; i < epochs.size(); i++)
      if (epochs[i].meta.cutAtWallMs <= options.keepFromWallMs) keepFrom = std::max(keepFrom, i);
    keepFrom = std::min(keepFrom, epochs.size() - 1);
    if (Compaction(s, options, stop).FoldAt(epochs[keepFrom].meta.epoch, &stats)) stats.done = true;
    // Too big still: give up half of the window, and so on, down to the head.
    if (options.maxBytes == 0 || bytesOnDisk() <= options.maxBytes || keepFrom + 1 >= epochs.size()) break;
    keepFrom = stats.done ? (epochs.size() - keepFrom) / 2 : keepFrom + (epochs.size() - keepFrom) / 2;
    keepFrom = std::max<size_t>(keepFrom, 1);
  }
  stats.bytesAfter = bytesOnDisk();
  std::unique_lock<std::shared_mutex> lock(s.mutex);
  s.full = options.maxBytes > 0 && stats.bytesAfter > options.maxBytes;
  stats.oldestEpoch = s.chain.empty() ? 0 : s.chain.front().info.meta.epoch;
  return stats;
}
