#include "record_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <system_error>

#include "../fault_point.h"

// Of a record that hurries: enough to be worth waking a thread for, and not too much memory of a shadow.
constexpr size_t kHurriedBlocks = 8;
// Room for pending pages that is kept between records; the rest goes back to the host.
constexpr size_t kWarmPendingPages = 8192;

RecordWriter::RecordWriter(ImageState& image)
    : image_(image), compressor_(kAppendLevel), isPending_(image.identity.pages()) {
  builders_.push_back(std::make_unique<BlockBuilder>());
}

void RecordWriter::Roll() {
  uint32_t number;
  {
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    number = image_.nextNumber++;
  }
  const std::string path = image_.PathOf(SegmentKind::kLog, number);
  auto segment = std::make_shared<Segment>(std::make_unique<File>(path, O_RDWR | O_CREAT | O_EXCL), SegmentKind::kLog, number);
  try {
    const std::vector<uint8_t> header = EncodeSegmentHeader(image_.identity, SegmentKind::kLog, number);
    segment->file->Write(0, header.data(), header.size());
    segment->headerBytes = header.size();
    segment->bytes = header.size();
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    segmentSlot_ = image_.segments.Add(segment);
    image_.active = segment;
    image_.folderUnsynced = true;
  } catch (...) {
    unlink(path.c_str());  // as if it had not been begun
    throw;
  }
  segment_ = std::move(segment);
}

void RecordWriter::Begin(RecordKind kind) {
  {
    std::unique_lock<std::shared_mutex> lock(image_.mutex);
    if (image_.recordOpen) throw Failure{"ERR_BUSY", "begin", "a record is open already"};
    // Room for what Publish adds.
    if (image_.chain.size() == image_.chain.capacity()) image_.chain.reserve(2 * image_.chain.size() + 16);
    image_.unsynced.reserve(image_.unsynced.size() + 1);
    image_.undo.entries.reserve(kUndoPagesMax);
    image_.recordOpen = true;
    sequence_ = image_.lastSequence + 1;
    if (segment_ && segment_->sealed) segment_ = nullptr;
    if (!segment_ && image_.active && !image_.active->sealed && image_.lastSequence == 0) {
      segment_ = image_.active;  // a new image's only file
      segmentSlot_ = image_.segments.Find(segment_->number);
    }
  }
  open_ = kind;
  try {
    if (!segment_ || segment_->bytes >= image_.segmentBytes) Roll();
    recordOffset_ = segment_->bytes;
    writer_.Start(segment_->file.get(), recordOffset_);
    RecordHeader header = {};
    header.magic = kRecordMagic;
    header.kind = kind;
    header.sequence = sequence_;
    header.offset = recordOffset_;
    header.segment = segment_->number;
    header.checksum = Checksum(image_.key(), &header, offsetof(RecordHeader, checksum));
    writer_.Append(&header, sizeof header);
    if (kind == RecordKind::kEpoch) FaultPoint("append", 1);
  } catch (...) {
    Abandon();
    throw;
  }
}

void RecordWriter::Hurry() {
  if (std::thread::hardware_concurrency() < 2) return;
  try {
    if (!helper_) {
      helperCompressor_ = std::make_unique<Compressor>(kAppendLevel);
      helper_ = std::make_unique<HelperThread>("shadowvm-pack");
    }
  } catch (const std::system_error&) {
    return;  // no more threads here: it takes a little longer
  }
  while (builders_.size() < kHurriedBlocks) builders_.push_back(std::make_unique<BlockBuilder>());
  batchBlocks_ = kHurriedBlocks;
}

void RecordWriter::Add(size_t page, uint64_t hash, const uint8_t* content) {
  if (open_ != RecordKind::kEpoch) throw Failure{"ERR_NO_RECORD", "add", "no record is open"};
  if (page >= image_.identity.pages()) throw Failure{"ERR_SIZE", "add", "the VM has no such page"};
  const uint32_t number = static_cast<uint32_t>(page);
  const bool unchanged = hash == image_.PageHash(page) && !image_.IsDamaged(number);
  if (unchanged && !isPending_[page]) {
    droppedPages_++;
    return;
  }
  isPending_[page] = true;
  Pending pending = {number, Pending::kStored, 0, 0, hash};
  if (unchanged)
    pending.kind = Pending::kUnchanged;
  else if (image_.base && image_.base->PageHash(page) == hash)
    pending.kind = Pending::kBase;
  else if (hash == image_.zeroHash)
    pending.kind = Pending::kZero;
  else
    pending.slot = static_cast<uint8_t>(builders_[filling_]->Add(number, content));
  pending_.push_back(pending);
  if (!builders_[filling_]->full()) return;
  if (filling_ + 1 < batchBlocks_)
    filling_++;
  else
    WriteBlocks();
}

void RecordWriter::Compress(size_t blocks) {
  const uint8_t* const key = image_.key();
  std::atomic<size_t> next{0};
  const auto work = [&](Compressor& compressor) {
    for (size_t i = next++; i < blocks; i = next++) builders_[i]->Compress(compressor, key);
  };
  const bool helped = blocks > 1 && helper_;
  if (helped) helper_->Start([&] { work(*helperCompressor_); });
  work(compressor_);
  if (helped) helperCpuNs_ += helper_->Finish();
}

// The blocks' places are known only when they are written: fills them in for the pages since the last ones.
void RecordWriter::WriteBlocks() {
  const size_t blocks = filling_ + (builders_[filling_]->empty() ? 0 : 1);
  Compress(blocks);
  size_t at = firstUnplaced_;
  for (size_t i = 0; i < blocks; i++) {
    size_t left = builders_[i]->slots();
    const uint64_t offset = builders_[i]->Write(writer_);
    FaultPoint("append", 2);
    for (; left > 0; at++) {
      if (pending_[at].kind != Pending::kStored) continue;
      pending_[at].block = offset;
      left--;
    }
  }
  firstUnplaced_ = pending_.size();
  filling_ = 0;
}

// The later Add of a page wins; what an earlier one stored stays in its block, unused.
void RecordWriter::DropSuperseded() {
  size_t to = pending_.size();
  for (size_t from = pending_.size(); from-- > 0;) {
    const Pending pending = pending_[from];
    if (!isPending_[pending.page]) continue;
    isPending_[pending.page] = false;
    if (pending.kind == Pending::kUnchanged)
      droppedPages_++;
    else
      pending_[--to] = pending;
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(to));
}

void RecordWriter::WriteCommit(CommitHeader header, const uint8_t* device, size_t deviceBytes,
                               const std::function<void()>& beforeItCounts) {
  header.sequence = sequence_;
  CommitWriter commit(writer_, image_.key());
  commit.Header(header, device, deviceBytes, {}, compressor_);
  for (const Pending& p : pending_)
    if (p.kind == Pending::kStored) commit.Entry(p.page, EntryKind::kBlock, 0, p.block, p.slot, p.hash);
  for (const Pending& p : pending_)
    if (p.kind == Pending::kZero) commit.Entry(p.page, EntryKind::kZero, 0, 0, 0, 0);
  for (const Pending& p : pending_)
    if (p.kind == Pending::kBase) commit.Entry(p.page, EntryKind::kBase, 0, 0, 0, 0);
  beforeItCounts();
  commit.Finish(recordOffset_);
  writer_.Flush();
}

AppendStats RecordWriter::Commit(const EpochMeta& meta, const uint8_t* device, size_t deviceBytes,
                                 const std::function<void()>& beforeItCounts) {
  if (open_ != RecordKind::kEpoch) throw Failure{"ERR_NO_RECORD", "commit", "no record is open"};
  try {
    CommitHeader header = {};
    {
      std::shared_lock<std::shared_mutex> lock(image_.mutex);
      const uint64_t head = image_.chain.empty() ? 0 : image_.chain.back().info.meta.epoch;
      if (meta.parent != head || meta.epoch <= image_.lastEpoch)
        throw Failure{"ERR_EPOCH_ORDER", "commit",
                      "epoch " + std::to_string(meta.epoch) + " over " + std::to_string(meta.parent) + ": the head is " +
                          std::to_string(head) + ", the highest number so far " + std::to_string(image_.lastEpoch)};
      if (image_.full) throw Failure{"ERR_IMAGE_FULL", "commit", "the image takes as much disk as it may"};
      header.durableSequence = image_.durableSequence;
    }
    if (deviceBytes > kMaxDeviceBytes) throw Failure{"ERR_SIZE", "commit", "the device state is too big"};
    WriteBlocks();
    DropSuperseded();
    AppendStats stats;
    for (const Pending& p : pending_) {
      stats.zeroPages += p.kind == Pending::kZero;
      stats.basePages += p.kind == Pending::kBase;
    }
    stats.changedPages = pending_.size();
    stats.droppedPages = droppedPages_;
    stats.helperCpuNs = helperCpuNs_;
    header.kind = RecordKind::kEpoch;
    header.epoch = header.lastEpoch = meta.epoch;
    header.parent = meta.parent;
    header.generation = meta.generation;
    header.cutAtWallMs = meta.cutAtWallMs;
    header.cutAtMonotonicNs = meta.cutAtMonotonicNs;
    header.changedPages = stats.changedPages;
    const uint64_t commitOffset = writer_.position();
    FaultPoint("append", 3);
    WriteCommit(header, device, deviceBytes, beforeItCounts);
    stats.storedBytes = writer_.position() - recordOffset_;
    EpochRecord record;
    record.info = {meta, stats.changedPages, stats.storedBytes, false};
    record.sequence = sequence_;
    record.segment = segment_;
    record.commitOffset = commitOffset;
    record.end = writer_.position();
    FaultPoint("append", 4);
    Publish(record);
    FaultPoint("append", 5);
    return stats;
  } catch (...) {
    Abandon();
    throw;
  }
}

void RecordWriter::WriteRewind(uint64_t epoch) {
  try {
    CommitHeader header = {};
    header.kind = RecordKind::kRewind;
    header.epoch = epoch;
    {
      std::shared_lock<std::shared_mutex> lock(image_.mutex);
      header.lastEpoch = image_.lastEpoch;
      header.durableSequence = image_.durableSequence;
    }
    WriteCommit(header, nullptr, 0, [] {});
  } catch (...) {
    Abandon();
    throw;
  }
}

// Nothing here fails (Begin made room): readers see the whole epoch or nothing of it.
void RecordWriter::Publish(const EpochRecord& record) {
  uint64_t stored = 0;
  std::unique_lock<std::shared_mutex> lock(image_.mutex);
  UndoTable& undo = image_.undo;
  undo.epoch = pending_.size() <= kUndoPagesMax ? record.info.meta.epoch : 0;
  undo.entries.clear();
  for (const Pending& p : pending_) {
    if (undo.epoch != 0) undo.entries.push_back({p.page, image_.table.At(p.page), image_.table.Hash(p.page)});
    if (p.kind == Pending::kStored) {
      image_.table.Set(p.page, Location::In(EntryKind::kBlock, segmentSlot_, p.block, p.slot), p.hash);
      stored++;
    } else {
      image_.table.Set(p.page, Location::Of(p.kind == Pending::kZero ? EntryKind::kZero : EntryKind::kBase), 0);
    }
    if (!image_.damaged.empty()) image_.damaged.erase(p.page);
  }
  image_.damagedCount = image_.damaged.size();
  image_.lastEpoch = record.info.meta.epoch;
  image_.chain.push_back(record);
  segment_->storedPages += stored;
  Settle();
}

void RecordWriter::Settle() {
  segment_->bytes = writer_.position();
  segment_->lastSequence = sequence_;
  image_.lastSequence = sequence_;
  if (std::find(image_.unsynced.begin(), image_.unsynced.end(), segment_) == image_.unsynced.end())
    image_.unsynced.push_back(segment_);
  image_.recordOpen = false;
  Forget();
}

void RecordWriter::Abandon() {
  if (open_ == kNone) return;
  try {
    if (segment_) {
      writer_.Start(segment_->file.get(), 0);  // forgets what was not written
      segment_->file->Truncate(recordOffset_);
    }
  } catch (const Failure&) {
    segment_ = nullptr;  // what is left behind its last record is a torn tail, which a reader knows to leave alone
  }
  Forget();
  std::unique_lock<std::shared_mutex> lock(image_.mutex);
  image_.recordOpen = false;
}

void RecordWriter::Forget() {
  for (const Pending& p : pending_) isPending_[p.page] = false;
  pending_.clear();
  if (pending_.capacity() > kWarmPendingPages) pending_.shrink_to_fit();
  for (const auto& builder : builders_) builder->Discard();
  if (batchBlocks_ == 1) builders_.resize(1);
  batchBlocks_ = 1;
  filling_ = firstUnplaced_ = 0;
  droppedPages_ = 0;
  helperCpuNs_ = 0;
  open_ = kNone;
}
