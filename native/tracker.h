// Which pages of a QEMU process were written since the last look.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "memory.h"
#include "process.h"

struct page_region;

// Reads and re-arms the write protection that the shim registered, through the PAGEMAP_SCAN ioctl of the kernel (6.7+).
// It sees only writes through QEMU's own mapping: a device served by another process (vhost-user) would escape it.
class WriteTracker {
 public:
  // Throws Failure: ERR_NOT_TRACKED when the shim could not register the RAM, else what open() said.
  WriteTracker(int pid, std::shared_ptr<ControlPage> control, size_t ramBytes);
  ~WriteTracker();
  WriteTracker(const WriteTracker&) = delete;
  WriteTracker& operator=(const WriteTracker&) = delete;

  // Calls visit(firstPage, endPage) for each run of written pages, which the kernel protects again in the same step: a
  // write that comes while the run is being copied is seen by the next scan. Throws ERR_VM_DEAD if the process died
  // before the scan was over, since the kernel then reports too few pages and no error.
  template <typename Visit>
  void ScanAndRearm(Visit visit) {
    for (uint64_t at = base_; at < base_ + bytes_;) {
      const size_t regions = ScanOnce(&at);
      for (size_t i = 0; i < regions; i++) visit(RegionStart(i), RegionEnd(i));
    }
    ThrowIfDead();
  }

 private:
  size_t ScanOnce(uint64_t* at);
  size_t RegionStart(size_t i) const;
  size_t RegionEnd(size_t i) const;
  void ThrowIfDead() const;

  const std::shared_ptr<ControlPage> control_;
  uint64_t base_;
  uint64_t bytes_;
  int pagemap_;
  std::vector<page_region> regions_;
};
