// Which pages of a QEMU process were written since the last look.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "helper_thread.h"
#include "memory.h"
#include "process.h"

struct page_region;

struct ScanOptions {
  // For a scan that a guest stands still for: a second thread takes a part of it.
  bool urgent = false;
  // The scan ends early when so many pages were found written; two threads may find twice as many. 0: no limit.
  size_t pagesMax = 0;
  // False: what was found is not protected again, and Rearm() does so where it is worth while.
  bool rearm = true;
};

struct ScanResult {
  bool complete = true;     // false: ended early, the next scan finds the rest
  int64_t helperCpuNs = 0;  // CPU time of the second thread
};

// Reads and re-arms the write protection that the shim registered, through the PAGEMAP_SCAN ioctl of the kernel (6.7+).
// It sees only writes through QEMU's own mapping: a device served by another process (vhost-user) would escape it.
class WriteTracker {
 public:
  // Throws Failure: ERR_NOT_TRACKED when the shim could not register the RAM, else what open() said.
  WriteTracker(int pid, std::shared_ptr<ControlPage> control, size_t ramBytes);
  ~WriteTracker();
  WriteTracker(const WriteTracker&) = delete;
  WriteTracker& operator=(const WriteTracker&) = delete;

  // Calls visit(firstPage, endPage), on this thread, for each run of written pages, which the kernel protects again in
  // the same step: a write that comes before or while the run is copied is seen by the next scan. Throws ERR_VM_DEAD if
  // the process died before the scan was over, since the kernel then reports too few pages and no error.
  template <typename Visit>
  ScanResult ScanAndRearm(const ScanOptions& options, Visit visit) {
    Begin(options);
    try {
      while (ScanChunk(&own_)) {
        for (const Run& run : own_.runs) visit(run.firstPage, run.endPage);
        own_.runs.clear();
      }
    } catch (...) {
      Stop();
      throw;
    }
    const ScanResult result = End();
    for (const Run& run : helped_.runs) visit(run.firstPage, run.endPage);
    return result;
  }
  // Protects pages again that such a scan left alone. Before they are copied, or while nobody writes. Throws as a scan does.
  void Rearm(size_t firstPage, size_t endPage);

 private:
  struct Run {
    size_t firstPage;
    size_t endPage;
  };
  // What one thread works with.
  struct Part {
    std::vector<page_region> regions;
    std::vector<Run> runs;
  };
  void Begin(const ScanOptions& options);
  bool ScanChunk(Part* part);
  size_t ScanOnce(uint64_t* at, uint64_t end, size_t pagesMax, Part* part, bool rearm);
  void Help();
  int64_t Stop();
  ScanResult End();
  void ThrowIfDead() const;

  const std::shared_ptr<ControlPage> control_;
  uint64_t base_;
  uint64_t bytes_;
  int pagemap_;

  Part own_;
  size_t pagesMax_ = 0;
  bool rearm_ = true;
  std::atomic<uint64_t> nextChunk_{0};  // offset of the first byte that nobody has taken yet
  std::atomic<size_t> foundPages_{0};
  std::atomic<bool> cutShort_{false};

  Part rearmed_;
  Part helped_;
  std::optional<Failure> helperFailure_;
  std::unique_ptr<HelperThread> helper_;  // last: its thread ends before what it works with
};
