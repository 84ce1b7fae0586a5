// A guest stands still while QEMU is told `stop`, `xen-save-devices-state`, `qom-set` and `cont`. Through a monitor most of
// that time goes into the telling: its commands are read byte by byte, parsed, and handed from thread to thread, each of
// them: 2 of 2.7 ms on a slow machine. Here a manager rings a bell, and QEMU's main loop calls the same functions that these
// commands call, in one go. It is what `stop` and `cont` are to QEMU anyway: a callback of its main loop.
//
// QEMU exports its functions for its modules, by names and types that have been the same from 7.2 to 10. One that was built
// without modules exports none; like one of another version, it is told through its monitor (src/protect/pause.ts).
//
// A manager that dies in the middle, or does not get on, must not leave the guest standing: it waits here for what the
// manager has to do, and not for long.
#define _GNU_SOURCE
#include "pause.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// As long as the manager waits for QEMU (src/protect/pause.ts).
#define MANAGER_MS_MAX 2000
#define LOOK_MS 10

typedef struct Error Error;

// Of QEMU; include/qapi, include/qom and include/qemu/main-loop.h of its source have their declarations.
static struct {
  void (*qemu_set_fd_handler)(int fd, void (*read)(void *), void (*write)(void *), void *opaque);
  void (*qmp_stop)(Error **);
  void (*qmp_cont)(Error **);
  void (*qmp_xen_save_devices_state)(const char *filename, bool has_live, bool live, Error **);
  void (*qmp_object_del)(const char *id, Error **);
  void *(*object_resolve_path)(const char *path, bool *ambiguous);
  bool (*object_property_set_str)(void *object, const char *name, const char *value, Error **);
  const char *(*error_get_pretty)(const Error *);
  void (*error_free)(Error *);
} qemu;

static bool find_functions(void) {
#define FIND(name) ((qemu.name = (typeof(qemu.name))dlsym(RTLD_DEFAULT, #name)) != NULL)
  return FIND(qemu_set_fd_handler) && FIND(qmp_stop) && FIND(qmp_cont) && FIND(qmp_xen_save_devices_state) &&
         FIND(qmp_object_del) && FIND(object_resolve_path) && FIND(object_property_set_str) && FIND(error_get_pretty) &&
         FIND(error_free);
#undef FIND
}

static int64_t now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool step(struct shadowvm_pause *pause, uint32_t from, uint32_t to) {
  if (!atomic_compare_exchange_strong((_Atomic uint32_t *)&pause->step, &from, to)) return false;
  syscall(SYS_futex, &pause->step, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
  return true;
}

// The first thing that went wrong is what is told.
static void note(struct shadowvm_pause *pause, const char *what, Error *error) {
  if (error == NULL) return;
  if (pause->error[0] == '\0')
    snprintf(pause->error, sizeof pause->error, "%s: %s", what, qemu.error_get_pretty(error));
  qemu.error_free(error);
}

// As guard.c, whose pipe this is, but without taking from it.
static bool manager_is_gone(void) {
  struct pollfd lifeline = {SHADOWVM_FD_LIFELINE, 0, 0};
  return poll(&lifeline, 1, 0) == 1 && (lifeline.revents & POLLHUP) != 0;
}

static void await_manager(struct shadowvm_pause *pause) {
  const int64_t until_ns = now_ns(CLOCK_MONOTONIC) + (int64_t)MANAGER_MS_MAX * 1000000;
  const struct timespec look = {0, LOOK_MS * 1000000};
  while (atomic_load((_Atomic uint32_t *)&pause->step) == SHADOWVM_PAUSE_STOPPED) {
    syscall(SYS_futex, &pause->step, FUTEX_WAIT, SHADOWVM_PAUSE_STOPPED, &look, NULL, 0);
    if (manager_is_gone() || now_ns(CLOCK_MONOTONIC) >= until_ns)
      step(pause, SHADOWVM_PAUSE_STOPPED, SHADOWVM_PAUSE_GIVEN_UP);
  }
}

static void switch_hold_on(struct shadowvm_pause *pause) {
  char path[32];
  snprintf(path, sizeof path, "/objects/hold%d", pause->hold);
  void *hold = qemu.object_resolve_path(path, NULL);
  Error *error = NULL;
  pause->hold_failed = hold == NULL || !qemu.object_property_set_str(hold, "status", "on", &error);
  if (error != NULL) qemu.error_free(error);
}

static void pause_guest(struct shadowvm_pause *pause) {
  Error *error = NULL;
  pause->error[0] = '\0';
  pause->hold_failed = 0;
  qemu.qmp_stop(&error);
  note(pause, "stop", error);
  pause->cut_at_ns = now_ns(CLOCK_MONOTONIC);
  pause->cut_at_wall_ns = now_ns(CLOCK_REALTIME);
  // Not so when the manager has given up meanwhile.
  if (step(pause, SHADOWVM_PAUSE_ASKED, SHADOWVM_PAUSE_STOPPED)) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", SHADOWVM_FD_DEVICES);
    error = NULL;
    qemu.qmp_xen_save_devices_state(path, true, false, &error);
    note(pause, "xen-save-devices-state", error);
    if (pause->hold >= 0) switch_hold_on(pause);
    await_manager(pause);
  }
  error = NULL;
  qemu.qmp_cont(&error);
  note(pause, "cont", error);
  step(pause, SHADOWVM_PAUSE_COLLECTED, SHADOWVM_PAUSE_OVER);
}

// The packets of holds that are deleted leave.
static void release(struct shadowvm_pause *pause) {
  const uint32_t bits = atomic_load((_Atomic uint32_t *)&pause->release);
  atomic_fetch_or((_Atomic uint32_t *)&pause->releasing, bits);
  for (unsigned i = 0; i < SHADOWVM_HOLDS_MAX; i++) {
    if (!(bits & 1u << i)) continue;
    char id[16];
    snprintf(id, sizeof id, "hold%u", i);
    Error *error = NULL;
    qemu.qmp_object_del(id, &error);
    if (error != NULL) qemu.error_free(error);  // there is none: it does not hold anything
  }
  // Whoever sees this knows that they have left.
  atomic_fetch_and((_Atomic uint32_t *)&pause->release, ~bits);
  atomic_fetch_and((_Atomic uint32_t *)&pause->releasing, ~bits);
}

static void on_bell(void *opaque) {
  struct shadowvm_pause *pause = opaque;
  uint64_t rings;
  (void)!read(SHADOWVM_FD_BELL, &rings, sizeof rings);
  release(pause);
  if (atomic_load((_Atomic uint32_t *)&pause->step) == SHADOWVM_PAUSE_ASKED) pause_guest(pause);
}

void serve_pauses(struct shadowvm_control *control) {
  if (!control->pause.allowed || !find_functions()) return;
  qemu.qemu_set_fd_handler(SHADOWVM_FD_BELL, on_bell, NULL, &control->pause);
  atomic_store((_Atomic uint32_t *)&control->pause.served, 1);
}
