// Fills a lazy QEMU's RAM from a source of pages while its guest runs: what it touches first, the rest behind.
//
//  guest touches an absent page ─▶ its thread waits in the kernel ─▶ userfaultfd ─▶ fault thread ─┐ read from the source,
//                                                  the source's FillOrder() ─▶ fill thread ───────┴▶ claim, UFFDIO_COPY
//
// Pages are installed write-protected: tracking starts clean, and what is written from then on is all that differs from
// the source. Pages of zeros are installed only when they are touched: memory that was never used takes none.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "hot_pages.h"
#include "page_states.h"
#include "worker.h"

struct FillResult {
  uint64_t pages = 0;   // installed, by faults or behind them
  uint64_t faults = 0;  // served while the fill was under way
  int64_t ns = 0;
};

struct PagerStats {
  uint64_t faults = 0;
  double faultMsP50 = 0;  // from the kernel's word of the fault to the wake-up; of the newest ones
  double faultMsMax = 0;  // of all
  uint64_t filledPages = 0;  // by the fill thread
  bool filling = false;
};

class Pager {
 public:
  // Told once, from any thread: the source failed to give a page. Threads of the guest that touched it wait for ever:
  // whoever hears this ends that QEMU.
  using OnTrouble = std::function<void(size_t page, const Failure& failure)>;

  // Throws Failure: ERR_NOT_LAZY, ERR_SIZE, or why the userfaultfd could not be taken.
  Pager(int pid, std::shared_ptr<ControlPage> control, std::shared_ptr<SharedMemory> ram,
        std::shared_ptr<const PageSource> source, OnTrouble onTrouble);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // Begins to serve faults; those that an earlier manager left unanswered come again. There must be no other pager.
  void Start(size_t faultThreads);
  // Installs every page that is not all zeros; to be called once, after Start, on a thread of its own. The hot pages of
  // these files (hot_pages.h) come first, at once, one file after the other. Throws Failure: ERR_CLOSED after Stop,
  // ERR_VM_DEAD, or the failure of the first page that the source could not give.
  FillResult Fill(const std::vector<std::string>& hotPaths);
  // The pages of the hot file of that index, and those that were waited for all the same since the start, without those
  // that are in `before`: what the next awakening will need.
  std::vector<uint32_t> Needed(size_t index, const std::vector<uint32_t>& before) const;
  // Writes a file of hot pages from the source; gives up after Stop. Throws Failure.
  void KeepHot(const std::string& path, const std::vector<uint32_t>& pages) const;
  // 0: no limit.
  void Throttle(uint64_t bytesPerSecond) { fillBytesPerSecond_ = bytesPerSecond; }
  // Ends the threads. Faults are served no more: a guest that touches an absent page waits until another pager starts.
  void Stop();
  PagerStats Stats() const;

 private:
  enum class Installed { kYes, kElsewhere, kFailed };
  void FaultLoop();
  bool Serve(size_t page, PageScratch& scratch);
  Installed Install(size_t page, const uint8_t* content);
  bool GiveZeros(size_t page);
  bool Copy(size_t page, const uint8_t* content);
  void Wake(size_t page, size_t pages);
  void RetryLeftOvers();
  void Trouble(size_t page, const Failure& failure);
  void Record(size_t page, int64_t ns);
  void WaitForTurn(int64_t* nextNs);
  // Returns those that had changed, which the page cache of the source holds now.
  std::vector<uint32_t> FillHot(const HotPages& hot, PageScratch& scratch);
  void FillPage(size_t page, PageScratch& scratch, bool zeros);

  const std::shared_ptr<ControlPage> control_;
  const std::shared_ptr<SharedMemory> ram_;
  const std::shared_ptr<const PageSource> source_;
  const OnTrouble onTrouble_;
  PageStates states_;
  uint64_t base_;
  uint64_t copyMode_;
  int uffd_ = -1;
  int wakeup_ = -1;  // eventfd, readable from Stop() on
  std::vector<std::thread> threads_;

  std::atomic<bool> stop_{false};
  std::atomic<bool> troubled_{false};
  std::atomic<bool> filling_{false};
  std::atomic<int> serving_{0};  // faults read and not answered yet
  std::atomic<uint64_t> fillBytesPerSecond_{0};
  std::atomic<uint64_t> faults_{0};
  std::atomic<uint64_t> installedPages_{0};
  std::atomic<uint64_t> filledPages_{0};

  bool failed_ = false;  // the fill's own
  Failure firstFailure_;

  mutable std::mutex timesMutex_;
  std::vector<float> times_;  // ms, a ring of the newest
  float timesMax_ = 0;
  std::vector<std::vector<uint32_t>> hot_;  // of each file
  std::vector<uint32_t> missed_;            // that were waited for, up to kMissedMax
};
