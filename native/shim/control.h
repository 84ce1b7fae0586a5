// The control page: one page of shared memory between a QEMU process (written by the shim preloaded into it) and the
// manager (which created it and passed it as a file descriptor). It outlives both, so the manager reads it at any time.
#pragma once
#include <stdint.h>

#define SHADOWVM_CONTROL_MAGIC 0x53564d31u /* "SVM1" */
#define SHADOWVM_CONTROL_BYTES 4096u

// File descriptors that the manager hands to QEMU, by number. src/qemu/process.ts uses the same numbers.
#define SHADOWVM_FD_RAM 3
#define SHADOWVM_FD_CONTROL 4

enum shadowvm_tracking {
  SHADOWVM_TRACKING_UNSEEN = 0,      // the shim has not seen QEMU map the guest's RAM (yet)
  SHADOWVM_TRACKING_REGISTERED = 1,  // the RAM is registered for asynchronous write protection
  SHADOWVM_TRACKING_FAILED = 2,      // registration failed: `error` says why, checksums must do
};

struct shadowvm_control {
  uint32_t magic;
  // Robust futex: the thread id of a thread in QEMU while QEMU lives. When the process dies for whatever reason, the
  // kernel sets FUTEX_OWNER_DIED and wakes the manager, long before it has torn the guest's memory down.
  uint32_t life;
  uint32_t tracking;  // enum shadowvm_tracking, stored last (release) after the fields below
  int32_t error;      // errno of the failed step
  uint64_t ram_base;  // address of the guest's RAM in QEMU's address space
  uint64_t ram_bytes;
  int32_t uffd;  // the userfaultfd's number in QEMU, -1 if none
};
