// A QEMU process seen from the manager: its control page, its death, its end.
#pragma once
#include <linux/futex.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <napi.h>

#include "memory.h"
#include "shim/control.h"

// The manager's side of a control page (see shim/control.h).
class ControlPage {
 public:
  // For a QEMU with so much RAM, on which the page states behind the page depend, and these open files as disks.
  ControlPage(size_t ramBytes, const std::vector<int>& disks);
  // That of a QEMU that another manager started. Its shim knows from here on that there is a manager again.
  static std::shared_ptr<ControlPage> Adopt(int pid);
  ~ControlPage();
  ControlPage(const ControlPage&) = delete;
  ControlPage& operator=(const ControlPage&) = delete;

  shadowvm_control* page() const { return reinterpret_cast<shadowvm_control*>(memory_->base); }
  // One byte per page of RAM, an enum shadowvm_page; stateCount() of them.
  uint8_t* states() const { return memory_->base + SHADOWVM_CONTROL_BYTES; }
  size_t stateCount() const { return disksOffset_ - SHADOWVM_CONTROL_BYTES; }
  size_t diskCount() const { return (memory_->bytes - disksOffset_) / sizeof(shadowvm_disk); }
  shadowvm_disk* disk(size_t i) const { return reinterpret_cast<shadowvm_disk*>(memory_->base + disksOffset_) + i; }
  // The place of an open file among the disks; throws ERR_NOT_TRACKED when it is none of them.
  size_t IndexOfDisk(int fd) const;
  // Of which epoch of which image (its id) on everything that was written to the disks is marked.
  void SetMarked(const std::string& imageId, uint64_t epoch);
  void ForgetMarked();
  int fd() const { return memory_->fd; }
  // To hand to QEMU: the end of the pipe whose other end is ours for as long as we live.
  int lifelineFd() const { return lifeline_[0]; }
  // Makes the shim look at what was changed in the page.
  void Nudge() const;
  // To hand to QEMU: what makes its main loop look at the page's `pause`.
  int bellFd() const { return bell_; }
  void Ring() const;
  // Deletes holds, a bit for each.
  void Release(uint32_t bits) const;
  // QEMU looks there at all.
  bool servesPauses() const { return __atomic_load_n(&page()->pause.served, __ATOMIC_ACQUIRE) != 0; }
  uint32_t life() const { return __atomic_load_n(&page()->life, __ATOMIC_ACQUIRE); }
  bool born() const { return life() != 0; }
  // True as soon as the kernel has begun to end the process, and before its address space is torn down: whoever sees
  // `false` after a scan of the process's page tables knows that the scan saw them whole.
  bool dead() const { return (life() & FUTEX_OWNER_DIED) != 0; }

 private:
  ControlPage(std::shared_ptr<SharedMemory> memory, size_t disksOffset);
  const std::shared_ptr<SharedMemory> memory_;
  const size_t disksOffset_;  // of our own: what QEMU writes into the page moves nothing
  int lifeline_[2] = {-1, -1};
  int bell_ = -1;
};

// Calls a JavaScript function once, from a thread that waits for something.
class DeathWatch {
 public:
  using StopWord = std::atomic<uint32_t>;
  // `wait` blocks until the death (returns true) or until *stop is not 0 (returns false); `interrupt` is called after
  // *stop was set and makes it look again.
  DeathWatch(Napi::Env env, Napi::Function callback, std::function<bool(StopWord& stop)> wait,
             std::function<void(StopWord& stop)> interrupt);
  ~DeathWatch();

 private:
  StopWord stop_{0};
  const std::shared_ptr<bool> ended_ = std::make_shared<bool>(false);  // event loop's side only
  std::function<void(StopWord&)> interrupt_;
  std::thread thread_;
};

// The JavaScript object QemuControl(ramBytes, disks): the control page of one QEMU process. QemuControl.adopt(pid) for one that
// runs already.
class QemuControl : public Napi::ObjectWrap<QemuControl> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit QemuControl(const Napi::CallbackInfo& info);
  static std::shared_ptr<ControlPage> From(Napi::Value value);

 private:
  static Napi::Value Adopt(const Napi::CallbackInfo& info);
  Napi::Value Fd(const Napi::CallbackInfo& info);
  Napi::Value LifelineFd(const Napi::CallbackInfo& info);
  Napi::Value BellFd(const Napi::CallbackInfo& info);
  Napi::Value ReleaseHolds(const Napi::CallbackInfo& info);
  Napi::Value UnreleasedHolds(const Napi::CallbackInfo& info);
  void GivePauseUp(const Napi::CallbackInfo& info);
  void AllowPauses(const Napi::CallbackInfo& info);
  void SetPausedForEpoch(const Napi::CallbackInfo& info);
  void SetMarked(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  void MakeLazy(const Napi::CallbackInfo& info);
  void CountDiskIo(const Napi::CallbackInfo& info);
  Napi::Value TakeDiskIo(const Napi::CallbackInfo& info);
  Napi::Value MayRead(const Napi::CallbackInfo& info);
  void WatchDeath(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  ControlPage& Open(Napi::Env env) const;
  static Napi::FunctionReference constructor_;
  std::shared_ptr<ControlPage> control_;
  std::unique_ptr<DeathWatch> watch_;
};

// The JavaScript object ProcessHandle(pid): a pidfd, so that a signal can never hit a recycled process number.
class ProcessHandle : public Napi::ObjectWrap<ProcessHandle> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit ProcessHandle(const Napi::CallbackInfo& info);
  ~ProcessHandle();

 private:
  Napi::Value Signal(const Napi::CallbackInfo& info);
  void WatchExit(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  int pidfd_ = -1;
  int wakeup_ = -1;  // eventfd that ends the watch
  std::unique_ptr<DeathWatch> watch_;
};
