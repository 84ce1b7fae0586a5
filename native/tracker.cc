#include "tracker.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "shim/kernel-abi.h"

// Two threads take chunks in turn, as each gets on. Halves would be simpler, and lost: QEMU saves its devices at the same
// time, and the pause would wait for the half whose thread found no CPU.
constexpr uint64_t kChunkBytes = 32u << 20;
constexpr size_t kRegionsPerChunk = kChunkBytes / kPageBytes / 2;  // every other page: more can not be
constexpr size_t kRegionsRearmed = 16;
// Smaller RAM is scanned before a second thread is awake.
constexpr size_t kHelpedRamBytesMin = 512u << 20;

WriteTracker::WriteTracker(int pid, std::shared_ptr<ControlPage> control, size_t ramBytes)
    : control_(std::move(control)) {
  const shadowvm_control* page = control_->page();
  if (__atomic_load_n(&page->tracking, __ATOMIC_ACQUIRE) != SHADOWVM_TRACKING_REGISTERED)
    throw Failure{"ERR_NOT_TRACKED", "userfaultfd",
                  std::string("QEMU's RAM is not registered for write tracking") +
                      (page->error ? std::string(": ") + strerror(page->error) : "")};
  base_ = page->ram_base;
  bytes_ = page->ram_bytes;
  if (bytes_ != ramBytes) throw Failure{"ERR_SIZE", "userfaultfd", "QEMU mapped another size of RAM than expected"};
  own_.regions.resize(kRegionsPerChunk);
  rearmed_.regions.resize(kRegionsRearmed);
  if (bytes_ >= kHelpedRamBytesMin && std::thread::hardware_concurrency() > 1) {
    helped_.regions.resize(kRegionsPerChunk);
    try {
      helper_ = std::make_unique<HelperThread>("shadowvm-scan");
    } catch (const std::system_error&) {
      // no more threads here: pauses are a little longer
    }
  }
  const std::string path = "/proc/" + std::to_string(pid) + "/pagemap";
  pagemap_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (pagemap_ < 0) throw ErrnoFailure(errno, "open", path);
}

WriteTracker::~WriteTracker() { close(pagemap_); }

void WriteTracker::Begin(const ScanOptions& options) {
  own_.runs.clear();
  helped_.runs.clear();
  helperFailure_.reset();
  pagesMax_ = options.pagesMax;
  rearm_ = options.rearm;
  nextChunk_ = 0;
  foundPages_ = 0;
  cutShort_ = false;
  if (options.urgent && helper_) helper_->Start([this] { Help(); });
}

// Adds the runs of the next chunk that nobody has taken. Returns false when there is none.
bool WriteTracker::ScanChunk(Part* part) {
  const uint64_t offset = nextChunk_.fetch_add(kChunkBytes);
  if (offset >= bytes_) return false;
  uint64_t at = base_ + offset;
  const uint64_t end = base_ + std::min(offset + kChunkBytes, bytes_);
  while (at < end) {
    const size_t found = foundPages_;
    if (pagesMax_ != 0 && found >= pagesMax_) {
      cutShort_ = true;
      nextChunk_ = bytes_;
      break;
    }
    foundPages_ += ScanOnce(&at, end, pagesMax_ == 0 ? 0 : pagesMax_ - found, part, rearm_);
  }
  return true;
}

// Scans from *at, moves *at to where the kernel got. Returns how many pages it found.
size_t WriteTracker::ScanOnce(uint64_t* at, uint64_t end, size_t pagesMax, Part* part, bool rearm) {
  struct pm_scan_arg scan = {};
  scan.size = sizeof scan;
  scan.flags = PM_SCAN_CHECK_WPASYNC | (rearm ? PM_SCAN_WP_MATCHING : 0);
  scan.start = *at;
  scan.end = end;
  scan.vec = reinterpret_cast<uint64_t>(part->regions.data());
  scan.vec_len = part->regions.size();  // never 0: some 6.17 kernels panic on that
  scan.max_pages = pagesMax;
  scan.category_mask = PAGE_IS_WRITTEN;
  scan.return_mask = PAGE_IS_WRITTEN;
  const int count = ioctl(pagemap_, PAGEMAP_SCAN, &scan);
  if (count < 0) {
    const int number = errno;
    ThrowIfDead();
    throw ErrnoFailure(number, "PAGEMAP_SCAN", "guest RAM");
  }
  if (scan.walk_end <= *at) throw Failure{"ERR_SCAN", "PAGEMAP_SCAN", "the kernel's scan made no progress"};
  *at = scan.walk_end;
  size_t pages = 0;
  for (int i = 0; i < count; i++) {
    const page_region& region = part->regions[static_cast<size_t>(i)];
    const Run run = {(region.start - base_) / kPageBytes, (region.end - base_) / kPageBytes};
    part->runs.push_back(run);
    pages += run.endPage - run.firstPage;
  }
  return pages;
}

void WriteTracker::Rearm(size_t firstPage, size_t endPage) {
  uint64_t at = base_ + firstPage * kPageBytes;
  const uint64_t end = base_ + endPage * kPageBytes;
  while (at < end) ScanOnce(&at, end, 0, &rearmed_, true);
  rearmed_.runs.clear();
}

// The second thread's part.
void WriteTracker::Help() {
  try {
    while (ScanChunk(&helped_)) {
    }
  } catch (const Failure& failure) {
    helperFailure_ = failure;
  } catch (const std::bad_alloc&) {
    helperFailure_ = Failure{"ENOMEM", "malloc", "out of memory"};
  }
}

// Nobody takes a chunk any more. Returns the CPU time of the second thread, ns.
int64_t WriteTracker::Stop() {
  nextChunk_ = bytes_;
  return helper_ ? helper_->Finish() : 0;
}

ScanResult WriteTracker::End() {
  const int64_t helperCpuNs = Stop();
  if (helperFailure_) throw *helperFailure_;
  ThrowIfDead();  // after the last look at the page tables, by whichever thread
  return {!cutShort_, helperCpuNs};
}

void WriteTracker::ThrowIfDead() const {
  if (control_->dead()) throw Failure{"ERR_VM_DEAD", "PAGEMAP_SCAN", "the VM's process died during the scan"};
}
