// Threads of another process: whether all of them sleep. A guest whose vCPUs do has dealt with what it was asked.
#pragma once
#include <memory>
#include <vector>

#include <napi.h>

class ThreadWatch {
 public:
  // Throws Failure: ESRCH when there is no such thread.
  ThreadWatch(int pid, const std::vector<int>& tids);
  ~ThreadWatch();
  ThreadWatch(const ThreadWatch&) = delete;
  ThreadWatch& operator=(const ThreadWatch&) = delete;

  // At this moment, as the kernel's scheduler has it: 5 µs each. A thread that has ended sleeps for good.
  bool AllSleep() const;

 private:
  std::vector<int> stats_;
};

// The JavaScript object ThreadWatch(pid, tids).
class ThreadWatchObject : public Napi::ObjectWrap<ThreadWatchObject> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit ThreadWatchObject(const Napi::CallbackInfo& info);
  // nullptr when the value is no open ThreadWatch.
  static std::shared_ptr<const ThreadWatch> From(Napi::Value value);

 private:
  Napi::Value AllSleep(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  static Napi::FunctionReference constructor_;
  std::shared_ptr<const ThreadWatch> watch_;
};
