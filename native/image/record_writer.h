// Appends records to the log: the state of the one that is open.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "../helper_thread.h"
#include "state.h"

class RecordWriter {
 public:
  explicit RecordWriter(ImageState& image);
  void Begin(RecordKind kind);
  // Somebody waits for this record, the open one or the next: from here on two threads compress it.
  void Hurry();
  void Add(size_t page, uint64_t hash, const uint8_t* content);
  AppendStats Commit(const EpochMeta& meta, const uint8_t* device, size_t deviceBytes,
                     const std::function<void()>& beforeItCounts);
  // Writes a record without pages that makes an older epoch the head again. Settle makes it count.
  void WriteRewind(uint64_t epoch);
  // The caller holds the image's lock.
  void Settle();
  void Abandon();
  bool epochOpen() const { return open_ == RecordKind::kEpoch; }

 private:
  // One Add, in the order of the blocks. kUnchanged: the head has the same after all.
  struct Pending {
    uint32_t page;
    enum Kind : uint8_t { kStored, kZero, kBase, kUnchanged } kind;
    uint8_t slot;
    uint64_t block;  // offset
    uint64_t hash;
  };
  void Roll();
  void WriteBlocks();
  void Compress(size_t blocks);
  void DropSuperseded();
  void WriteCommit(CommitHeader header, const uint8_t* device, size_t deviceBytes,
                   const std::function<void()>& beforeItCounts);
  void Publish(const EpochRecord& record);
  void Forget();

  ImageState& image_;
  SegmentWriter writer_;
  Compressor compressor_;
  // Blocks are compressed and written when so many are full: 1 but for records that hurry.
  size_t batchBlocks_ = 1;
  std::vector<std::unique_ptr<BlockBuilder>> builders_;  // as many as were needed at once
  size_t filling_ = 0;                                   // those before this one are full
  size_t firstUnplaced_ = 0;                             // in pending_: from here on the blocks are not written yet
  // The second thread, once a record was in a hurry.
  std::unique_ptr<HelperThread> helper_;
  std::unique_ptr<Compressor> helperCompressor_;
  int64_t helperCpuNs_ = 0;
  std::shared_ptr<Segment> segment_;  // the newest log segment; null until something is appended
  size_t segmentSlot_ = 0;
  uint64_t recordOffset_ = 0;
  uint64_t sequence_ = 0;
  static constexpr RecordKind kNone = RecordKind{0};
  std::atomic<RecordKind> open_{kNone};  // another thread's Rewind may have one open
  uint64_t droppedPages_ = 0;
  std::vector<Pending> pending_;
  std::vector<bool> isPending_;  // page → it was added to this record
};
