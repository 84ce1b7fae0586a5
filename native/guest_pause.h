// A pause of the guest for an epoch, as the shim in its QEMU serves it (shim/pause.c).
#pragma once
#include <cstdint>

#include "process.h"

class GuestPause {
 public:
  // Both waits together take `timeoutNs` at most.
  GuestPause(const ControlPage& control, int64_t timeoutNs);
  // Lets the guest go, whatever became of the epoch.
  ~GuestPause();
  GuestPause(const GuestPause&) = delete;
  GuestPause& operator=(const GuestPause&) = delete;

  // Returns when the guest stands still; QEMU saves its devices from then on. `hold` is switched on before it runs again,
  // none when below 0. Throws ERR_VM_DEAD, ERR_PAUSE.
  void Stop(int hold);
  // Returns when the devices are saved and the guest runs again. Throws ERR_VM_DEAD, ERR_PAUSE.
  void LetGo();

  // From any thread: a pause that is under way ends, with ERR_PAUSE where it is waited for.
  static void GiveUp(const ControlPage& control);

 private:
  void Await(shadowvm_pause_step from, shadowvm_pause_step to, const char* what);

  const ControlPage& control_;
  shadowvm_pause* const pause_;
  const int64_t untilNs_;
};
