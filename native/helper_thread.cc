#include "helper_thread.h"

#include <pthread.h>
#include <time.h>

#include <utility>

#include "clock_ns.h"
#include "thread_nice.h"

HelperThread::HelperThread(const char* name) {
  if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) CPU_ZERO(&allowed_);
  thread_ = std::thread([this, name] {
    pthread_setname_np(pthread_self(), name);
    // As the worker's own: a guest stands still meanwhile. Failing is fine.
    SetThreadNice(-10);
    Loop();
  });
}

HelperThread::~HelperThread() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

// Left to itself, the kernel wakes the thread where its owner runs when no CPU is idle, and there it takes the owner's
// place for as long as the work lasts: measured, two threads were no faster than one.
void HelperThread::KeepAwayFromThisCpu() {
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu == avoidedCpu_) return;
  cpu_set_t others = allowed_;
  CPU_CLR(static_cast<size_t>(cpu), &others);
  if (CPU_COUNT(&others) == 0) return;
  pthread_setaffinity_np(thread_.native_handle(), sizeof others, &others);  // failing is fine: only slower
  avoidedCpu_ = cpu;
}

void HelperThread::Start(std::function<void()> work) {
  KeepAwayFromThisCpu();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = std::move(work);
    state_ = State::kGiven;
  }
  wake_.notify_one();
}

int64_t HelperThread::Finish() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (state_ == State::kGiven) state_ = State::kIdle;
  done_.wait(lock, [this] { return state_ == State::kIdle; });
  return std::exchange(cpuNs_, 0);
}

void HelperThread::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return state_ == State::kGiven || stop_; });
    if (stop_) return;
    state_ = State::kWorking;
    lock.unlock();
    const int64_t startNs = ClockNs(CLOCK_THREAD_CPUTIME_ID);
    work_();
    const int64_t cpuNs = ClockNs(CLOCK_THREAD_CPUTIME_ID) - startNs;
    lock.lock();
    cpuNs_ = cpuNs;
    state_ = State::kIdle;
    done_.notify_one();
  }
}
