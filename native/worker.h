// A thread that runs one job at a time off the event loop and settles a promise with its outcome.
//
// Each protected VM has one of its own. libuv's pool of four would do the same work, but there a pause of one VM could
// wait behind four commits of others, or behind a slow fsync.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include <napi.h>

// What a job throws; becomes an Error with code and syscall.
struct Failure {
  std::string code;
  std::string syscall;
  std::string message;
};

Failure ErrnoFailure(int number, const std::string& syscall, const std::string& subject);

class Worker {
 public:
  // Runs on the event loop after the job, makes the promise's value.
  using Finish = std::function<Napi::Value(Napi::Env)>;
  // Runs on the worker's thread; may throw Failure.
  using Job = std::function<Finish()>;

  // `interrupt` asks a long job to end early; called when the worker is to end, from the event loop.
  Worker(Napi::Env env, const char* name, std::function<void()> interrupt = nullptr);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Throws ERR_BUSY while a job is under way: callers take turns. `owner` is the object that this worker is part of: it is
  // not collected while its job is under way.
  Napi::Promise Run(Napi::Env env, Napi::Object owner, Job job) { return Queue(env, owner, std::move(job), 0); }
  // As Run, but one job may be under way: this one follows it at once, without a word from the event loop, however it ends.
  Napi::Promise RunBehind(Napi::Env env, Napi::Object owner, Job job) { return Queue(env, owner, std::move(job), 1); }
  bool busy() const { return jobs_ > 0; }

 private:
  struct Pending {
    explicit Pending(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}
    Napi::Promise::Deferred deferred;
    Worker* worker = nullptr;
    Napi::ObjectReference owner;
    Job job;
    Finish finish;
    bool failed = false;
    Failure failure;
  };
  Napi::Promise Queue(Napi::Env env, Napi::Object owner, Job job, int aheadMax);
  static void Settle(Napi::Env env, Napi::Function, std::nullptr_t*, Pending* pending);
  // Ends the thread and lets go of the event loop. Idempotent: an environment that goes down does it before the objects
  // in it are finalized, because by then Node has freed what notify_ stands for.
  void End();
  static void EndWithEnvironment(void* self);
  void Loop();

  using Notify = Napi::TypedThreadSafeFunction<std::nullptr_t, Pending, Settle>;
  const Napi::Env env_;
  const std::function<void()> interrupt_;
  Notify notify_;
  bool ended_ = false;
  int jobs_ = 0;  // not settled yet; event loop's side only
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Pending*> waiting_;  // guarded by mutex_
  bool stop_ = false;             // guarded by mutex_
  std::thread thread_;
};
