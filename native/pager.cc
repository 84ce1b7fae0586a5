#include "pager.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "clock_ns.h"
#include "descriptor.h"
#include "thread_nice.h"

constexpr size_t kTimesKept = 4096;
constexpr int kFaultNice = -10;  // a guest's processor waits
constexpr int kFillNice = 10;    // nobody waits
constexpr useconds_t kYieldUs = 50;
constexpr useconds_t kNoMemoryUs = 1000;
constexpr int64_t kThrottleSliceNs = 20'000'000;
constexpr size_t kMissedMax = 2048;

Pager::Pager(int pid, std::shared_ptr<ControlPage> control, std::shared_ptr<SharedMemory> ram,
             std::shared_ptr<const PageSource> source, OnTrouble onTrouble)
    : control_(std::move(control)),
      ram_(std::move(ram)),
      source_(std::move(source)),
      onTrouble_(std::move(onTrouble)),
      states_(control_) {
  const shadowvm_control* page = control_->page();
  const uint32_t tracking = __atomic_load_n(&page->tracking, __ATOMIC_ACQUIRE);
  if (page->lazy == 0 || tracking == SHADOWVM_TRACKING_UNSEEN || page->uffd < 0)
    throw Failure{"ERR_NOT_LAZY", "userfaultfd", "QEMU's RAM is not registered for missing pages"};
  if (page->ram_bytes != ram_->bytes || source_->pages() != ram_->bytes / kPageBytes ||
      states_.pages() < source_->pages())
    throw Failure{"ERR_SIZE", "userfaultfd", "QEMU, its RAM and the source of its pages differ in size"};
  base_ = page->ram_base;
  copyMode_ = tracking == SHADOWVM_TRACKING_REGISTERED ? UFFDIO_COPY_MODE_WP : 0;
  wakeup_ = eventfd(0, EFD_CLOEXEC);
  if (wakeup_ < 0) throw ErrnoFailure(errno, "eventfd", "pager");
  try {
    uffd_ = TakeDescriptor(pid, page->uffd);
  } catch (const Failure&) {
    close(wakeup_);
    throw;
  }
}

Pager::~Pager() {
  Stop();
  close(uffd_);
  close(wakeup_);
}

void Pager::Start(size_t faultThreads) {
  filling_ = true;
  RetryLeftOvers();
  for (size_t i = 0; i < faultThreads; i++)
    threads_.emplace_back([this] {
      pthread_setname_np(pthread_self(), "shadowvm-fault");
      SetThreadNice(kFaultNice);
      FaultLoop();
    });
}

void Pager::Stop() {
  stop_ = true;
  const uint64_t one = 1;
  (void)!write(wakeup_, &one, sizeof one);
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

// What a manager left that died in the middle: pages that it had claimed, and faults that it had read and not answered.
void Pager::RetryLeftOvers() {
  for (size_t page = 0; page < source_->pages(); page++) {
    if (states_.Get(page) != SHADOWVM_PAGE_INSTALLING) continue;
    const off_t at = static_cast<off_t>(page * kPageBytes);
    states_.Settle(page, lseek(ram_->fd, at, SEEK_DATA) == at ? SHADOWVM_PAGE_PRESENT : SHADOWVM_PAGE_ABSENT);
  }
  Wake(0, source_->pages());
}

void Pager::FaultLoop() {
  PageScratch scratch;
  // Faults on pages that another thread is just installing: looked at again when it is done.
  std::vector<size_t> deferred;
  while (!stop_) {
    struct pollfd fds[2] = {{uffd_, POLLIN, 0}, {wakeup_, POLLIN, 0}};
    if (poll(fds, 2, deferred.empty() ? -1 : 1) < 0 && errno != EINTR) return;
    deferred.erase(std::remove_if(deferred.begin(), deferred.end(), [&](size_t p) { return Serve(p, scratch); }),
                   deferred.end());
    // One at a time: the other threads take what comes at the same moment.
    struct uffd_msg message;
    if (!(fds[0].revents & POLLIN) || read(uffd_, &message, sizeof message) != static_cast<ssize_t>(sizeof message))
      continue;
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const int64_t startNs = MonotonicNs();
    serving_++;
    const size_t page = static_cast<size_t>((message.arg.pagefault.address - base_) / kPageBytes);
    if (page < source_->pages()) {
      faults_++;
      if (Serve(page, scratch))
        Record(page, MonotonicNs() - startNs);
      else
        deferred.push_back(page);
    }
    serving_--;
  }
  for (const size_t page : deferred) Wake(page, 1);  // they fault again, for whoever serves then
}

// Answers a fault. False: not yet.
bool Pager::Serve(size_t page, PageScratch& scratch) {
  switch (states_.Get(page)) {
    case SHADOWVM_PAGE_INSTALLING:
      // The installation itself wakes those who wait. To leave it at that would be wrong in one case: the guest gave the
      // page back, and touched it again, before its state was settled.
      return false;
    case SHADOWVM_PAGE_PRESENT:
      return GiveZeros(page);
    case SHADOWVM_PAGE_ABSENT:
      break;
  }
  Installed asked = Installed::kElsewhere;
  try {
    source_->ReadAround(page, scratch, [&](size_t visited, const uint8_t* content) {
      if (visited == page)
        asked = Install(page, content);
      else if (content != nullptr)
        Install(visited, content);
    });
  } catch (const Failure& failure) {
    if (asked == Installed::kYes) return true;  // it was another page, stored with this one
    Trouble(page, failure);
    return true;  // never the wrong bytes: its thread goes on waiting
  } catch (const std::bad_alloc&) {
    return false;
  }
  return asked == Installed::kYes || control_->dead();
}

// A fault on a page that was installed once. Either it was installed after the fault had come, or the guest has given it
// back since (balloon, punched hole): then it is zeros now, and never again what the source says. The kernel knows which:
// it installs zeros only where there is nothing. They are not write-protected, so that the next epoch sees the change.
bool Pager::GiveZeros(size_t page) {
  struct uffdio_zeropage zero = {};
  zero.range = {base_ + page * kPageBytes, kPageBytes};
  while (ioctl(uffd_, UFFDIO_ZEROPAGE, &zero) != 0) {
    if (errno == EEXIST) {
      Wake(page, 1);
      return true;
    }
    if (errno == ENOMEM && !stop_) usleep(kNoMemoryUs);
    else if (errno != EAGAIN) return true;  // the process is gone
    if (stop_) return true;
  }
  return true;
}

Pager::Installed Pager::Install(size_t page, const uint8_t* content) {
  static const uint8_t zeros[kPageBytes] alignas(kPageBytes) = {};
  if (!states_.Claim(page)) return Installed::kElsewhere;
  if (!Copy(page, content != nullptr ? content : zeros)) {
    states_.Settle(page, SHADOWVM_PAGE_ABSENT);
    return Installed::kFailed;
  }
  states_.Settle(page, SHADOWVM_PAGE_PRESENT);
  installedPages_++;
  return Installed::kYes;
}

// UFFDIO_COPY installs the page and wakes those who wait for it. False: the process is gone, or we are stopping.
bool Pager::Copy(size_t page, const uint8_t* content) {
  struct uffdio_copy copy = {};
  copy.dst = base_ + page * kPageBytes;
  copy.src = reinterpret_cast<uint64_t>(content);
  copy.len = kPageBytes;
  copy.mode = copyMode_;
  while (ioctl(uffd_, UFFDIO_COPY, &copy) != 0) {
    if (errno == EEXIST) {  // a manager that died had installed it and not said so
      Wake(page, 1);
      return true;
    }
    if (errno == EAGAIN) {
      sched_yield();
    } else if (errno == ENOMEM) {  // of the host, or of the VM's cgroup
      usleep(kNoMemoryUs);
    } else {
      return false;
    }
    if (stop_) return false;
  }
  return true;
}

void Pager::Wake(size_t page, size_t pages) {
  struct uffdio_range range = {base_ + page * kPageBytes, pages * kPageBytes};
  ioctl(uffd_, UFFDIO_WAKE, &range);  // fails only when the process is gone
}

void Pager::Trouble(size_t page, const Failure& failure) {
  if (!troubled_.exchange(true)) onTrouble_(page, failure);
}

void Pager::Record(size_t page, int64_t ns) {
  const float ms = static_cast<float>(ns) / 1e6f;
  std::lock_guard<std::mutex> lock(timesMutex_);
  if (missed_.size() < kMissedMax) missed_.push_back(static_cast<uint32_t>(page));
  if (times_.size() < kTimesKept)
    times_.push_back(ms);
  else
    times_[faults_ % kTimesKept] = ms;
  timesMax_ = std::max(timesMax_, ms);
}

std::vector<uint32_t> Pager::Needed(size_t index, const std::vector<uint32_t>& before) const {
  std::lock_guard<std::mutex> lock(timesMutex_);
  return MergeHotPages(index < hot_.size() ? hot_[index] : std::vector<uint32_t>(), missed_, before);
}

// Faults first; then the limit.
void Pager::WaitForTurn(int64_t* nextNs) {
  while (serving_ > 0 && !stop_ && !control_->dead()) usleep(kYieldUs);
  const uint64_t limit = fillBytesPerSecond_;
  if (limit == 0) {
    *nextNs = 0;
    return;
  }
  const int64_t pageNs = static_cast<int64_t>(kPageBytes * 1'000'000'000ull / limit);
  int64_t nowNs = MonotonicNs();
  // What was not used is not saved up, beyond one slice: a limit is no mean of a whole fill.
  *nextNs = std::max(*nextNs, nowNs - kThrottleSliceNs) + pageNs;
  for (; *nextNs > nowNs && !stop_ && !control_->dead() && fillBytesPerSecond_ == limit; nowNs = MonotonicNs())
    usleep(static_cast<useconds_t>(std::min(*nextNs - nowNs, kThrottleSliceNs) / 1000 + 1));
}

void Pager::KeepHot(const std::string& path, const std::vector<uint32_t>& pages) const {
  SetThreadNice(kFillNice);
  WriteHotPages(path, *source_, pages, stop_);
}

// Those that have changed since the file was written come from the source, like all others. Pages of zeros too: a guest
// that touched them once does so again.
std::vector<uint32_t> Pager::FillHot(const HotPages& hot, PageScratch& scratch) {
  std::vector<uint32_t> changed;
  std::vector<uint8_t> contents(kHotChunkPages * kPageBytes);
  for (size_t chunk = 0; chunk < hot.chunks.size() && !stop_; chunk++) {
    const bool whole = hot.Unpack(chunk, contents.data());
    for (size_t i = 0; i < hot.PagesOf(chunk); i++) {
      const uint32_t page = hot.numbers[chunk * kHotChunkPages + i];
      if (page >= source_->pages() || states_.Get(page) != SHADOWVM_PAGE_ABSENT) continue;
      const uint8_t* content = contents.data() + i * kPageBytes;
      if (!whole || !source_->Holds(page, content))
        changed.push_back(page);
      else if (Install(page, content) == Installed::kYes)
        filledPages_++;
    }
  }
  source_->Expect(changed);
  for (size_t i = 0; i < changed.size() && !stop_; i++) FillPage(changed[i], scratch, true);
  return changed;
}

void Pager::FillPage(size_t page, PageScratch& scratch, bool zeros) {
  if (states_.Get(page) != SHADOWVM_PAGE_ABSENT) return;
  try {
    source_->ReadAround(page, scratch, [&](size_t visited, const uint8_t* content) {
      const bool wanted = content != nullptr || (zeros && visited == page);
      if (wanted && Install(visited, content) == Installed::kYes) filledPages_++;
    });
  } catch (const Failure& failure) {
    Trouble(page, failure);
    if (!failed_) firstFailure_ = failure;
    failed_ = true;
  }
  if (control_->dead()) throw Failure{"ERR_VM_DEAD", "pager", "the VM's process died while it was filled"};
}

FillResult Pager::Fill(const std::vector<std::string>& hotPaths) {
  const int64_t startNs = MonotonicNs();
  PageScratch scratch;
  SetThreadNice(kFaultNice);
  std::vector<uint32_t> expected;
  for (const std::string& path : hotPaths) {
    const HotPages hot = ReadHotPages(path);
    {
      std::lock_guard<std::mutex> lock(timesMutex_);
      hot_.push_back(hot.numbers);
    }
    const std::vector<uint32_t> changed = FillHot(hot, scratch);
    expected.insert(expected.end(), changed.begin(), changed.end());
  }
  SetThreadNice(kFillNice);
  int64_t nextNs = 0;
  const std::vector<uint32_t> order = source_->FillOrder();
  for (size_t i = 0; i < order.size() && !stop_; i++) {
    if (states_.Get(order[i]) != SHADOWVM_PAGE_ABSENT) continue;
    WaitForTurn(&nextNs);
    FillPage(order[i], scratch, false);
  }
  // What a fault thread is installing at this moment.
  for (const uint32_t page : order)
    while (states_.Get(page) == SHADOWVM_PAGE_INSTALLING && !stop_) usleep(kYieldUs);
  source_->Forget(expected);
  filling_ = false;
  if (stop_) throw Failure{"ERR_CLOSED", "pager", "this pager was closed before the memory was filled"};
  if (failed_) throw firstFailure_;
  // From here on whatever is missing is zeros, and the shim answers for it too: QEMU needs no manager any more.
  __atomic_store_n(&control_->page()->filled, 1, __ATOMIC_RELEASE);
  control_->Nudge();
  return {installedPages_, faults_, MonotonicNs() - startNs};
}

PagerStats Pager::Stats() const {
  PagerStats stats;
  stats.faults = faults_;
  stats.filledPages = filledPages_;
  stats.filling = filling_ && !stop_;
  std::vector<float> times;
  {
    std::lock_guard<std::mutex> lock(timesMutex_);
    times = times_;
    stats.faultMsMax = timesMax_;
  }
  if (!times.empty()) {
    const auto middle = times.begin() + static_cast<ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    stats.faultMsP50 = *middle;
  }
  return stats;
}
