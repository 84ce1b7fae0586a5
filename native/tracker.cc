#include "tracker.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "shim/kernel-abi.h"

constexpr size_t kRegionsPerScan = 8192;

WriteTracker::WriteTracker(int pid, std::shared_ptr<ControlPage> control, size_t ramBytes)
    : control_(std::move(control)), regions_(kRegionsPerScan) {
  const shadowvm_control* page = control_->page();
  if (__atomic_load_n(&page->tracking, __ATOMIC_ACQUIRE) != SHADOWVM_TRACKING_REGISTERED)
    throw Failure{"ERR_NOT_TRACKED", "userfaultfd",
                  std::string("QEMU's RAM is not registered for write tracking") +
                      (page->error ? std::string(": ") + strerror(page->error) : "")};
  base_ = page->ram_base;
  bytes_ = page->ram_bytes;
  if (bytes_ != ramBytes) throw Failure{"ERR_SIZE", "userfaultfd", "QEMU mapped another size of RAM than expected"};
  const std::string path = "/proc/" + std::to_string(pid) + "/pagemap";
  pagemap_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (pagemap_ < 0) throw ErrnoFailure(errno, "open", path);
}

WriteTracker::~WriteTracker() { close(pagemap_); }

// Scans from *at, moves *at to where the kernel got, returns the number of regions found.
size_t WriteTracker::ScanOnce(uint64_t* at) {
  struct pm_scan_arg scan = {};
  scan.size = sizeof scan;
  scan.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
  scan.start = *at;
  scan.end = base_ + bytes_;
  scan.vec = reinterpret_cast<uint64_t>(regions_.data());
  scan.vec_len = regions_.size();  // never 0: some 6.17 kernels panic on that
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
  return static_cast<size_t>(count);
}

size_t WriteTracker::RegionStart(size_t i) const { return (regions_[i].start - base_) / kPageBytes; }
size_t WriteTracker::RegionEnd(size_t i) const { return (regions_[i].end - base_) / kPageBytes; }

void WriteTracker::ThrowIfDead() const {
  if (control_->dead()) throw Failure{"ERR_VM_DEAD", "PAGEMAP_SCAN", "the VM's process died during the scan"};
}
