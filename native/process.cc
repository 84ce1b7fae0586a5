#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "addon.h"
#include "clock_ns.h"
#include "descriptor.h"
#include "guest_pause.h"
#include "page_states.h"

// Where in the file the disks begin: behind the page and the states of the RAM's pages.
static size_t ControlBytes(size_t ramBytes) {
  const size_t pages = (ramBytes + kPageBytes - 1) / kPageBytes;
  return SHADOWVM_CONTROL_BYTES + (pages + kPageBytes - 1) / kPageBytes * kPageBytes;
}

ControlPage::ControlPage(std::shared_ptr<SharedMemory> memory, size_t disksOffset)
    : memory_(std::move(memory)), disksOffset_(disksOffset) {}

ControlPage::ControlPage(size_t ramBytes, const std::vector<int>& disks)
    : ControlPage(std::make_shared<SharedMemory>("shadowvm-control",
                                                 ControlBytes(ramBytes) + disks.size() * sizeof(shadowvm_disk)),
                  ControlBytes(ramBytes)) {
  page()->magic = SHADOWVM_CONTROL_MAGIC;
  page()->uffd = -1;
  page()->disks_offset = disksOffset_;
  page()->disk_count = static_cast<uint32_t>(disks.size());
  page()->marks_epoch = SHADOWVM_NO_MARKS;
  page()->pause.hold = -1;
  for (size_t i = 0; i < disks.size(); i++) {
    struct stat st;
    if (fstat(disks[i], &st) != 0) throw ErrnoFailure(errno, "fstat", "a disk");
    page()->disk_files[i] = {st.st_dev, st.st_ino};
  }
  // Not blocking, for the shim as for us: the pipe is only ever looked at.
  if (pipe2(lifeline_, O_CLOEXEC | O_NONBLOCK) != 0) throw ErrnoFailure(errno, "pipe2", "lifeline");
  bell_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (bell_ < 0) throw ErrnoFailure(errno, "eventfd", "bell");
}

std::shared_ptr<ControlPage> ControlPage::Adopt(int pid) {
  const std::shared_ptr<SharedMemory> memory = SharedMemory::Take(pid, SHADOWVM_FD_CONTROL);
  const auto* page = reinterpret_cast<const shadowvm_control*>(memory->base);
  const auto isControl = [&] {
    if (memory->bytes <= SHADOWVM_CONTROL_BYTES || page->magic != SHADOWVM_CONTROL_MAGIC) return false;
    const size_t disks = page->disk_count * sizeof(shadowvm_disk);
    return page->disk_count <= SHADOWVM_DISKS_MAX && page->disks_offset > SHADOWVM_CONTROL_BYTES &&
           page->disks_offset % kPageBytes == 0 && page->disks_offset + disks == memory->bytes;
  };
  if (!isControl()) throw Failure{"ERR_NOT_CONTROL", "mmap", "the process has no control page of this version"};
  std::shared_ptr<ControlPage> control(new ControlPage(memory, page->disks_offset));
  control->lifeline_[0] = TakeDescriptor(pid, SHADOWVM_FD_LIFELINE);
  const std::string path = "/proc/self/fd/" + std::to_string(control->lifeline_[0]);
  control->lifeline_[1] = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK);
  if (control->lifeline_[1] < 0) throw ErrnoFailure(errno, "open", "lifeline");
  control->Nudge();
  control->bell_ = TakeDescriptor(pid, SHADOWVM_FD_BELL);
  GuestPause::GiveUp(*control);  // what it was in the middle of: its guest runs on
  return control;
}

ControlPage::~ControlPage() {
  for (const int fd : {lifeline_[0], lifeline_[1], bell_})
    if (fd >= 0) close(fd);
}

// In an order that a death in the middle leaves unknown, and not wrong.
void ControlPage::SetMarked(const std::string& imageId, uint64_t epoch) {
  if (memcmp(page()->marks_image, imageId.data(), std::min(imageId.size(), sizeof page()->marks_image)) != 0) {
    ForgetMarked();
    memset(page()->marks_image, 0, sizeof page()->marks_image);
    memcpy(page()->marks_image, imageId.data(), std::min(imageId.size(), sizeof page()->marks_image));
  }
  __atomic_store_n(&page()->marks_epoch, epoch, __ATOMIC_SEQ_CST);
}

void ControlPage::ForgetMarked() { __atomic_store_n(&page()->marks_epoch, SHADOWVM_NO_MARKS, __ATOMIC_SEQ_CST); }

size_t ControlPage::IndexOfDisk(int fd) const {
  struct stat st;
  if (fstat(fd, &st) != 0) throw ErrnoFailure(errno, "fstat", "a disk");
  for (size_t i = 0; i < diskCount(); i++)
    if (page()->disk_files[i].device == st.st_dev && page()->disk_files[i].inode == st.st_ino) return i;
  throw Failure{"ERR_NOT_TRACKED", "fstat", "the file is not a disk of the VM's process"};
}

void ControlPage::Nudge() const {
  const char word = 0;
  (void)!write(lifeline_[1], &word, 1);  // full: then it will look anyway
}

void ControlPage::Ring() const {
  const uint64_t one = 1;
  (void)!write(bell_, &one, sizeof one);  // full: it has not looked yet, and will
}

void ControlPage::Release(uint32_t bits) const {
  __atomic_fetch_or(&page()->pause.release, bits, __ATOMIC_SEQ_CST);
  Ring();
}

// ---- DeathWatch ----

DeathWatch::DeathWatch(Napi::Env env, Napi::Function callback, std::function<bool(StopWord&)> wait,
                       std::function<void(StopWord&)> interrupt)
    : interrupt_(std::move(interrupt)) {
  Napi::ThreadSafeFunction notify = Napi::ThreadSafeFunction::New(env, callback, "deathWatch", 0, 1);
  notify.Unref(env);  // watching a VM does not by itself keep the manager alive
  thread_ = std::thread([this, notify, ended = ended_, wait = std::move(wait)] {
    if (wait(stop_)) {
      const int64_t atNs = MonotonicNs();
      notify.BlockingCall([atNs, ended](Napi::Env env, Napi::Function callback) {
        // The death may have come before the end of the watch, and this call after it.
        if (!*ended) callback.Call({Napi::BigInt::New(env, atNs)});
      });
    }
    Napi::ThreadSafeFunction(notify).Release();
  });
}

DeathWatch::~DeathWatch() {
  *ended_ = true;
  stop_ = 1;
  interrupt_(stop_);
  thread_.join();
}

// ---- QemuControl ----

Napi::FunctionReference QemuControl::constructor_;

void QemuControl::Register(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor =
      DefineClass(env, "QemuControl",
                  {StaticMethod<&QemuControl::Adopt>("adopt"), InstanceAccessor<&QemuControl::Fd>("fd"),
                   InstanceAccessor<&QemuControl::LifelineFd>("lifelineFd"),
                   InstanceAccessor<&QemuControl::BellFd>("bellFd"),
                   InstanceMethod<&QemuControl::ReleaseHolds>("releaseHolds"),
                   InstanceMethod<&QemuControl::UnreleasedHolds>("unreleasedHolds"),
                   InstanceMethod<&QemuControl::GivePauseUp>("givePauseUp"),
                   InstanceMethod<&QemuControl::AllowPauses>("allowPauses"),
                   InstanceMethod<&QemuControl::Read>("read"),
                   InstanceMethod<&QemuControl::SetPausedForEpoch>("setPausedForEpoch"),
                   InstanceMethod<&QemuControl::SetMarked>("setMarked"),
                   InstanceMethod<&QemuControl::MakeLazy>("makeLazy"),
                   InstanceMethod<&QemuControl::CountDiskIo>("countDiskIo"),
                   InstanceMethod<&QemuControl::TakeDiskIo>("takeDiskIo"),
                   InstanceMethod<&QemuControl::MayRead>("mayRead"),
                   InstanceMethod<&QemuControl::WatchDeath>("watchDeath"), InstanceMethod<&QemuControl::Close>("close")});
  constructor_ = Napi::Persistent(constructor);
  constructor_.SuppressDestruct();
  exports.Set("QemuControl", constructor);
}

QemuControl::QemuControl(const Napi::CallbackInfo& info) : Napi::ObjectWrap<QemuControl>(info) {
  if (info[0].IsExternal()) {  // from Adopt: nothing else makes one
    control_ = *info[0].As<Napi::External<std::shared_ptr<ControlPage>>>().Data();
    return;
  }
  const char* const usage = "QemuControl(ramBytes, disks: number[])";
  const size_t ramBytes = static_cast<size_t>(WholeNumber(info[0], kPageBytes, kRamBytesMax, "QemuControl", usage));
  std::vector<int> disks;
  if (info[1].IsArray()) {
    const auto given = info[1].As<Napi::Array>();
    if (given.Length() > SHADOWVM_DISKS_MAX) throw MakeTypeError(info.Env(), "QemuControl", usage);
    for (uint32_t i = 0; i < given.Length(); i++)
      disks.push_back(static_cast<int>(WholeNumber(given.Get(i), 0, INT_MAX, "QemuControl", usage)));
  }
  try {
    control_ = std::make_shared<ControlPage>(ramBytes, disks);
  } catch (const Failure& f) {
    throw MakeError(info.Env(), f.code, f.syscall, f.message);
  }
}

// QemuControl.adopt(pid): the control page of a QEMU that was started by another manager, which is dead.
Napi::Value QemuControl::Adopt(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int pid = static_cast<int>(WholeNumber(info[0], 1, INT_MAX, "pidfd_getfd", "QemuControl.adopt(pid)"));
  try {
    std::shared_ptr<ControlPage> control = ControlPage::Adopt(pid);
    return constructor_.New({Napi::External<std::shared_ptr<ControlPage>>::New(env, &control)});
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
}

std::shared_ptr<ControlPage> QemuControl::From(Napi::Value value) {
  Napi::Env env = value.Env();
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(constructor_.Value()))
    throw MakeTypeError(env, "QemuControl", "expected a QemuControl");
  QemuControl* self = Unwrap(value.As<Napi::Object>());
  self->Open(env);
  return self->control_;
}

ControlPage& QemuControl::Open(Napi::Env env) const {
  if (!control_) throw MakeError(env, "ERR_CLOSED", "qemuControl", "this control page is closed");
  return *control_;
}

Napi::Value QemuControl::Fd(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), Open(info.Env()).fd());
}

Napi::Value QemuControl::LifelineFd(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), Open(info.Env()).lifelineFd());
}

Napi::Value QemuControl::BellFd(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), Open(info.Env()).bellFd());
}

// releaseHolds(bits): bit i for `hold<i>`: they are deleted, and their packets leave. 0 asks only.
// Returns whether nothing is left to be released.
Napi::Value QemuControl::ReleaseHolds(const Napi::CallbackInfo& info) {
  const auto bits = static_cast<uint32_t>(
      WholeNumber(info[0], 0, (1u << SHADOWVM_HOLDS_MAX) - 1, "qemuControl", "releaseHolds(bits)"));
  const ControlPage& control = Open(info.Env());
  if (bits == 0) return Napi::Boolean::New(info.Env(), __atomic_load_n(&control.page()->pause.release, __ATOMIC_SEQ_CST) == 0);
  control.Release(bits);
  return Napi::Boolean::New(info.Env(), false);
}

// unreleasedHolds(): a bit for each that was to be released and of which nothing has left.
Napi::Value QemuControl::UnreleasedHolds(const Napi::CallbackInfo& info) {
  const shadowvm_pause* pause = &Open(info.Env()).page()->pause;
  const uint32_t asked = __atomic_load_n(&pause->release, __ATOMIC_SEQ_CST);
  return Napi::Number::New(info.Env(), asked & ~__atomic_load_n(&pause->releasing, __ATOMIC_SEQ_CST));
}

// allowPauses(): before the start: QEMU is of a version whose functions the shim knows.
void QemuControl::AllowPauses(const Napi::CallbackInfo& info) { Open(info.Env()).page()->pause.allowed = 1; }

// givePauseUp(): whoever waits for a step of a pause does so no longer.
void QemuControl::GivePauseUp(const Napi::CallbackInfo& info) { GuestPause::GiveUp(Open(info.Env())); }

// read(): {alive, tracking, errorCode, ramBytes, lazy, filled, pausedForEpoch, servesPauses, marked: {imageId, epoch}}; alive is
// null until the shim has reported, marked while it is not known.
// lazy: the RAM is registered for missing pages, and needs a pager until it is filled.
Napi::Value QemuControl::Read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const ControlPage& control = Open(env);
  static const char* const names[] = {"unseen", "registered", "failed"};
  const uint32_t tracking = __atomic_load_n(&control.page()->tracking, __ATOMIC_ACQUIRE);
  Napi::Object result = Napi::Object::New(env);
  result.Set("alive", control.born() ? Napi::Boolean::New(env, !control.dead()) : env.Null());
  result.Set("tracking", names[tracking <= SHADOWVM_TRACKING_FAILED ? tracking : 0]);
  const char* error = control.page()->error == 0 ? nullptr : strerrorname_np(control.page()->error);
  result.Set("errorCode", error ? Napi::String::New(env, error) : env.Null());
  result.Set("ramBytes", Napi::Number::New(env, static_cast<double>(control.page()->ram_bytes)));
  result.Set("lazy", Napi::Boolean::New(env, control.page()->lazy != 0 && control.page()->uffd >= 0));
  result.Set("filled", Napi::Boolean::New(env, control.page()->filled != 0));
  result.Set("pausedForEpoch", Napi::Boolean::New(env, control.page()->paused_for_epoch != 0));
  result.Set("servesPauses", Napi::Boolean::New(env, control.servesPauses()));
  result.Set("marked", env.Null());
  const uint64_t epoch = __atomic_load_n(&control.page()->marks_epoch, __ATOMIC_SEQ_CST);
  if (epoch == SHADOWVM_NO_MARKS) return result;
  Napi::Object marked = Napi::Object::New(env);
  const char* const id = control.page()->marks_image;
  marked.Set("imageId", Napi::String::New(env, id, strnlen(id, sizeof control.page()->marks_image)));
  marked.Set("epoch", Napi::Number::New(env, static_cast<double>(epoch)));
  result.Set("marked", marked);
  return result;
}

// setPausedForEpoch(paused): whether the shim is to let the guest go should we die.
void QemuControl::SetPausedForEpoch(const Napi::CallbackInfo& info) {
  if (!info[0].IsBoolean()) throw MakeTypeError(info.Env(), "qemuControl", "setPausedForEpoch(paused: boolean)");
  const uint32_t paused = info[0].As<Napi::Boolean>().Value() ? 1 : 0;
  __atomic_store_n(&Open(info.Env()).page()->paused_for_epoch, paused, __ATOMIC_RELEASE);
}

// setMarked(imageId, epoch): the disks are what this epoch holds, and were not written since.
void QemuControl::SetMarked(const Napi::CallbackInfo& info) {
  const char* const usage = "setMarked(imageId, epoch)";
  if (!info[0].IsString()) throw MakeTypeError(info.Env(), "qemuControl", usage);
  const int64_t epoch = WholeNumber(info[1], 0, 9007199254740991.0, "qemuControl", usage);
  Open(info.Env()).SetMarked(info[0].As<Napi::String>(), static_cast<uint64_t>(epoch));
}

// makeLazy(): before the start of the process; its RAM will be filled on demand.
void QemuControl::MakeLazy(const Napi::CallbackInfo& info) { Open(info.Env()).page()->lazy = 1; }

// countDiskIo(extentBytes[]): for each disk, the size of an extent, a power of 2; it may change while the process runs.
void QemuControl::CountDiskIo(const Napi::CallbackInfo& info) {
  const char* const usage = "countDiskIo(extentBytes[])";
  const ControlPage& control = Open(info.Env());
  if (!info[0].IsArray() || info[0].As<Napi::Array>().Length() > control.diskCount())
    throw MakeTypeError(info.Env(), "qemuControl", usage);
  const Napi::Array sizes = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < sizes.Length(); i++) {
    const int64_t bytes = WholeNumber(sizes.Get(i), kPageBytes, int64_t{1} << 40, "qemuControl", usage);
    __atomic_store_n(&control.page()->extent_shift[i], static_cast<uint32_t>(__builtin_ctzll(static_cast<uint64_t>(bytes))),
                     __ATOMIC_RELAXED);
  }
}

// takeDiskIo(disk, extents): {read, written}, pages of each extent since the last call. All zeros when there is no such disk.
Napi::Value QemuControl::TakeDiskIo(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const char* const usage = "takeDiskIo(disk, extents)";
  const ControlPage& control = Open(env);
  const auto disk = static_cast<size_t>(WholeNumber(info[0], 0, SHADOWVM_DISKS_MAX - 1, "qemuControl", usage));
  const auto extents = static_cast<size_t>(WholeNumber(info[1], 0, SHADOWVM_EXTENTS_MAX, "qemuControl", usage));
  shadowvm_disk_io* const io = disk < control.diskCount() ? &control.disk(disk)->io : nullptr;
  const auto take = [&](uint32_t* counts) {
    Napi::Uint32Array taken = Napi::Uint32Array::New(env, extents);
    for (size_t i = 0; counts != nullptr && i < extents; i++)
      if (__atomic_load_n(&counts[i], __ATOMIC_RELAXED) != 0)
        taken[i] = __atomic_exchange_n(&counts[i], 0, __ATOMIC_RELAXED);
    return taken;
  };
  Napi::Object result = Napi::Object::New(env);
  result.Set("read", take(io == nullptr ? nullptr : io->read));
  result.Set("written", take(io == nullptr ? nullptr : io->written));
  return result;
}

// mayRead(page): see PageStates.
Napi::Value QemuControl::MayRead(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const double last = static_cast<double>(Open(env).stateCount()) - 1;
  const size_t page = static_cast<size_t>(WholeNumber(info[0], 0, last, "qemuControl", "mayRead(page)"));
  try {
    return Napi::Boolean::New(env, PageStates(control_).MayRead(page));
  } catch (const Failure& f) {
    throw MakeError(env, f.code, f.syscall, f.message);
  }
}

// watchDeath(callback(atNs)): calls back once when the process dies. ERR_NO_SHIM when nothing holds the futex.
void QemuControl::WatchDeath(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsFunction()) throw MakeTypeError(env, "watchDeath", "watchDeath(callback)");
  if (!Open(env).born()) throw MakeError(env, "ERR_NO_SHIM", "futex", "no process has reported in this control page");
  if (watch_) throw MakeError(env, "ERR_BUSY", "futex", "this process is watched already");
  const std::shared_ptr<ControlPage> control = control_;
  uint32_t* const word = &control->page()->life;
  watch_ = std::make_unique<DeathWatch>(
      env, info[0].As<Napi::Function>(),
      [control, word](DeathWatch::StopWord& stop) {
        while (stop == 0) {
          const uint32_t life = __atomic_load_n(word, __ATOMIC_ACQUIRE);
          if (life & FUTEX_OWNER_DIED) return true;
          // FUTEX_WAITERS asks the kernel to wake us at the owner's death. A lost race only means another turn.
          uint32_t expected = life;
          if (!(life & FUTEX_WAITERS) &&
              !__atomic_compare_exchange_n(word, &expected, life | FUTEX_WAITERS, false, __ATOMIC_ACQ_REL,
                                           __ATOMIC_ACQUIRE))
            continue;
          // Waits for either word to change, so that ending the watch never waits for the time-out. The time-out bounds
          // the harm of a wake-up that a misbehaving QEMU took away by scribbling over its word.
          struct futex_waitv words[2] = {};
          words[0] = {life | FUTEX_WAITERS, reinterpret_cast<uintptr_t>(word), FUTEX_32, 0};
          words[1] = {0, reinterpret_cast<uintptr_t>(&stop), FUTEX_32 | FUTEX_PRIVATE_FLAG, 0};
          struct timespec until;
          clock_gettime(CLOCK_MONOTONIC, &until);
          until.tv_sec += 1;
          syscall(SYS_futex_waitv, words, 2, 0, &until, CLOCK_MONOTONIC);
        }
        return false;
      },
      [](DeathWatch::StopWord& stop) {
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&stop), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
      });
}

// close(): idempotent; ends the watch without calling back.
void QemuControl::Close(const Napi::CallbackInfo&) {
  watch_.reset();
  control_.reset();
}

// ---- ProcessHandle ----

void ProcessHandle::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("ProcessHandle", DefineClass(env, "ProcessHandle",
                                           {InstanceMethod<&ProcessHandle::Signal>("signal"),
                                            InstanceMethod<&ProcessHandle::WatchExit>("watchExit"),
                                            InstanceMethod<&ProcessHandle::Close>("close")}));
}

ProcessHandle::ProcessHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ProcessHandle>(info) {
  Napi::Env env = info.Env();
  const int pid = static_cast<int>(WholeNumber(info[0], 1, INT_MAX, "ProcessHandle", "ProcessHandle(pid)"));
  pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pidfd_ < 0) throw ErrnoError(env, errno, "pidfd_open", std::to_string(pid));
}

ProcessHandle::~ProcessHandle() {
  watch_.reset();
  if (wakeup_ >= 0) close(wakeup_);
  if (pidfd_ >= 0) close(pidfd_);
}

// signal(number): true when it was sent, false when the process has ended already.
Napi::Value ProcessHandle::Signal(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int number = static_cast<int>(WholeNumber(info[0], 0, SIGRTMAX, "pidfd_send_signal", "signal(number)"));
  if (pidfd_ < 0) throw MakeError(env, "ERR_CLOSED", "pidfd_send_signal", "this process handle is closed");
  if (syscall(SYS_pidfd_send_signal, pidfd_, number, nullptr, 0) == 0)
    return Napi::Boolean::New(env, true);
  if (errno == ESRCH) return Napi::Boolean::New(env, false);
  throw ErrnoError(env, errno, "pidfd_send_signal", "process");
}

// watchExit(callback(atNs)): calls back once when the process has ended and may be reaped.
void ProcessHandle::WatchExit(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsFunction()) throw MakeTypeError(env, "watchExit", "watchExit(callback)");
  if (pidfd_ < 0) throw MakeError(env, "ERR_CLOSED", "poll", "this process handle is closed");
  if (watch_) throw MakeError(env, "ERR_BUSY", "poll", "this process is watched already");
  wakeup_ = eventfd(0, EFD_CLOEXEC);
  if (wakeup_ < 0) throw ErrnoError(env, errno, "eventfd", "");
  watch_ = std::make_unique<DeathWatch>(
      env, info[0].As<Napi::Function>(),
      [pidfd = pidfd_, wakeup = wakeup_](DeathWatch::StopWord& stop) {
        while (stop == 0) {
          struct pollfd fds[2] = {{pidfd, POLLIN, 0}, {wakeup, POLLIN, 0}};
          if (poll(fds, 2, -1) > 0 && (fds[0].revents & (POLLIN | POLLHUP))) return true;
        }
        return false;
      },
      [wakeup = wakeup_](DeathWatch::StopWord&) {
        const uint64_t one = 1;
        (void)!write(wakeup, &one, sizeof one);
      });
}

// close(): idempotent; ends the watch without calling back.
void ProcessHandle::Close(const Napi::CallbackInfo&) {
  watch_.reset();
  if (wakeup_ >= 0) close(wakeup_);
  if (pidfd_ >= 0) close(pidfd_);
  wakeup_ = pidfd_ = -1;
}

void RegisterProcess(Napi::Env env, Napi::Object exports) {
  QemuControl::Register(env, exports);
  ProcessHandle::Register(env, exports);
}
