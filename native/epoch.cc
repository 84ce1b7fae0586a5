#include "epoch.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "addon.h"
#include "clock_ns.h"
#include "fault_point.h"
#include "guest_pause.h"
#include "thread_nice.h"

// The share of the RAM that the staging area may hold before it is compressed into the record, and keeps between epochs
// so that a pause does not pay for page faults. A shadow is to cost 1 % in all.
constexpr size_t kStagingDivisor = 512;
constexpr size_t kStagingPagesMin = 128;
// So many times as much of a VM whose epochs come more often than this, as they do in strict mode under load.
constexpr size_t kStagingQuickly = 4;
constexpr int64_t kInQuickSuccessionNs = 50'000'000;
// A page that was seen to be written is left open for as many epochs, a bit for each.
constexpr uint8_t kHotEpochs = 0b1111;
constexpr long kAnswersLookNs = 100'000;
// A guest says that it lives within a millisecond, or several when it has much to do; one that hangs never does.
constexpr std::chrono::milliseconds kSignTimeMax{20};
constexpr std::chrono::microseconds kSignLook{500};  // and whether its process lives still
constexpr uint32_t kNoSlot = UINT32_MAX;
// 4 MiB with each epoch: a commit stays short while a standby fills.
constexpr size_t kFillPagesPerCommit = 1024;

// Fills in how long an operation took, and how much CPU time of this thread: on a busy host these differ.
class Stopwatch {
 public:
  template <typename Stats>
  void Stop(Stats* stats) const {
    stats->ns = MonotonicNs() - startNs_;
    stats->cpuNs = ClockNs(CLOCK_THREAD_CPUTIME_ID) - startCpuNs_;
  }

 private:
  const int64_t startNs_ = MonotonicNs();
  const int64_t startCpuNs_ = ClockNs(CLOCK_THREAD_CPUTIME_ID);
};

// Puts this thread behind other work for as long as it lives.
class LowPriority {
 public:
  LowPriority() : before_(getpriority(PRIO_PROCESS, ThreadId())) { SetThreadNice(10); }
  ~LowPriority() { SetThreadNice(before_); }  // fails without privileges, and then nothing is ahead

 private:
  const int before_;
};

EpochBuffer::EpochBuffer(std::shared_ptr<SharedMemory> source, std::shared_ptr<ControlPage> control,
                         std::unique_ptr<WriteTracker> tracker, std::shared_ptr<ShadowImage> image)
    : source_(std::move(source)),
      control_(std::move(control)),
      tracker_(std::move(tracker)),
      image_(std::move(image)),
      states_(control_),
      pages_(source_->bytes / kPageBytes),
      capturedOf_(pages_),
      pending_(pages_),
      writtenIn_(pages_),
      record_([this](size_t page, uint64_t hash, const uint8_t* content) { Add(page, hash, content); }),
      slotsWarm_(std::max(kStagingPagesMin, pages_ / kStagingDivisor)) {
  if (image_->pages() != pages_) throw Failure{"ERR_SIZE", "epoch", "shadow image and primary differ in RAM size"};
  void* area = mmap(nullptr, source_->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) throw ErrnoFailure(errno, "mmap", "staging area");
  staging_ = static_cast<uint8_t*>(area);
}

EpochBuffer::~EpochBuffer() {
  if (recording_) image_->Abandon();
  munmap(staging_, source_->bytes);
}

void EpochBuffer::ThrowUnlessAlive() const {
  if (control_->dead()) throw Failure{"ERR_VM_DEAD", "epoch", "the VM's process died"};
}

// ---- Capturing ----

PassStats EpochBuffer::Sync() {
  const LowPriority behind;
  const Stopwatch stopwatch;
  PassStats stats;
  Abort();
  noRoom_.reset();
  // Until its RAM is filled, a page that is absent is what it will be filled from, which need not be this image.
  if (control_->page()->lazy != 0 && __atomic_load_n(&control_->page()->filled, __ATOMIC_ACQUIRE) == 0)
    throw Failure{"ERR_NOT_FILLED", "sync", "the primary's RAM is not filled yet"};
  synced_ = false;  // until this pass is complete: what it did not look at may differ unnoticed
  guestRuns_ = true;
  absentIsZero_ = true;
  if (tracker_) tracker_->ScanAndRearm({}, [](size_t, size_t) {});
  std::fill(pending_.begin(), pending_.end(), false);
  anyPending_ = false;
  CollectByChecksum(&stats);
  absentIsZero_ = false;
  ThrowUnlessAlive();
  synced_ = true;
  stats.stagedPages = captured_.size();
  stopwatch.Stop(&stats);
  return stats;
}

void EpochBuffer::Follow() {
  ThrowUnlessAlive();
  synced_ = true;
}

PassStats EpochBuffer::Collect(const ScanOptions& options) {
  paused_.reset();
  if (!synced_) throw Failure{"ERR_NOT_SYNCED", "collect", "the primary was not compared with its shadow yet"};
  PassStats stats;
  ScanResult scan;
  const Stopwatch stopwatch;
  guestRuns_ = !options.urgent;
  noRoom_.reset();
  if (tracker_)
    scan = CollectWritten(options, &stats);
  else
    CollectByChecksum(&stats);
  CollectPending(&stats);
  if (options.urgent && scan.complete) CollectSuspects(&stats);
  if (noRoom_) throw *noRoom_;
  if (disks_ && scan.complete) scan.complete = CollectDisks(options, &stats);
  ThrowUnlessAlive();
  stats.complete = scan.complete;
  stats.stagedPages = captured_.size();
  stopwatch.Stop(&stats);
  stats.cpuNs += scan.helperCpuNs;
  return stats;
}

PauseStats EpochBuffer::CollectPaused(const PauseOptions& options) {
  paused_.reset();
  PauseStats stats;
  const int64_t askedNs = MonotonicNs();
  GuestPause pause(*control_, options.timeoutNs);
  pause.Stop(options.hold);
  FaultPoint("pause", 1);
  if (options.countOffset) stats.count = ReadCount(*options.countOffset);
  stats.pass = Collect({true, options.pagesMax});
  FaultPoint("pause", 2);
  pause.LetGo();
  const shadowvm_pause& told = control_->page()->pause;
  stats.cutAtNs = told.cut_at_ns;
  stats.cutAtWallNs = told.cut_at_wall_ns;
  stats.holdFailed = options.hold >= 0 && told.hold_failed != 0;
  stats.pausedNs = MonotonicNs() - askedNs;
  if (stats.pass.complete && !stats.holdFailed) paused_ = stats;
  return stats;
}

ScanResult EpochBuffer::CollectWritten(ScanOptions options, PassStats* stats) {
  options.rearm = !options.urgent || !InQuickSuccession();
  try {
    return tracker_->ScanAndRearm(options, [&](size_t first, size_t end) {
      if (!options.rearm) RearmColdPages(first, end);
      StageRun(first, end, stats);
    });
  } catch (...) {
    // Some runs may have been re-armed and not staged. After a failed scan only a full comparison is known to be right.
    synced_ = false;
    throw;
  }
}

// The write that finds a page protected costs its writer 2.7 µs (measured), and of what a busy guest changes in an epoch, nine
// tenths were changed in each of the two before as well: Redis with 50 clients writes 360 pages, and waits for a millisecond.
// What is left open is reported by the next scan whether it was written or not, and found to be cold if it was not.
void EpochBuffer::RearmColdPages(size_t firstPage, size_t endPage) {
  for (size_t page = firstPage; page < endPage;) {
    size_t end = page;
    while (end < endPage && writtenIn_[end] == 0) end++;
    if (page < end) tracker_->Rearm(page, end);
    page = end + 1;
  }
}

// Pages of an epoch that was given up.
void EpochBuffer::CollectPending(PassStats* stats) {
  if (!anyPending_) return;
  for (size_t page = 0; page < pages_; page++) {
    if (!pending_[page]) continue;
    pending_[page] = false;
    if (capturedOf_[page] == 0) StageRun(page, page + 1, stats);
  }
  anyPending_ = noRoom_.has_value();
}

// Pages that a scrub found to differ. Those that were written since are staged by now; the guest stands still, so that
// the others are what no scan ever reported.
void EpochBuffer::CollectSuspects(PassStats* stats) {
  for (const uint32_t page : suspects_) {
    if (capturedOf_[page] != 0 || !states_.MayRead(page)) continue;
    if (image_->HashOf(source_->base + page * kPageBytes) == image_->PageHash(page)) continue;
    StageRun(page, page + 1, stats);
    stats->repairedPages++;
  }
  suspects_.clear();
}

EpochBuffer::Captured& EpochBuffer::Stage(size_t page) {
  if (capturedOf_[page] == 0) {
    captured_.push_back({static_cast<uint32_t>(page), kNoSlot, 0, false, false});
    capturedOf_[page] = static_cast<uint32_t>(captured_.size());
  }
  Captured& captured = captured_[capturedOf_[page] - 1];
  if (captured.slot == kNoSlot) captured.slot = static_cast<uint32_t>(slotsUsed_++);
  captured.hashed = false;
  return captured;
}

void EpochBuffer::StageRun(size_t firstPage, size_t endPage, PassStats* stats) {
  for (size_t page = firstPage; page < endPage; page++) {
    // A page that was not filled in yet is reported too, and is what the image holds.
    if (!states_.MayRead(page)) continue;
    if (noRoom_) {
      pending_[page] = anyPending_ = true;
      continue;
    }
    memcpy(Slot(Stage(page).slot), source_->base + page * kPageBytes, kPageBytes);
    stats->scannedPages++;
    stats->copiedPages++;
    SpillWhenFull();
  }
}

void EpochBuffer::StageHashed(size_t page, const uint8_t* content, uint64_t hash) {
  Captured& captured = Stage(page);
  if (content == nullptr)
    memset(Slot(captured.slot), 0, kPageBytes);
  else
    memcpy(Slot(captured.slot), content, kPageBytes);
  // The guest may have written the page between its checksum and the copy.
  captured.hash = content == nullptr ? hash : image_->HashOf(Slot(captured.slot));
  captured.hashed = true;
}

// What this page is known to be: as captured last, else as the image has it.
uint64_t EpochBuffer::LastHash(size_t page) const {
  if (capturedOf_[page] == 0) return image_->PageHash(page);
  return captured_[capturedOf_[page] - 1].hash;
}

// Looks at every page that has memory, and at those that had some: a page may have been given back (balloon).
void EpochBuffer::CollectByChecksum(PassStats* stats) {
  VisitExtents(*source_, [&](size_t from, size_t to, bool hasData) {
    for (size_t page = from / kPageBytes; page < to / kPageBytes; page++) {
      const bool present = states_.MayRead(page);
      if (!present && !absentIsZero_) continue;
      const uint8_t* live = hasData && present ? source_->base + page * kPageBytes : nullptr;
      if (live != nullptr) stats->scannedPages++;
      const uint64_t hash = live != nullptr ? image_->HashOf(live) : image_->ZeroHash();
      if (hash == LastHash(page)) continue;
      StageHashed(page, live, hash);
      stats->copiedPages++;
      SpillWhenFull();
      if (noRoom_) throw *noRoom_;  // what was looked at is looked at again
    }
  });
}

ScrubStats EpochBuffer::Scrub(size_t firstPage, size_t count) {
  if (!synced_) throw Failure{"ERR_NOT_SYNCED", "scrub", "the primary was not compared with its shadow yet"};
  ScrubStats stats;
  const size_t end = std::min(pages_, firstPage + count);
  // Page by page: to ask where an extent ends would go through all of the memory behind, for each small part again.
  size_t nextData = NextDataPage(*source_, firstPage);
  for (size_t page = firstPage; page < end; page++) {
    if (nextData < page) nextData = NextDataPage(*source_, page);
    if (capturedOf_[page] != 0 || !states_.MayRead(page)) continue;
    stats.comparedPages++;
    const uint64_t hash =
        page == nextData ? image_->HashOf(source_->base + page * kPageBytes) : image_->ZeroHash();
    if (hash == image_->PageHash(page)) continue;
    suspects_.push_back(static_cast<uint32_t>(page));
    stats.suspectPages++;
  }
  ThrowUnlessAlive();
  stats.nextPage = end >= pages_ ? 0 : end;
  return stats;
}

// ---- Waiting ----

// By the file and not by the mapping, where an absent page would be made one.
uint16_t EpochBuffer::ReadCount(size_t offset) const {
  uint16_t count = 0;
  if (offset > source_->bytes - sizeof count) throw Failure{"ERR_OUT_OF_RANGE", "pread", "the VM has no such memory"};
  if (pread(source_->fd, &count, sizeof count, static_cast<off_t>(offset)) != sizeof count)
    throw ErrnoFailure(errno, "pread", "guest RAM");
  return count;
}

bool EpochBuffer::AwaitAnswers(size_t offset, uint16_t wanted, const ThreadWatch* vcpus, int64_t timeoutNs) const {
  const int64_t untilNs = MonotonicNs() + timeoutNs;
  for (bool slept = false;;) {
    const bool came = static_cast<int16_t>(ReadCount(offset) - wanted) >= 0;
    if (came && vcpus == nullptr) return true;
    const bool sleep = came && vcpus->AllSleep();
    if (sleep && slept) return true;
    slept = sleep;
    if (control_->dead() || MonotonicNs() >= untilNs) return false;
    const struct timespec pause = {0, kAnswersLookNs};
    nanosleep(&pause, nullptr);
  }
}

void EpochBuffer::NoteSign(int64_t atNs) {
  {
    std::lock_guard<std::mutex> lock(signMutex_);
    signAtNs_ = atNs;
  }
  signCame_.notify_all();
}

bool EpochBuffer::AwaitSign(int64_t afterNs) {
  const auto until = std::chrono::steady_clock::now() + kSignTimeMax;
  std::unique_lock<std::mutex> lock(signMutex_);
  for (;;) {
    ThrowUnlessAlive();
    if (signAtNs_ > afterNs) return true;
    if (std::chrono::steady_clock::now() >= until) return false;
    signCame_.wait_for(lock, kSignLook);
  }
}

// ---- Recording ----

// A failure is told at the end of the pass: a tracker's scan that ends in the middle has re-armed pages that it did not
// report, and after that only a full comparison would do.
void EpochBuffer::SpillWhenFull() {
  if (!guestRuns_ || slotsUsed_ < slotsWarm_) return;
  try {
    for (Captured& captured : captured_) Record(captured);
  } catch (const Failure& failure) {
    Abort();
    noRoom_ = failure;
    return;
  }
  slotsTouched_ = slotsWarm_;
  slotsUsed_ = 0;
}

// Moves a page from its slot into the image's open record, which drops it when it is what the image holds.
void EpochBuffer::Record(Captured& captured) {
  if (captured.slot == kNoSlot) return;
  const uint8_t* content = Slot(captured.slot);
  if (!captured.hashed) captured.hash = image_->HashOf(content);
  captured.hashed = true;
  captured.slot = kNoSlot;
  Add(captured.page, captured.hash, content);
}

void EpochBuffer::Add(size_t page, uint64_t hash, const uint8_t* content) {
  if (!recording_) image_->Begin();
  recording_ = true;
  image_->Add(page, hash, content);
}

EpochStats EpochBuffer::Commit(const EpochCut& cut, const uint8_t* deviceState, size_t deviceBytes,
                               const Resident* resident, const DiskTwins& twins) {
  if (!synced_) throw Failure{"ERR_NOT_SYNCED", "commit", "the primary was not compared with its shadow yet"};
  if (resident != nullptr && resident->ram->bytes != source_->bytes)
    throw Failure{"ERR_SIZE", "commit", "shadow and primary differ in RAM size"};
  const Stopwatch stopwatch;
  EpochStats stats;
  int64_t helperCpuNs = 0;
  try {
    if (cut.holdsOutput) image_->Hurry();
    // The slots' contents stay where they are: the resident part of the shadow is refreshed from them below.
    for (Captured& captured : captured_) {
      const uint32_t slot = captured.slot;
      Record(captured);
      captured.slot = slot;
      captured.changed = captured.hash != image_->PageHash(captured.page);
      stats.changedPages += captured.changed;
      stats.zeroPages += captured.changed && captured.hash == image_->ZeroHash();
    }
    stats.droppedPages = captured_.size() - stats.changedPages;
    if (!recording_) image_->Begin();
    recording_ = true;
    if (disks_) stats.diskPages = disks_->RecordAll(record_);
    const EpochMeta meta = {image_->LastEpoch() + 1, image_->HeadEpoch(), cut.generation, cut.wallMs, cut.monotonicNs};
    bool lived = false;
    // When it counts is to be when its output leaves: what is not released yet when its process dies is sent again only
    // after 200 ms, and a guest from the epoch before answers anew at once.
    const AppendStats appended = image_->Commit(meta, deviceState, deviceBytes, [&] {
      if (cut.holdsOutput) lived = AwaitSign(cut.monotonicNs);
    });
    stats.storedBytes = appended.storedBytes;
    helperCpuNs = appended.helperCpuNs;
    recording_ = false;
    stats.epoch = meta.epoch;
    // From here and not from the event loop, which may have something else to do.
    stats.released = cut.releases != 0 && lived;
    if (stats.released) control_->Release(cut.releases);
  } catch (const Failure&) {
    Abort();
    throw;
  }
  NoteHotPages();
  if (disks_) disks_->Committed(twins);
  if (resident != nullptr) Refresh(*resident);
  ResetStaging();
  stopwatch.Stop(&stats);
  stats.cpuNs += helperCpuNs;
  return stats;
}

static std::vector<uint8_t> ReadWhole(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) throw ErrnoFailure(errno, "fstat", "device state");
  std::vector<uint8_t> content(static_cast<size_t>(status.st_size));
  for (size_t read = 0; read < content.size();) {
    const ssize_t bytes = pread(fd, content.data() + read, content.size() - read, static_cast<off_t>(read));
    if (bytes < 0) throw ErrnoFailure(errno, "pread", "device state");
    if (bytes == 0) throw Failure{"ERR_SHORT_READ", "pread", "the device state ended early"};
    read += static_cast<size_t>(bytes);
  }
  return content;
}

std::optional<EpochStats> EpochBuffer::CommitPaused(EpochCut cut, int deviceStateFd, const Resident* resident,
                                                    const DiskTwins& twins) {
  if (!paused_) return std::nullopt;
  cut.wallMs = paused_->cutAtWallNs / 1000000;
  cut.monotonicNs = paused_->cutAtNs;
  std::vector<uint8_t> device;
  try {
    device = ReadWhole(deviceStateFd);
  } catch (const Failure&) {
    Abort();
    throw;
  }
  return Commit(cut, device.data(), device.size(), resident, twins);
}

// ---- Disks ----

void EpochBuffer::AttachDisks(const std::vector<CapturedDisk>& disks, bool known) {
  const LowPriority behind;
  disks_ = std::make_unique<DiskCapture>(control_, image_, disks);
  if (known) return;
  try {
    disks_->Compare(record_);
  } catch (...) {
    Abort();
    disks_.reset();
    throw;
  }
}

// False, and nothing is taken: there is more than the options allow for.
bool EpochBuffer::CollectDisks(const ScanOptions& options, PassStats* stats) {
  const size_t max = options.pagesMax;
  if (options.urgent && max != 0 && stats->copiedPages + disks_->Count(max) > max) return false;
  try {
    stats->diskPages = disks_->Collect(options.urgent ? nullptr : &record_);
  } catch (const Failure&) {
    Abort();
    throw;
  }
  return true;
}

uint64_t EpochBuffer::AdvanceTwins(const DiskTwins& twins, size_t pages) {
  uint64_t left = 0;
  for (const auto& twin : twins) {
    const size_t before = twin->left();
    if (pages > 0 && before > 0) twin->Advance(*image_, pages);
    pages -= std::min(pages, before - twin->left());
    left += twin->left();
  }
  return left;
}

// ---- The resident part of the shadow ----

static void PutZeros(const SharedMemory& ram, size_t page) {
  if (fallocate(ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page * kPageBytes),
                kPageBytes) != 0)
    memset(ram.base + page * kPageBytes, 0, kPageBytes);  // as true, only dearer
}

bool EpochBuffer::MayGrow(const Resident& resident) const {
  return static_cast<double>(residentPages_) < resident.share * static_cast<double>(pages_);
}

// Nobody else fills a QEMU that waits: its pager starts when it wakes up, after the last commit.
void EpochBuffer::Install(const Resident& resident, size_t page, const uint8_t* content) {
  PageStates states(resident.control);
  if (states.Get(page) != SHADOWVM_PAGE_PRESENT) residentPages_++;
  if (content == nullptr)
    PutZeros(*resident.ram, page);
  else
    memcpy(resident.ram->base + page * kPageBytes, content, kPageBytes);
  states.Settle(page, SHADOWVM_PAGE_PRESENT);
}

// What the page holds is no more what the image has: it is absent, and filled again later.
void EpochBuffer::Evict(const Resident& resident, size_t page) {
  PageStates states(resident.control);
  if (states.Get(page) != SHADOWVM_PAGE_PRESENT) return;
  PutZeros(*resident.ram, page);
  states.Settle(page, SHADOWVM_PAGE_ABSENT);
  residentPages_--;
  QueueFill(page);
}

void EpochBuffer::QueueFill(size_t page) {
  if (page >= fillQueued_.size() || fillQueued_[page]) return;
  fillQueued_[page] = true;
  fillOrder_.push_back(static_cast<uint32_t>(page));
}

// Pages that are resident get what was just committed; others become resident while there is room, since what was
// written last will be needed first. The rest is filled when the QEMU wakes up. What was compressed before the commit is
// not at hand any more: to read it back page by page would make a commit under load ten times as long.
void EpochBuffer::Refresh(const Resident& resident) {
  if (filled_ != resident.control) {
    filled_ = resident.control;
    residentPages_ = 0;
    fillOrder_.clear();
    fillQueued_.assign(pages_, false);
    const std::vector<uint32_t> order = image_->FillOrder();
    for (size_t i = order.size(); i-- > 0;) QueueFill(order[i]);
  }
  const PageStates states(resident.control);
  for (const Captured& captured : captured_) {
    if (!captured.changed) continue;
    if (states.Get(captured.page) != SHADOWVM_PAGE_PRESENT && !MayGrow(resident)) continue;
    if (captured.hash == image_->ZeroHash())
      Install(resident, captured.page, nullptr);
    else if (captured.slot != kNoSlot)
      Install(resident, captured.page, Slot(captured.slot));
    else
      Evict(resident, captured.page);
  }
  FillSome(resident);
}

// A part of the image at each commit: on this thread, so that no page can get an older content than a commit gave it.
void EpochBuffer::FillSome(const Resident& resident) {
  const PageStates states(resident.control);
  for (size_t filled = 0; filled < kFillPagesPerCommit && !fillOrder_.empty() && MayGrow(resident);) {
    const size_t next = fillOrder_.back();
    fillOrder_.pop_back();
    fillQueued_[next] = false;
    if (states.Get(next) == SHADOWVM_PAGE_PRESENT) continue;
    try {
      image_->ReadAround(next, scratch_, [&](size_t page, const uint8_t* content) {
        if (states.Get(page) == SHADOWVM_PAGE_PRESENT) return;
        Install(resident, page, content);
        filled++;
      });
    } catch (const Failure& failure) {
      // No reason to end the epochs: the page stays absent, and is told of when it is needed.
      if (failure.code != "ERR_IMAGE_CORRUPT") throw;
    }
  }
  if (fillOrder_.empty()) fillOrder_.shrink_to_fit();
}

void EpochBuffer::Rewind(uint64_t epoch, const Resident* resident, const DiskTwins& twins) {
  Abort();
  std::vector<uint64_t> before;
  if (resident != nullptr) {
    before.resize(pages_);
    for (size_t page = 0; page < pages_; page++) before[page] = image_->PageHash(page);
  }
  std::vector<std::vector<uint64_t>> disksBefore;
  for (const auto& twin : twins) disksBefore.push_back(twin->Hashes(*image_));
  image_->Rewind(epoch, false);
  synced_ = false;  // what is given up now is reported no more
  for (size_t i = 0; i < twins.size(); i++) twins[i]->Rewound(*image_, disksBefore[i]);
  if (resident == nullptr) return;
  for (size_t page = 0; page < pages_; page++)
    if (image_->PageHash(page) != before[page]) Evict(*resident, page);
}

size_t EpochBuffer::MemoryBytes() const {
  return capturedOf_.capacity() * sizeof capturedOf_[0] + captured_.capacity() * sizeof captured_[0] +
         pending_.capacity() / 8 + writtenIn_.capacity() +
         hotPages_.capacity() * sizeof hotPages_[0] + fillOrder_.capacity() * sizeof fillOrder_[0] +
         fillQueued_.capacity() / 8 +
         suspects_.capacity() * sizeof suspects_[0] + slotsTouched_ * kPageBytes + (disks_ ? disks_->MemoryBytes() : 0);
}

bool EpochBuffer::InQuickSuccession() const { return MonotonicNs() - resetAtNs_ < kInQuickSuccessionNs; }

void EpochBuffer::NoteHotPages() {
  // A page that was protected was written, whatever became of it; of one that was left open only its change tells.
  std::vector<uint32_t> written;
  const bool quick = InQuickSuccession();
  if (quick)
    for (const Captured& captured : captured_)
      if (captured.changed || writtenIn_[captured.page] == 0) written.push_back(captured.page);
  size_t kept = 0;
  for (const uint32_t page : hotPages_) {
    writtenIn_[page] = quick ? static_cast<uint8_t>((writtenIn_[page] << 1) & kHotEpochs) : 0;
    if (writtenIn_[page] != 0) hotPages_[kept++] = page;
  }
  hotPages_.resize(kept);
  for (const uint32_t page : written) {
    if (writtenIn_[page] == 0) hotPages_.push_back(page);
    writtenIn_[page] |= 1;
  }
}

void EpochBuffer::Abort() {
  for (const Captured& captured : captured_) pending_[captured.page] = true;
  anyPending_ = anyPending_ || !captured_.empty();
  if (recording_) image_->Abandon();
  recording_ = false;
  if (disks_) disks_->GiveBack();
  ResetStaging();
}

void EpochBuffer::ResetStaging() {
  paused_.reset();
  for (const Captured& captured : captured_) capturedOf_[captured.page] = 0;
  captured_.clear();
  if (captured_.capacity() > 4 * slotsWarm_) captured_.shrink_to_fit();
  slotsTouched_ = std::max(slotsTouched_, slotsUsed_);
  slotsUsed_ = 0;
  // What a pause took beyond the usual goes back to the host, but later while one epoch follows the other: in each of their
  // pauses the guest would wait for as many page faults.
  const size_t keep = InQuickSuccession() ? kStagingQuickly * slotsWarm_ : slotsWarm_;
  resetAtNs_ = MonotonicNs();
  if (slotsTouched_ <= keep) return;
  madvise(Slot(keep), (slotsTouched_ - keep) * kPageBytes, MADV_DONTNEED);
  slotsTouched_ = keep;
}
