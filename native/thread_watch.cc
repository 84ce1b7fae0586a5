#include "thread_watch.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "addon.h"
#include "memory.h"

constexpr size_t kStatBytesMax = 256;  // to behind the state: a number, a name of at most 64 bytes
constexpr size_t kThreadsMax = 1024;

ThreadWatch::ThreadWatch(int pid, const std::vector<int>& tids) {
  for (const int tid : tids) {
    const std::string path = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/stat";
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      const int number = errno == ENOENT ? ESRCH : errno;
      for (const int each : stats_) close(each);
      throw ErrnoFailure(number, "open", path);
    }
    stats_.push_back(fd);
  }
}

ThreadWatch::~ThreadWatch() {
  for (const int fd : stats_) close(fd);
}

// "4711 (its name, which may hold anything) S 1 …", proc_pid_stat(5).
static bool Sleeps(int fd) {
  char line[kStatBytesMax];
  const ssize_t bytes = pread(fd, line, sizeof line, 0);
  if (bytes <= 0) return true;  // it has ended
  const auto* bracket = static_cast<const char*>(memrchr(line, ')', static_cast<size_t>(bytes)));
  return bracket != nullptr && line + bytes - bracket > 2 && bracket[2] == 'S';
}

bool ThreadWatch::AllSleep() const { return std::all_of(stats_.begin(), stats_.end(), Sleeps); }

Napi::FunctionReference ThreadWatchObject::constructor_;

void ThreadWatchObject::Register(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(env, "ThreadWatch",
                                           {InstanceMethod<&ThreadWatchObject::AllSleep>("allSleep"),
                                            InstanceMethod<&ThreadWatchObject::Close>("close")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("ThreadWatch", constructor);
}

ThreadWatchObject::ThreadWatchObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ThreadWatchObject>(info) {
  const char* const usage = "ThreadWatch(pid, tids)";
  const int pid = static_cast<int>(WholeNumber(info[0], 1, INT32_MAX, "ThreadWatch", usage));
  if (!info[1].IsArray()) throw MakeTypeError(info.Env(), "ThreadWatch", usage);
  const Napi::Array list = info[1].As<Napi::Array>();
  if (list.Length() > kThreadsMax) throw MakeTypeError(info.Env(), "ThreadWatch", "too many threads");
  std::vector<int> tids;
  for (uint32_t i = 0; i < list.Length(); i++)
    tids.push_back(static_cast<int>(WholeNumber(list[i], 1, INT32_MAX, "ThreadWatch", usage)));
  try {
    watch_ = std::make_shared<ThreadWatch>(pid, tids);
  } catch (const Failure& f) {
    throw MakeError(info.Env(), f.code, f.syscall, f.message);
  }
}

Napi::Value ThreadWatchObject::AllSleep(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), watch_ == nullptr || watch_->AllSleep());
}

void ThreadWatchObject::Close(const Napi::CallbackInfo&) { watch_.reset(); }

std::shared_ptr<const ThreadWatch> ThreadWatchObject::From(Napi::Value value) {
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor_.Value())) return nullptr;
  return Unwrap(value.As<Napi::Object>())->watch_;
}

void RegisterThreadWatch(Napi::Env env, Napi::Object exports) { ThreadWatchObject::Register(env, exports); }
