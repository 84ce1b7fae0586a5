// A manager may be killed at any moment, and be away for a while. Three things must not wait for the next one:
//
//  - a guest that it had stopped for an epoch: it is let go, through a monitor that nobody else uses;
//  - what a guest in strict mode sent, and nobody commits any more: it leaves, so that the guest can be reached;
//  - once a lazily filled RAM is complete: faults on pages that the guest gave back or never used. They are zeros.
//
// That the manager is gone is known from a pipe of which only a manager has the write end; a new manager opens it again
// through /proc. Asking for a heartbeat instead would take a guess of how long a healthy manager may be silent.
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kernel-abi.h"

// A `stop` that the manager sent last may still lie in QEMU's other monitor, to be read after our first `cont`.
#define RESCUES 10
#define RESCUE_GAP_MS 20
// How often to look for a new manager.
#define ORPHAN_LOOK_MS 200
// A manager that comes back at once finds what it held; later the guest has gone on without one.
#define RELEASE_AFTER_MS 2000
#define PAGE_BYTES 4096u

static uint32_t flag(const uint32_t *word) {
  return atomic_load((const _Atomic uint32_t *)word);
}

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// What a manager writes into the pipe says nothing; it makes us look at the control page.
static int manager_lives(void) {
  char bytes[64];
  ssize_t count;
  do count = read(SHADOWVM_FD_LIFELINE, bytes, sizeof bytes);
  while (count > 0);
  return count != 0;  // end of file: nobody has the other end
}

static void let_guest_go(int rescue) {
  // The first is an error from the second time on, which does no harm. Before it no events come through this monitor.
  static const char words[] = "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n";
  (void)!send(rescue, words, sizeof words - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// The holds of src/protect/output-hold.ts, in any order: what one held goes through those that are older.
static void release_packets(int rescue) {
  static const char words[] = "{\"execute\":\"qmp_capabilities\"}\n"
#define RELEASE(id) "{\"execute\":\"object-del\",\"arguments\":{\"id\":\"hold" #id "\"}}\n"
      RELEASE(0) RELEASE(1) RELEASE(2) RELEASE(3) RELEASE(4) RELEASE(5) RELEASE(6) RELEASE(7);
  (void)!send(rescue, words, sizeof words - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// Answers and events: nobody reads them, and QEMU would keep them for ever. -1 when QEMU has closed its end.
static int drain(int rescue) {
  char bytes[512];
  ssize_t count;
  do count = recv(rescue, bytes, sizeof bytes, MSG_DONTWAIT);
  while (count > 0);
  return count == 0 ? -1 : rescue;
}

static void wake(const struct shadowvm_control *control, uint64_t start, uint64_t bytes) {
  struct uffdio_range range = {start, bytes};
  ioctl(control->uffd, UFFDIO_WAKE, &range);
}

static void give_zeros(const struct guard *guard, uint64_t address) {
  static const uint8_t zeros[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));
  const struct shadowvm_control *control = guard->control;
  const uint64_t page = (address - control->ram_base) / PAGE_BYTES;
  if (page >= control->ram_bytes / PAGE_BYTES) return;
  const uint64_t start = control->ram_base + page * PAGE_BYTES;
  _Atomic uint8_t *state = (_Atomic uint8_t *)&guard->page_states[page];
  uint8_t absent = SHADOWVM_PAGE_ABSENT;
  int failed;
  if (atomic_compare_exchange_strong(state, &absent, SHADOWVM_PAGE_INSTALLING)) {
    // What its source says it is: clean, where writes are tracked.
    struct uffdio_copy copy = {.dst = start, .src = (uint64_t)zeros, .len = PAGE_BYTES};
    if (control->tracking == SHADOWVM_TRACKING_REGISTERED) copy.mode = UFFDIO_COPY_MODE_WP;
    failed = ioctl(control->uffd, UFFDIO_COPY, &copy) == 0 ? 0 : errno;
    atomic_store(state, failed == 0 || failed == EEXIST ? SHADOWVM_PAGE_PRESENT : SHADOWVM_PAGE_ABSENT);
  } else {
    // It was given back; or a manager died that had claimed it. The kernel puts zeros only where there is nothing.
    struct uffdio_zeropage zero = {.range = {start, PAGE_BYTES}};
    failed = ioctl(control->uffd, UFFDIO_ZEROPAGE, &zero) == 0 ? 0 : errno;
    if (failed == 0) atomic_store(state, SHADOWVM_PAGE_PRESENT);
  }
  if (failed == 0) return;
  if (failed != EEXIST) usleep(1000);  // no memory: its thread faults again
  wake(control, start, PAGE_BYTES);
}

static void answer_faults(const struct guard *guard) {
  struct uffd_msg messages[8];
  const ssize_t bytes = read(guard->control->uffd, messages, sizeof messages);
  for (ssize_t i = 0; i < bytes / (ssize_t)sizeof messages[0]; i++)
    if (messages[i].event == UFFD_EVENT_PAGEFAULT) give_zeros(guard, messages[i].arg.pagefault.address);
}

void guard_forever(struct guard guard) {
  struct shadowvm_control *const control = guard.control;
  struct stat pipe;
  const int has_lifeline = fstat(SHADOWVM_FD_LIFELINE, &pipe) == 0 && S_ISFIFO(pipe.st_mode);
  int orphaned = 0;
  int64_t release_at_ms = 0;
  int rescues = RESCUES;
  int64_t next_rescue_ms = 0;
  for (;;) {
    const int serves = control->lazy && control->uffd >= 0 && flag(&control->filled);
    int wait_ms = -1;
    if (!has_lifeline || manager_lives()) {
      orphaned = 0;
      rescues = RESCUES;
    } else {
      // Faults that it had read and not answered come again.
      if (!orphaned && serves) wake(control, control->ram_base, control->ram_bytes);
      if (!orphaned) release_at_ms = now_ms() + RELEASE_AFTER_MS;
      orphaned = 1;
      if (release_at_ms != 0 && now_ms() >= release_at_ms && guard.rescue >= 0) {
        release_packets(guard.rescue);
        release_at_ms = 0;
      }
      const int stands = flag(&control->paused_for_epoch) && guard.rescue >= 0 && rescues > 0;
      if (stands && now_ms() >= next_rescue_ms) {
        let_guest_go(guard.rescue);
        rescues--;
        next_rescue_ms = now_ms() + RESCUE_GAP_MS;
      }
      wait_ms = stands ? RESCUE_GAP_MS : ORPHAN_LOOK_MS;
    }
    struct pollfd fds[3] = {
        {has_lifeline && !orphaned ? SHADOWVM_FD_LIFELINE : -1, POLLIN, 0},
        {guard.rescue, POLLIN, 0},
        {serves ? control->uffd : -1, POLLIN, 0},
    };
    if (poll(fds, 3, wait_ms) <= 0) continue;
    if (fds[1].revents != 0) guard.rescue = drain(guard.rescue);
    if (fds[2].revents & POLLIN) answer_faults(&guard);
  }
}
