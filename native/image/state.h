// What is inside a ShadowImage, shared by the files that implement it.
#pragma once
#include <mutex>
#include <set>
#include <shared_mutex>

#include "block.h"
#include "page_table.h"
#include "scan.h"
#include "segment.h"
#include "shadow_image.h"

class RecordWriter;

// An epoch of the current chain.
struct EpochRecord {
  EpochInfo info;
  uint64_t sequence = 0;
  std::shared_ptr<Segment> segment;
  uint64_t commitOffset = 0;
  uint64_t end = 0;
};

// What the head's own epoch changed in the index, so that to take it back is no matter of reading the log.
struct UndoTable {
  struct Entry {
    uint32_t page;
    Location location;
    uint64_t hash;
  };
  uint64_t epoch = 0;  // 0: nothing is known
  std::vector<Entry> entries;
};
// An epoch with more pages is taken back by the log.
constexpr size_t kUndoPagesMax = 2048;

// A folder's descriptor with an advisory lock, which the kernel drops with the process.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);  // ERR_IMAGE_IN_USE
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  void Sync() const;
  const std::string folder;
  const int fd;
};

struct ImageState {
  ImageState(ImageIdentity identity, std::shared_ptr<ShadowImage> base);
  ~ImageState();

  const ImageIdentity identity;
  const std::shared_ptr<ShadowImage> base;
  const HashPage hash;
  const uint64_t zeroHash;
  std::unique_ptr<FolderLock> folder;  // null: a packed file, for reading only
  uint64_t segmentBytes = 64u << 20;

  // ---- guarded by `mutex`, which is never held across a system call ----
  mutable std::shared_mutex mutex;
  PageTable table;  // of the head
  SegmentSet segments;
  std::vector<EpochRecord> chain;  // oldest first, the head last
  UndoTable undo;                  // of the head
  uint64_t lastEpoch = 0;
  uint64_t lastSequence = 0;
  uint64_t durableSequence = 0;
  uint64_t reachableFrom = 0;  // epochs before it are being folded away
  uint32_t nextNumber = 1;
  std::vector<std::shared_ptr<Segment>> unsynced;
  std::shared_ptr<Segment> active;  // that records are appended to
  bool folderUnsynced = false;
  bool recordOpen = false;
  bool full = false;
  std::set<uint32_t> damaged;  // pages that failed their checksum
  std::atomic<size_t> damagedCount{0};

  // Held in this order: upkeep before flush before table before `mutex`.
  std::mutex upkeepMutex;  // Compact, Pack, Verify: tried, never waited for
  std::mutex flushMutex;   // one fdatasync at a time; Rewind
  std::mutex tableMutex;   // while locations move: Rewind against the last part of Compact
  bool flushFailed = false;  // guarded by flushMutex

  std::unique_ptr<RecordWriter> writer;  // the appending thread's own, and Rewind's while no record is open

  const uint8_t* key() const { return identity.key; }
  uint64_t HashOf(const uint8_t* content) const { return hash(content, identity.key); }
  uint64_t PageHash(size_t page) const;
  void MarkDamaged(uint32_t page);
  bool IsDamaged(uint32_t page);
  std::string PathOf(SegmentKind kind, uint32_t number) const;
  // Copies of the chain up to `epoch`; throws ERR_NO_EPOCH when it can not be reached (any more).
  std::vector<EpochRecord> ChainTo(uint64_t epoch) const;
  // The epoch is the one before the head, and `undo` tells what the head changed.
  bool UndoLeadsTo(uint64_t epoch) const;
  // Puts back what the head changed in the table. The caller holds the lock.
  void Undo();
  // Applies the tables of these records, in order. Segments that they name and that are not there become lost ones.
  void Load(const std::vector<EpochRecord>& records, PageTable* into);
  void Flush();
};
