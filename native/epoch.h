// One VM's memory epochs: collect what changed, then commit it to the shadow image whole or not at all.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "checksum.h"
#include "disk/capture.h"
#include "image/shadow_image.h"
#include "memory.h"
#include "page_states.h"
#include "process.h"
#include "thread_watch.h"
#include "tracker.h"

struct PassStats {
  uint64_t scannedPages = 0;   // looked at: reported as written, or checksummed
  uint64_t stagedPages = 0;    // of this epoch so far
  uint64_t copiedPages = 0;    // copied by this pass
  uint64_t diskPages = 0;      // of disks, copied by this pass as well
  uint64_t repairedPages = 0;  // differed from the shadow although nobody had reported them as written
  bool complete = true;        // false: there may be more written pages than ScanOptions allowed for
  int64_t ns = 0;
  int64_t cpuNs = 0;
};

struct PauseOptions {
  size_t pagesMax = 0;  // as in ScanOptions
  int hold = -1;        // to be switched on before the guest runs again
  std::optional<size_t> countOffset;  // of a counter in the guest's memory that is read while it stands
  int64_t timeoutNs = 0;
};

struct PauseStats {
  PassStats pass;
  int64_t cutAtNs = 0;  // CLOCK_MONOTONIC
  int64_t cutAtWallNs = 0;
  int64_t pausedNs = 0;  // from the order to stop to the end of it all
  uint16_t count = 0;
  bool holdFailed = false;
};

struct EpochStats {
  uint64_t epoch = 0;
  uint64_t changedPages = 0;  // in this epoch's record
  uint64_t zeroPages = 0;     // of those, now all zeros
  uint64_t droppedPages = 0;  // captured, but their checksum is the known one
  uint64_t diskPages = 0;     // of disks, changed as well
  uint64_t storedBytes = 0;   // what the record takes on the disk
  bool released = false;      // the holds of its cut are, or are about to be
  int64_t ns = 0;
  int64_t cpuNs = 0;
};

struct ScrubStats {
  size_t nextPage = 0;
  uint64_t comparedPages = 0;
  uint64_t suspectPages = 0;  // differ now; the next epoch tells whether they were just written
};

// The waiting QEMU whose resident part commits fill and keep fresh.
struct Resident {
  std::shared_ptr<SharedMemory> ram;
  std::shared_ptr<ControlPage> control;
  double share;  // of the RAM that is to be resident, 0 to 1
};

using DiskTwins = std::vector<std::shared_ptr<DiskTwin>>;

// When an epoch was cut.
struct EpochCut {
  uint32_t generation;
  int64_t wallMs;
  int64_t monotonicNs;
  // What the guest has sent since the epoch before waits in its process for this one, and dies with it.
  bool holdsOutput;
  // A bit for each hold (see shim/control.h) that leaves with this epoch, once the guest has shown that it lived.
  uint32_t releases;
};

// Life of an epoch: Collect() any number of times while the guest runs, Collect() once more while it stands still, then
// Commit() or Abort(). Pages of an aborted epoch are collected again by the next one.
//
// Captured pages lie in a small staging area. What does not fit is compressed into the image's open record while the
// guest still runs; the record counts only once it is committed, so an epoch that does not become whole leaves nothing.
//
// Not thread-safe: one caller at a time (the VM's worker).
class EpochBuffer {
 public:
  // Without a tracker the delta is found by checksums alone.
  EpochBuffer(std::shared_ptr<SharedMemory> source, std::shared_ptr<ControlPage> control,
              std::unique_ptr<WriteTracker> tracker, std::shared_ptr<ShadowImage> image);
  ~EpochBuffer();
  EpochBuffer(const EpochBuffer&) = delete;
  EpochBuffer& operator=(const EpochBuffer&) = delete;

  // Starts tracking and captures every page that is not what the image holds, while the guest runs. What changes
  // meanwhile is found by the next Collect, so the next commit is the first consistent one. ERR_NOT_FILLED while a lazy
  // RAM is still being filled.
  PassStats Sync();
  // Instead of Sync(): the memory was filled from the image, and every write since is still to be reported.
  void Follow();
  // The disks of the primary, which are part of all epochs from here on. Unless it is `known` that everything is marked which
  // the image does not hold, they are compared with it, while the guest runs.
  void AttachDisks(const std::vector<CapturedDisk>& disks, bool known);
  // Urgent: the guest stands still, and nothing is compressed meanwhile. The options matter to a tracker only: checksums
  // are always of all pages, by one thread.
  PassStats Collect(const ScanOptions& options);
  // Pauses the guest, and collects meanwhile, urgently. Throws as Collect() and GuestPause do; the guest runs again, or its
  // QEMU knows that it is to.
  PauseStats CollectPaused(const PauseOptions& options);
  // Throws what the image throws (no space, full), with the image as it was and the pages left for the next epoch.
  // Memory, devices and disks are in one record, or nothing is. The twins are files that follow the image.
  // ERR_VM_DEAD for an epoch that holds output of a process that has died: its guest believes that it has sent.
  EpochStats Commit(const EpochCut& cut, const uint8_t* deviceState, size_t deviceBytes, const Resident* resident,
                    const DiskTwins& twins);
  // Behind a CollectPaused(): commits what that has cut, with the devices that QEMU has saved into `deviceStateFd`. Nothing,
  // and no failure, when that has not cut an epoch: it failed, or left pages out, or its hold does not hold.
  std::optional<EpochStats> CommitPaused(EpochCut cut, int deviceStateFd, const Resident* resident, const DiskTwins& twins);
  // The guest has lived at that time, CLOCK_MONOTONIC, or later. From any thread, also while it commits.
  void NoteSign(int64_t atNs);
  void Abort();
  // The image goes back to an epoch, and the resident pages and the twins of its disks with it. Throws ERR_NO_EPOCH, with
  // nothing changed.
  void Rewind(uint64_t epoch, const Resident* resident, const DiskTwins& twins);
  // Brings twins that are not complete further; returns how many pages are left.
  uint64_t AdvanceTwins(const DiskTwins& twins, size_t pages);
  // Compares pages with the image, from `firstPage` on, and wraps around at the end. What differs and was not written is
  // repaired by the next epoch.
  ScrubStats Scrub(size_t firstPage, size_t count);
  // Waits until a counter of 16 bits in the guest's memory, which goes round, has reached `wanted`, and all of its vCPUs
  // sleep: looks every 100 µs, and believes in their sleep when it sees it twice. Null: whatever they do.
  // False when that has not come by the end of the time, or its process has died.
  bool AwaitAnswers(size_t offset, uint16_t wanted, const ThreadWatch* vcpus, int64_t timeoutNs) const;
  // What this object takes, but for the image's part. May be asked from any thread: an estimate then.
  size_t MemoryBytes() const;

 private:
  // A page captured for this epoch; its content is in a slot, or already in the image's open record.
  struct Captured {
    uint32_t page;
    uint32_t slot;
    uint64_t hash;  // of the content in the record; in checksum mode and after Sync also of the one in the slot
    bool hashed;
    bool changed;   // in a commit: not what the image held before
  };

  ScanResult CollectWritten(ScanOptions options, PassStats* stats);
  void CollectByChecksum(PassStats* stats);
  void CollectPending(PassStats* stats);
  void CollectSuspects(PassStats* stats);
  void RearmColdPages(size_t firstPage, size_t endPage);
  void StageRun(size_t firstPage, size_t endPage, PassStats* stats);
  Captured& Stage(size_t page);
  void StageHashed(size_t page, const uint8_t* content, uint64_t hash);
  uint8_t* Slot(size_t slot) const { return staging_ + slot * kPageBytes; }
  uint64_t LastHash(size_t page) const;
  void SpillWhenFull();
  void Record(Captured& captured);
  bool CollectDisks(const ScanOptions& options, PassStats* stats);
  void Add(size_t page, uint64_t hash, const uint8_t* content);
  void Refresh(const Resident& resident);
  void FillSome(const Resident& resident);
  void QueueFill(size_t page);
  void Evict(const Resident& resident, size_t page);
  bool MayGrow(const Resident& resident) const;
  void Install(const Resident& resident, size_t page, const uint8_t* content);
  void ThrowUnlessAlive() const;
  // False when none comes for long: the epoch counts, but nobody knows whether its guest lived.
  bool AwaitSign(int64_t afterNs);
  uint16_t ReadCount(size_t offset) const;
  bool InQuickSuccession() const;
  // For the next epoch, of what this one has changed.
  void NoteHotPages();
  void ResetStaging();

  const std::shared_ptr<SharedMemory> source_;
  const std::shared_ptr<ControlPage> control_;
  const std::unique_ptr<WriteTracker> tracker_;
  const std::shared_ptr<ShadowImage> image_;
  const PageStates states_;
  const size_t pages_;
  bool synced_ = false;
  bool recording_ = false;  // the image has an open record
  bool absentIsZero_ = false;  // in a full comparison of a RAM that is filled: what was never installed is zeros
  std::mutex signMutex_;
  std::condition_variable signCame_;
  int64_t signAtNs_ = 0;  // the newest one
  std::optional<PauseStats> paused_;  // the cut that the last pause has made, while it can be committed
  bool guestRuns_ = false;  // during this pass: what does not fit may be compressed at once
  std::optional<Failure> noRoom_;  // why this pass could not compress: it ends by that, with its pages pending

  std::vector<uint32_t> capturedOf_;  // page → its place in captured_ + 1, 0 when not captured: 0.1 % of the RAM
  std::vector<Captured> captured_;
  std::vector<bool> pending_;  // page → to be collected again after an abort
  bool anyPending_ = false;
  std::vector<uint32_t> suspects_;
  // While epochs follow each other quickly: a bit for each of the last ones that were seen to write the page, the newest lowest.
  std::vector<uint8_t> writtenIn_;
  std::vector<uint32_t> hotPages_;  // those that have one

  std::unique_ptr<DiskCapture> disks_;  // null: it has none
  const DiskCapture::Record record_;

  // The filling of the waiting QEMU that a commit saw last.
  std::shared_ptr<ControlPage> filled_;
  std::vector<uint32_t> fillOrder_;  // what is left of it, the next page last; each page once
  std::vector<bool> fillQueued_;     // page → in fillOrder_
  size_t residentPages_ = 0;
  PageScratch scratch_;

  uint8_t* staging_;  // address space for all pages; memory is taken as slots fill
  size_t slotsUsed_ = 0;
  size_t slotsTouched_ = 0;  // these have memory
  int64_t resetAtNs_ = 0;
  const size_t slotsWarm_;
};
