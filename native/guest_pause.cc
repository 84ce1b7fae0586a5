#include "guest_pause.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#include <cstring>

#include "clock_ns.h"
#include "worker.h"

// How often to look whether the process still lives: its death does not wake whoever waits for its next step.
constexpr int64_t kLookNs = 1000000;

static bool Step(shadowvm_pause* pause, shadowvm_pause_step from, shadowvm_pause_step to) {
  uint32_t expected = from;
  if (!__atomic_compare_exchange_n(&pause->step, &expected, static_cast<uint32_t>(to), false, __ATOMIC_SEQ_CST,
                                   __ATOMIC_SEQ_CST))
    return false;
  syscall(SYS_futex, &pause->step, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  return true;
}

GuestPause::GuestPause(const ControlPage& control, int64_t timeoutNs)
    : control_(control), pause_(&control.page()->pause), untilNs_(MonotonicNs() + timeoutNs) {}

GuestPause::~GuestPause() { GiveUp(control_); }

void GuestPause::GiveUp(const ControlPage& control) {
  for (const auto step : {SHADOWVM_PAUSE_ASKED, SHADOWVM_PAUSE_STOPPED, SHADOWVM_PAUSE_COLLECTED})
    if (Step(&control.page()->pause, step, SHADOWVM_PAUSE_GIVEN_UP)) return;
}

void GuestPause::Stop(int hold) {
  pause_->hold = hold;
  __atomic_store_n(&pause_->step, SHADOWVM_PAUSE_ASKED, __ATOMIC_SEQ_CST);
  control_.Ring();
  Await(SHADOWVM_PAUSE_ASKED, SHADOWVM_PAUSE_STOPPED, "stop");
}

void GuestPause::LetGo() {
  Step(pause_, SHADOWVM_PAUSE_STOPPED, SHADOWVM_PAUSE_COLLECTED);
  Await(SHADOWVM_PAUSE_COLLECTED, SHADOWVM_PAUSE_OVER, "save its devices");
  if (pause_->error[0] == '\0') return;
  const size_t bytes = strnlen(pause_->error, sizeof pause_->error);
  throw Failure{"ERR_PAUSE", "pause", "QEMU says: " + std::string(pause_->error, bytes)};
}

void GuestPause::Await(shadowvm_pause_step from, shadowvm_pause_step to, const char* what) {
  const struct timespec look = {0, kLookNs};
  for (;;) {
    const uint32_t step = __atomic_load_n(&pause_->step, __ATOMIC_SEQ_CST);
    if (step == static_cast<uint32_t>(to)) return;
    if (control_.dead()) throw Failure{"ERR_VM_DEAD", "pause", "the VM's process died during the pause"};
    if (step != static_cast<uint32_t>(from))
      throw Failure{"ERR_PAUSE", "pause", std::string("QEMU was to ") + what + ", and the pause was given up"};
    if (MonotonicNs() >= untilNs_) throw Failure{"ERR_PAUSE", "pause", std::string("QEMU did not ") + what + " in time"};
    syscall(SYS_futex, &pause_->step, FUTEX_WAIT, step, &look, nullptr, 0);
  }
}
