// Preloaded into QEMU (LD_PRELOAD). It does six things that only code inside the process can do:
//
//  1. registers the mapping of the guest's RAM with userfaultfd in asynchronous write-protect mode, so that the manager
//     can ask the kernel which pages were written (PAGEMAP_SCAN) with no handler standing in the guest's way;
//  2. holds a robust futex in the control page, so that the manager learns of the process's death in microseconds;
//  3. stands in for a manager that died (guard.c);
//  4. marks what is written to the guest's disks, and counts what the guest reads and writes of them (disk-watch.c);
//  5. reads the monitors' commands ahead for QEMU, which takes them byte by byte (read-ahead.c);
//  6. pauses the guest for an epoch, without a monitor (pause.c).
//
// The alternative, KVM's or QEMU's own dirty log, is readable only through QEMU itself (a migration), which stops far
// longer and exists for one migration at a time.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "disk-watch.h"
#include "guard.h"
#include "interpose.h"
#include "kernel-abi.h"
#include "pause.h"

static struct shadowvm_control *control;
static int rescue = -1;
static struct stat ram_stat;
static sem_t life_settled;

struct life {
  struct robust_list link;
  struct robust_list_head head;
};

// A thread of our own and not QEMU's main thread: a main thread that sits in an uninterruptible system call would die
// late, and taking over a glibc mutex would depend on glibc's layout instead of the kernel's documented one.
static void *live(void *unused) {
  (void)unused;
  static struct life life;
  // The futex word's address is the list entry's address plus futex_offset.
  life.head.list.next = &life.link;
  life.link.next = &life.head.list;
  life.head.futex_offset = (long)((char *)&control->life - (char *)&life.link);
  life.head.list_op_pending = NULL;
  const int held = syscall(SYS_set_robust_list, &life.head, sizeof life.head) == 0;
  if (held) atomic_store((_Atomic uint32_t *)&control->life, (uint32_t)syscall(SYS_gettid));
  sem_post(&life_settled);
  if (!held) return NULL;
  guard_forever((struct guard){control, (uint8_t *)control + SHADOWVM_CONTROL_BYTES, rescue});
}

static void report(int error, enum shadowvm_tracking tracking) {
  control->error = error;
  atomic_store((_Atomic uint32_t *)&control->tracking, tracking);
}

// The number of a userfaultfd with which the RAM is registered; it stays open, closing it would end the registration.
// -1 with errno when the kernel refuses.
static int open_userfaultfd(void *base, size_t bytes, uint64_t features, uint64_t mode) {
  const int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (uffd < 0) return -1;
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  struct uffdio_register range = {.range = {(uint64_t)base, bytes}, .mode = mode};
  if (ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0) return uffd;
  const int error = errno;
  close(uffd);
  errno = error;
  return -1;
}

static void register_ram(void *base, size_t bytes) {
  control->ram_base = (uint64_t)base;
  control->ram_bytes = bytes;
  const uint64_t tracking = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;
  const uint64_t missing = control->lazy ? UFFDIO_REGISTER_MODE_MISSING : 0;
  control->uffd = open_userfaultfd(base, bytes, tracking, UFFDIO_REGISTER_MODE_WP | missing);
  if (control->uffd >= 0) return report(0, SHADOWVM_TRACKING_REGISTERED);
  const int error = errno;
  // A kernel before 6.7: it can not track, and can be filled all the same.
  if (missing) control->uffd = open_userfaultfd(base, bytes, UFFD_FEATURE_MISSING_SHMEM, missing);
  report(error, SHADOWVM_TRACKING_FAILED);
}

static int is_guest_ram(int flags, int prot, int fd) {
  struct stat st;
  return control != NULL && fd >= 0 && (flags & MAP_SHARED) != 0 && (prot & PROT_WRITE) != 0 && fstat(fd, &st) == 0 &&
         st.st_ino == ram_stat.st_ino && st.st_dev == ram_stat.st_dev;
}

typedef void *(*mmap_function)(void *, size_t, int, int, int, off_t);

static void *map(const char *name, void *address, size_t bytes, int prot, int flags, int fd, off_t offset) {
  static mmap_function real;
  if (real == NULL) real = (mmap_function)dlsym(RTLD_NEXT, name);
  void *base = real(address, bytes, prot, flags, fd, offset);
  if (base != MAP_FAILED && is_guest_ram(flags, prot, fd)) {
    register_ram(base, bytes);
    serve_pauses(control);  // this is QEMU's main thread, which has its loop by now
  }
  return base;
}

EXPORT void *mmap(void *a, size_t n, int p, int f, int fd, off_t o) { return map("mmap", a, n, p, f, fd, o); }
EXPORT void *mmap64(void *a, size_t n, int p, int f, int fd, off64_t o) { return map("mmap64", a, n, p, f, fd, o); }

// A monitor for ourselves. QEMU knows its end by number, and has no other use for it; ours is not inherited.
static int open_rescue(void) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return -1;
  // The kernel gives the lowest free numbers: they may be the one that QEMU's end is to have, or another one of these.
  const int ours = fcntl(ends[0], F_DUPFD_CLOEXEC, SHADOWVM_FD_FREE);
  const int theirs = fcntl(ends[1], F_DUPFD_CLOEXEC, SHADOWVM_FD_FREE);
  close(ends[0]);
  close(ends[1]);
  dup2(theirs, SHADOWVM_FD_RESCUE);
  close(theirs);
  return ours;
}

__attribute__((constructor)) static void start(void) {
  unsetenv("LD_PRELOAD");  // for this process only, not for what it may start
  setpriority(PRIO_PROCESS, 0, 0);  // the manager runs ahead of others, its VMs do not
  struct stat control_stat;
  if (fstat(SHADOWVM_FD_RAM, &ram_stat) != 0 || fstat(SHADOWVM_FD_CONTROL, &control_stat) != 0) return;
  if (control_stat.st_size < (off_t)SHADOWVM_CONTROL_BYTES) return;
  struct shadowvm_control *page =
      mmap(NULL, (size_t)control_stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, SHADOWVM_FD_CONTROL, 0);
  if (page == MAP_FAILED || page->magic != SHADOWVM_CONTROL_MAGIC) return;
  control = page;
  watch_disks(control);
  rescue = open_rescue();
  // All signals blocked: QEMU takes process-wide signals through a signalfd and must go on getting them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 * 1024);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sem_init(&life_settled, 0, 0);
  // QEMU begins when its life is watched: on a busy host its monitor would otherwise answer before this thread has run.
  if (pthread_create(&thread, &attributes, live, NULL) == 0)
    while (sem_wait(&life_settled) != 0) {}
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}
