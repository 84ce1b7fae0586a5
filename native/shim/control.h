// The control page: one page of shared memory between a QEMU process (written by the shim preloaded into it) and the
// manager (which created it and passed it as a file descriptor). It outlives both, so the manager reads it at any time.
// Behind it in the same file lies a byte for each page of the guest's RAM, its enum shadowvm_page, and behind those a struct
// shadowvm_disk for each of its disks.
#pragma once
#include <stdint.h>

#define SHADOWVM_CONTROL_MAGIC 0x53564d32u /* "SVM2" */
#define SHADOWVM_CONTROL_BYTES 4096u

// File descriptors that the manager hands to QEMU, by number. src/qemu/process.ts uses the same numbers.
#define SHADOWVM_FD_RAM 3
#define SHADOWVM_FD_CONTROL 4
#define SHADOWVM_FD_DEVICES 5   // where a device state is saved
#define SHADOWVM_FD_LIFELINE 7  // read end of a pipe of which a manager has the other end for as long as it lives
#define SHADOWVM_FD_RESCUE 8    // QEMU's end of a monitor; the shim opens it, and has the other end
#define SHADOWVM_FD_BELL 9      // an eventfd: look at `pause` of the control page
#define SHADOWVM_FD_DISKS 10    // from here on its disks, one after the other
#define SHADOWVM_FD_FREE 64     // from here on nothing is handed over

#define SHADOWVM_DISKS_MAX 4u

enum shadowvm_tracking {
  SHADOWVM_TRACKING_UNSEEN = 0,      // the shim has not seen QEMU map the guest's RAM (yet)
  SHADOWVM_TRACKING_REGISTERED = 1,  // the RAM is registered for asynchronous write protection
  SHADOWVM_TRACKING_FAILED = 2,      // registration failed: `error` says why, checksums must do
};

// How far a page of a lazily filled RAM is. A QEMU that is not lazy has all of its pages, and the bytes are not used.
//
//   ABSENT ──claim (compare and swap)──▶ INSTALLING ──UFFDIO_COPY──▶ PRESENT       and never back
//
// Whoever reads the RAM through a mapping of its own must leave absent pages alone: the kernel would give them a page of
// zeros, and the true content could not be installed any more.
enum shadowvm_page {
  SHADOWVM_PAGE_ABSENT = 0,
  SHADOWVM_PAGE_INSTALLING = 1,
  SHADOWVM_PAGE_PRESENT = 2,
};

// Which pages of a disk were written. A bit of `chunks` says that one of the 4096 pages of that chunk may be marked: it is
// set after the page's, and cleared before the page's is looked at. The file takes memory only where there were marks.
#define SHADOWVM_CHUNK_PAGES 4096u
#define SHADOWVM_DISK_PAGES_MAX (1u << 28)
struct shadowvm_marks {
  uint64_t chunks[SHADOWVM_DISK_PAGES_MAX / SHADOWVM_CHUNK_PAGES / 64];
  uint64_t pages[SHADOWVM_DISK_PAGES_MAX / 64];
};

// How many pages (of 4 KiB) of each extent of a disk the guest has read and written since a manager last took the counts.
#define SHADOWVM_EXTENTS_MAX 16384u
struct shadowvm_disk_io {
  uint32_t read[SHADOWVM_EXTENTS_MAX];
  uint32_t written[SHADOWVM_EXTENTS_MAX];
};

// A disk of the guest. Its marks together are what may differ between the disk and the epoch that `marks_*` of
// the control page names.
struct shadowvm_disk {
  // By the guest. The shim sets these when a write of QEMU is over, and before its guest knows that.
  struct shadowvm_marks written;
  // A manager keeps them here while they are part of an epoch that is not committed yet.
  uint64_t taken[SHADOWVM_DISK_PAGES_MAX / 64];
  struct shadowvm_disk_io io;
};

// How far the pause of an epoch is:
//
//   manager  ASKED                     COLLECTED
//   QEMU             stop ─▶ STOPPED   save, wait   cont ─▶ OVER
//
// Either may give up on the other, each by a compare and swap: the guest runs on, and the epoch is none.
enum shadowvm_pause_step {
  SHADOWVM_PAUSE_OVER = 0,
  SHADOWVM_PAUSE_ASKED = 1,
  SHADOWVM_PAUSE_STOPPED = 2,
  SHADOWVM_PAUSE_COLLECTED = 3,
  SHADOWVM_PAUSE_GIVEN_UP = 4,
};

#define SHADOWVM_HOLDS_MAX 8u  // filter-buffers `hold0` to `hold7`, see src/protect/output-hold.ts
struct shadowvm_pause {
  uint32_t allowed;  // by the manager before the start: QEMU is of a version whose functions are known
  uint32_t served;   // by the shim: QEMU looks here when the bell rings
  uint32_t step;     // enum shadowvm_pause_step, and a futex
  uint32_t release;  // a bit for each hold that is to be deleted, cleared when it is
  int32_t hold;      // the one to be switched on in the pause, -1: none
  uint32_t hold_failed;
  int64_t cut_at_ns;  // CLOCK_MONOTONIC, once it stands still
  int64_t cut_at_wall_ns;
  char error[160];  // what went wrong in QEMU, "" if nothing
  uint32_t releasing;  // those of `release` whose deletion has begun, or is over
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
  // Written by managers:
  uint32_t lazy;              // before the start: the RAM is filled on demand, register it for missing pages too
  uint32_t filled;            // a lazy RAM is complete: what is missing now is zeros
  uint32_t paused_for_epoch;  // the guest stands still, and is to run again should its manager die meanwhile
  // Before the start: its disks, each a struct shadowvm_disk from `disks_offset` of this file on.
  uint32_t disk_count;
  uint64_t disks_offset;
  struct {
    uint64_t device;  // as fstat() tells: QEMU may have it open under several numbers
    uint64_t inode;
  } disk_files[SHADOWVM_DISKS_MAX];
  uint32_t extent_shift[SHADOWVM_DISKS_MAX];  // an extent of a disk has 1 << this bytes; 0: its use is not counted
  // The state of the disks since which everything that was written is marked.
  uint64_t marks_epoch;    // SHADOWVM_NO_MARKS: unknown
  char marks_image[32];    // its image's id
  uint32_t disks_watched;  // by the shim: it marks what QEMU writes to the disks
  struct shadowvm_pause pause;
};
#define SHADOWVM_NO_MARKS UINT64_MAX
