#include "epoch.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

#include "addon.h"

// Staging memory kept between epochs, so that a pause does not pay for page faults; the rest goes back to the host.
constexpr size_t kWarmStagingBytes = 64u << 20;

static int64_t ClockNs(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return static_cast<int64_t>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Fills in how long an operation took, and how much CPU time of this thread: on a busy host these differ.
class Stopwatch {
 public:
  template <typename Stats>
  void Stop(Stats* stats) const {
    stats->ns = ClockNs(CLOCK_MONOTONIC) - startNs_;
    stats->cpuNs = ClockNs(CLOCK_THREAD_CPUTIME_ID) - startCpuNs_;
  }

 private:
  const int64_t startNs_ = ClockNs(CLOCK_MONOTONIC);
  const int64_t startCpuNs_ = ClockNs(CLOCK_THREAD_CPUTIME_ID);
};

// Puts this thread behind other work for as long as it lives.
class LowPriority {
 public:
  LowPriority() : before_(getpriority(PRIO_PROCESS, Tid())) { setpriority(PRIO_PROCESS, Tid(), 10); }
  ~LowPriority() { setpriority(PRIO_PROCESS, Tid(), before_); }  // fails without privileges, and then nothing is ahead

 private:
  static id_t Tid() { return static_cast<id_t>(syscall(SYS_gettid)); }
  const int before_;
};

static void PunchHole(SharedMemory& memory, size_t page) {
  if (fallocate(memory.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page * kPageBytes),
                kPageBytes) != 0)
    memset(memory.base + page * kPageBytes, 0, kPageBytes);  // as true, only dearer
}

EpochBuffer::EpochBuffer(std::shared_ptr<SharedMemory> source, std::shared_ptr<ControlPage> control,
                         std::unique_ptr<WriteTracker> tracker)
    : source_(std::move(source)),
      control_(std::move(control)),
      tracker_(std::move(tracker)),
      pages_(source_->bytes / kPageBytes),
      hash_(BestHashPage()),
      known_(pages_),
      slotOf_(pages_),
      pending_(pages_) {
  if (getrandom(key_, sizeof key_, 0) != static_cast<ssize_t>(sizeof key_))
    throw ErrnoFailure(errno, "getrandom", "hash key");
  static const uint8_t zeros[kPageBytes] = {};
  zeroHash_ = Hash(zeros);
  void* area = mmap(nullptr, source_->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) throw ErrnoFailure(errno, "mmap", "staging area");
  staging_ = static_cast<uint8_t*>(area);
}

EpochBuffer::~EpochBuffer() { munmap(staging_, source_->bytes); }

void EpochBuffer::ThrowUnlessAlive() const {
  if (control_->dead()) throw Failure{"ERR_VM_DEAD", "epoch", "the VM's process died"};
}

CommitStats EpochBuffer::Sync(SharedMemory& target) {
  if (target.bytes != source_->bytes) throw Failure{"ERR_SIZE", "sync", "shadow and primary differ in RAM size"};
  const Stopwatch stopwatch;
  CommitStats stats;
  synced_ = false;  // until this copy is complete: a copy that fails in the middle is neither the old one nor the new
  if (tracker_) tracker_->ScanAndRearm({}, [](size_t, size_t) {});
  std::fill(pending_.begin(), pending_.end(), false);
  anyPending_ = false;
  ResetStaging();
  undo_.clear();
  VisitExtents(*source_, [&](size_t from, size_t to, bool hasData) {
    if (!hasData) {
      // Nothing in the primary: nothing in the shadow either, whatever it held before.
      if (fallocate(target.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                    static_cast<off_t>(to - from)) != 0)
        throw ErrnoFailure(errno, "fallocate", "the shadow's RAM");
      std::fill(known_.begin() + static_cast<ptrdiff_t>(from / kPageBytes),
                known_.begin() + static_cast<ptrdiff_t>(to / kPageBytes), zeroHash_);
      return;
    }
    for (size_t at = from; at < to; at += kPageBytes) {
      const size_t page = at / kPageBytes;
      // The checksum must be of what the shadow got: the guest may write the source page between copy and hash.
      uint8_t copy[kPageBytes];
      memcpy(copy, source_->base + at, kPageBytes);
      const uint64_t hash = Hash(copy);
      known_[page] = hash;
      if (hash == zeroHash_) {
        PunchHole(target, page);
        stats.zeroPages++;
      } else {
        memcpy(target.base + at, copy, kPageBytes);
      }
      stats.changedPages++;
    }
  });
  ThrowUnlessAlive();
  synced_ = true;
  stopwatch.Stop(&stats);
  return stats;
}

PassStats EpochBuffer::Collect(const ScanOptions& options) {
  if (!synced_) throw Failure{"ERR_NOT_SYNCED", "collect", "the shadow has no first copy yet"};
  PassStats stats;
  ScanResult scan;
  const Stopwatch stopwatch;
  if (tracker_)
    scan = CollectWritten(options, &stats);
  else
    CollectByChecksum(&stats);
  ThrowUnlessAlive();
  stats.complete = scan.complete;
  stats.stagedPages = slotPage_.size();
  stopwatch.Stop(&stats);
  stats.cpuNs += scan.helperCpuNs;
  return stats;
}

ScanResult EpochBuffer::CollectWritten(const ScanOptions& options, PassStats* stats) {
  ScanResult scan;
  try {
    scan = tracker_->ScanAndRearm(options, [&](size_t first, size_t end) {
      StageRun(first, end);
      stats->scannedPages += end - first;
    });
  } catch (...) {
    // Some runs may have been re-armed and not staged. After a failed scan only a full copy is known to be right.
    synced_ = false;
    throw;
  }
  if (anyPending_) {
    for (size_t page = 0; page < pages_; page++) {
      if (!pending_[page]) continue;
      if (slotOf_[page] == 0) {
        StageRun(page, page + 1);
        stats->scannedPages++;
      }
      pending_[page] = false;
    }
    anyPending_ = false;
  }
  stats->copiedPages = stats->scannedPages;
  return scan;
}

size_t EpochBuffer::Stage(size_t page) {
  if (slotOf_[page] == 0) {
    slotPage_.push_back(static_cast<uint32_t>(page));
    if (!tracker_) slotHash_.push_back(0);
    slotOf_[page] = static_cast<uint32_t>(slotPage_.size());
  }
  return slotOf_[page] - 1;
}

void EpochBuffer::StageRun(size_t firstPage, size_t endPage) {
  for (size_t page = firstPage; page < endPage; page++)
    memcpy(Slot(Stage(page)), source_->base + page * kPageBytes, kPageBytes);
}

// Looks at every page that has memory, and at those that had some: a page may have been given back (balloon).
void EpochBuffer::CollectByChecksum(PassStats* stats) {
  VisitExtents(*source_, [&](size_t from, size_t to, bool hasData) {
    for (size_t page = from / kPageBytes; page < to / kPageBytes; page++) {
      const uint64_t last = slotOf_[page] ? slotHash_[slotOf_[page] - 1] : known_[page];
      if (!hasData) {
        if (last == zeroHash_) continue;
        const size_t slot = Stage(page);
        memset(Slot(slot), 0, kPageBytes);
        slotHash_[slot] = zeroHash_;
        stats->copiedPages++;
        continue;
      }
      stats->scannedPages++;
      const uint8_t* live = source_->base + page * kPageBytes;
      if (Hash(live) == last) continue;
      const size_t slot = Stage(page);
      memcpy(Slot(slot), live, kPageBytes);
      slotHash_[slot] = Hash(Slot(slot));
      stats->copiedPages++;
    }
  });
  anyPending_ = false;
}

CommitStats EpochBuffer::Commit(SharedMemory& target, size_t undoEpochs) {
  if (target.bytes != source_->bytes) throw Failure{"ERR_SIZE", "commit", "shadow and primary differ in RAM size"};
  if (!synced_) throw Failure{"ERR_NOT_SYNCED", "commit", "the shadow has no first copy yet"};
  const Stopwatch stopwatch;
  CommitStats stats;
  // The oldest record's memory serves for the new one: commits would otherwise pay for its page faults each time.
  Undo undo;
  while (undo_.size() >= std::max<size_t>(undoEpochs, 1)) {
    undo = std::move(undo_.front());
    undo_.pop_front();
  }
  undo.pages.clear();
  undo.hashes.clear();
  undo.contents.clear();
  for (size_t slot = 0; slot < slotPage_.size(); slot++) {
    const size_t page = slotPage_[slot];
    const uint64_t hash = tracker_ ? Hash(Slot(slot)) : slotHash_[slot];
    if (hash == known_[page]) {
      stats.droppedPages++;
      continue;
    }
    if (undoEpochs > 0) Save(&undo, target, page);
    if (hash == zeroHash_) {
      PunchHole(target, page);
      stats.zeroPages++;
    } else {
      memcpy(target.base + page * kPageBytes, Slot(slot), kPageBytes);
    }
    known_[page] = hash;
    stats.changedPages++;
  }
  if (undoEpochs > 0) undo_.push_back(std::move(undo));
  ResetStaging();
  stopwatch.Stop(&stats);
  return stats;
}

void EpochBuffer::Save(Undo* undo, const SharedMemory& target, size_t page) {
  undo->pages.push_back(static_cast<uint32_t>(page));
  undo->hashes.push_back(known_[page]);
  if (known_[page] == zeroHash_) return;
  const uint8_t* from = target.base + page * kPageBytes;
  undo->contents.insert(undo->contents.end(), from, from + kPageBytes);
}

void EpochBuffer::Rewind(SharedMemory& target, size_t epochs) {
  if (target.bytes != source_->bytes) throw Failure{"ERR_SIZE", "rewind", "shadow and primary differ in RAM size"};
  if (epochs > undo_.size()) throw Failure{"ERR_NO_UNDO", "rewind", "not so many epochs are kept for rewinding"};
  for (; epochs > 0; epochs--) {
    const Undo undo = std::move(undo_.back());
    undo_.pop_back();
    const uint8_t* content = undo.contents.data();
    for (size_t i = 0; i < undo.pages.size(); i++) {
      const size_t page = undo.pages[i];
      known_[page] = undo.hashes[i];
      pending_[page] = true;  // the source still has what is taken back here, and the kernel will not report it again
      anyPending_ = true;
      if (undo.hashes[i] == zeroHash_) {
        PunchHole(target, page);
      } else {
        memcpy(target.base + page * kPageBytes, content, kPageBytes);
        content += kPageBytes;
      }
    }
  }
}

void EpochBuffer::Abort() {
  for (const uint32_t page : slotPage_) pending_[page] = true;
  anyPending_ = anyPending_ || !slotPage_.empty();
  ResetStaging();
}

void EpochBuffer::ResetStaging() {
  for (const uint32_t page : slotPage_) slotOf_[page] = 0;
  const size_t used = slotPage_.size() * kPageBytes;
  if (used > kWarmStagingBytes) madvise(staging_ + kWarmStagingBytes, used - kWarmStagingBytes, MADV_DONTNEED);
  slotPage_.clear();
  slotHash_.clear();
}
