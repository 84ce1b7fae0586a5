// Keeps background work within a share of one core, and ends it when it is to stop.
#pragma once
#include <time.h>

#include <algorithm>
#include <atomic>

#include "../clock_ns.h"
#include "../worker.h"

class Pace {
 public:
  Pace(int dutyPercent, const std::atomic<bool>& stop)
      : dutyPercent_(std::min(std::max(dutyPercent, 1), 100)), stop_(stop), startedNs_(MonotonicNs()) {}
  // Between two small pieces of work. Throws ERR_CANCELLED.
  void Step() {
    if (stop_.load(std::memory_order_relaxed)) throw Failure{"ERR_CANCELLED", "image", "stopped before it was done"};
    const int64_t workedNs = MonotonicNs() - startedNs_;
    if (dutyPercent_ == 100 || workedNs < kPieceNs) return;
    const int64_t restNs = std::min(workedNs * (100 - dutyPercent_) / dutyPercent_, kMaxRestNs);
    const struct timespec rest = {restNs / 1000000000, restNs % 1000000000};
    nanosleep(&rest, nullptr);
    startedNs_ = MonotonicNs();
  }

 private:
  static constexpr int64_t kPieceNs = 2000000;
  static constexpr int64_t kMaxRestNs = 500000000;  // a stop is not noticed earlier
  const int dutyPercent_;
  const std::atomic<bool>& stop_;
  int64_t startedNs_;
};
