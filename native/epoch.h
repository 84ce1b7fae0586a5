// One VM's memory epochs: collect what changed, then apply it to the shadow whole or not at all.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "checksum.h"
#include "memory.h"
#include "process.h"
#include "tracker.h"

struct PassStats {
  uint64_t scannedPages = 0;  // looked at: reported as written, or checksummed
  uint64_t stagedPages = 0;   // held in the staging area after this pass
  uint64_t copiedPages = 0;   // copied by this pass
  bool complete = true;       // false: there may be more written pages than ScanOptions allowed for
  int64_t ns = 0;
  int64_t cpuNs = 0;
};

struct CommitStats {
  uint64_t changedPages = 0;  // written to the shadow
  uint64_t zeroPages = 0;     // of those, now all zeros
  uint64_t droppedPages = 0;  // captured, but their checksum is the known one
  int64_t ns = 0;
  int64_t cpuNs = 0;
};

// Life of an epoch: Collect() any number of times while the guest runs, Collect() once more while it stands still, then
// Commit() or Abort(). Pages of an aborted epoch are collected again by the next one.
//
// Pages lie in a staging area until the commit, so an epoch that does not become whole never touches the shadow.
// Copying straight into the shadow would save a copy and lose exactly that.
//
// Not thread-safe: one caller at a time (the VM's worker).
class EpochBuffer {
 public:
  // Without a tracker the delta is found by checksums alone.
  EpochBuffer(std::shared_ptr<SharedMemory> source, std::shared_ptr<ControlPage> control,
              std::unique_ptr<WriteTracker> tracker);
  ~EpochBuffer();
  EpochBuffer(const EpochBuffer&) = delete;
  EpochBuffer& operator=(const EpochBuffer&) = delete;

  // Starts tracking, then makes the target a (torn) copy of the source while the guest runs. What changes meanwhile is
  // found by the next Collect, so the target is consistent from the first commit on.
  CommitStats Sync(SharedMemory& target);
  // The options matter to a tracker only: checksums are always of all pages, by one thread.
  PassStats Collect(const ScanOptions& options);
  // Keeps what the target held before, for Rewind, of this epoch and of the `undoEpochs - 1` before it.
  CommitStats Commit(SharedMemory& target, size_t undoEpochs);
  void Abort();
  // Takes the newest `epochs` commits back. Throws ERR_NO_UNDO, with nothing changed, when not so many are kept.
  void Rewind(SharedMemory& target, size_t epochs);
  size_t stagedPages() const { return slotPage_.size(); }

 private:
  ScanResult CollectWritten(const ScanOptions& options, PassStats* stats);
  void CollectByChecksum(PassStats* stats);
  void StageRun(size_t firstPage, size_t endPage);
  uint8_t* Slot(size_t slot) const { return staging_ + slot * kPageBytes; }
  size_t Stage(size_t page);
  uint64_t Hash(const uint8_t* page) const { return hash_(page, key_); }
  void ThrowUnlessAlive() const;
  void ResetStaging();

  // What one commit replaced.
  struct Undo {
    std::vector<uint32_t> pages;
    std::vector<uint64_t> hashes;
    std::vector<uint8_t> contents;  // kPageBytes for each page that was not all zeros, in order
  };
  void Save(Undo* undo, const SharedMemory& target, size_t page);
  std::deque<Undo> undo_;  // newest last

  const std::shared_ptr<SharedMemory> source_;
  const std::shared_ptr<ControlPage> control_;
  const std::unique_ptr<WriteTracker> tracker_;
  const size_t pages_;
  const HashPage hash_;
  uint8_t key_[kHashKeyBytes];
  uint64_t zeroHash_;
  bool synced_ = false;

  // 8 + 4 bytes per page: 0.3 % of the RAM.
  std::vector<uint64_t> known_;   // page → checksum of what the shadow holds
  std::vector<uint32_t> slotOf_;  // page → its slot + 1, 0 when not staged
  std::vector<bool> pending_;     // page → to be collected again after an abort
  bool anyPending_ = false;

  uint8_t* staging_;                 // address space for all pages; memory is taken as slots fill
  std::vector<uint32_t> slotPage_;   // slot → page
  std::vector<uint64_t> slotHash_;   // slot → checksum; kept only without a tracker
};
