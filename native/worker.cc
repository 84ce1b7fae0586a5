#include "worker.h"

#include <pthread.h>

#include "addon.h"
#include "thread_nice.h"

Failure ErrnoFailure(int number, const std::string& syscall, const std::string& subject) {
  const char* name = strerrorname_np(number);
  return {name ? name : "EUNKNOWN", syscall, syscall + " " + subject + ": " + strerror(number)};
}

Worker::Worker(Napi::Env env, const char* name, std::function<void()> interrupt)
    : env_(env), interrupt_(std::move(interrupt)) {
  notify_ = Notify::New(env, name, 0, 1);
  notify_.Unref(env);  // an idle worker does not keep the process alive
  // Hooks run last in, first out: this one before that of notify_.
  napi_add_env_cleanup_hook(env, EndWithEnvironment, this);
  thread_ = std::thread([this, name] {
    pthread_setname_np(pthread_self(), name);
    // The last copy of an epoch runs while the guest stands still: ahead of other work, if we may. Failing is fine.
    SetThreadNice(-10);
    Loop();
  });
}

Worker::~Worker() {
  if (!ended_) napi_remove_env_cleanup_hook(env_, EndWithEnvironment, this);
  End();
}

void Worker::EndWithEnvironment(void* self) { static_cast<Worker*>(self)->End(); }  // hooks of a dead one are removed

void Worker::End() {
  if (ended_) return;
  ended_ = true;
  if (interrupt_) interrupt_();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
  notify_.Release();
}

Napi::Promise Worker::Queue(Napi::Env env, Napi::Object owner, Job job, int aheadMax) {
  if (jobs_ > aheadMax) throw MakeError(env, "ERR_BUSY", "worker", "another operation on this object is still under way");
  auto* pending = new Pending(env);  // owned by the loop, then by Settle
  pending->worker = this;
  pending->owner = Napi::Persistent(owner);
  pending->job = std::move(job);
  Napi::Promise promise = pending->deferred.Promise();
  jobs_++;
  notify_.Ref(env);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back(pending);
  }
  wake_.notify_one();
  return promise;
}

void Worker::Loop() {
  for (;;) {
    Pending* pending;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return !waiting_.empty() || stop_; });
      if (waiting_.empty()) return;
      pending = waiting_.front();
      waiting_.pop_front();
    }
    try {
      pending->finish = pending->job();
    } catch (const Failure& failure) {
      pending->failed = true;
      pending->failure = failure;
    } catch (const std::bad_alloc&) {
      pending->failed = true;
      pending->failure = {"ENOMEM", "malloc", "out of memory"};
    }
    pending->job = nullptr;
    if (notify_.BlockingCall(pending) != napi_ok) delete pending;  // the environment is going down
  }
}

void Worker::Settle(Napi::Env env, Napi::Function, std::nullptr_t*, Pending* pending) {
  if (env != nullptr) {
    Worker* const worker = pending->worker;
    if (--worker->jobs_ == 0) worker->notify_.Unref(env);
    Napi::HandleScope scope(env);
    if (pending->failed) {
      const Failure& f = pending->failure;
      pending->deferred.Reject(MakeError(env, f.code, f.syscall, f.message).Value());
    } else {
      pending->deferred.Resolve(pending->finish(env));
    }
  } else {
    pending->owner.SuppressDestruct();  // its environment is gone, and the reference with it
  }
  delete pending;
}
