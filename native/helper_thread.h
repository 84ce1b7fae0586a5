// A second thread beside its owner's own, for work that two can do at once.
#pragma once
#include <sched.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

// Kept, since starting a thread takes longer than the work that it is for. Asleep between two pieces of work.
//
// Not thread-safe: one owner calls Start() and then Finish().
class HelperThread {
 public:
  explicit HelperThread(const char* name);
  ~HelperThread();
  HelperThread(const HelperThread&) = delete;
  HelperThread& operator=(const HelperThread&) = delete;

  // `work` must not throw, and must be such that it may as well not be done at all: see Finish().
  void Start(std::function<void()> work);
  // Waits until the work is done, or takes it back when the thread has not come to it yet: on a busy host the owner
  // would otherwise wait for a CPU. Returns the CPU time that it took, ns; 0 when nothing was started.
  int64_t Finish();

 private:
  enum class State { kIdle, kGiven, kWorking };
  void Loop();
  void KeepAwayFromThisCpu();

  std::mutex mutex_;
  std::condition_variable wake_;  // the thread waits for work
  std::condition_variable done_;  // the owner waits for its end
  State state_ = State::kIdle;    // guarded by mutex_, as are the following
  bool stop_ = false;
  int64_t cpuNs_ = 0;
  std::function<void()> work_;
  cpu_set_t allowed_;
  int avoidedCpu_ = -1;
  std::thread thread_;
};
