// QEMU's file driver reads and writes through these four functions of the C library, in the threads of its pool. They do
// what they do, and what went between a disk and the guest's RAM is counted behind them: some hundred nanoseconds beside
// a transfer's microseconds, and nobody waits for anybody. What QEMU moves for itself (backup jobs, the old content of
// blocks) is in memory of its own, and is not counted; neither is what it has to copy for the sake of O_DIRECT's alignment.
//
// The alternatives: trace events are formatted into text for each request; block statistics do not say where.
#define _GNU_SOURCE
#include "disk-io.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define PAGE_SHIFT 12

struct disk {
  dev_t dev;
  ino_t ino;
};

static struct shadowvm_control *counted;  // set when all else is
static struct shadowvm_disk_io *io;
static struct disk disks[SHADOWVM_DISKS_MAX];
static uint32_t disk_count;

void count_disk_io(struct shadowvm_control *control, size_t bytes) {
  if (control->io_offset == 0 || control->io_offset > bytes || control->disks > SHADOWVM_DISKS_MAX ||
      (bytes - control->io_offset) / sizeof *io < control->disks)
    return;
  for (uint32_t i = 0; i < control->disks; i++) {
    struct stat st;
    if (fstat(SHADOWVM_FD_DISKS + (int)i, &st) == 0) disks[i] = (struct disk){st.st_dev, st.st_ino};
  }
  disk_count = control->disks;
  io = (struct shadowvm_disk_io *)((char *)control + control->io_offset);
  counted = control;
}

static void count(int fd, const void *memory, ssize_t bytes, off64_t offset, int is_write) {
  if (counted == NULL || bytes <= 0 || offset < 0) return;
  if ((uint64_t)memory - counted->ram_base >= counted->ram_bytes) return;
  const int before = errno;
  struct stat st;
  const int known = fstat(fd, &st) == 0;
  errno = before;
  // By its file: QEMU has copies of the descriptor that it was given.
  for (uint32_t i = 0; known && i < disk_count; i++) {
    if (st.st_ino != disks[i].ino || st.st_dev != disks[i].dev) continue;
    const uint32_t shift = counted->extent_shift[i];
    if (shift < PAGE_SHIFT || shift > 62) return;
    _Atomic uint32_t *counts = (_Atomic uint32_t *)(is_write ? io[i].written : io[i].read);
    const uint64_t end = (uint64_t)offset + (uint64_t)bytes;
    for (uint64_t at = (uint64_t)offset; at < end && at >> shift < SHADOWVM_EXTENTS_MAX;) {
      const uint64_t next = ((at >> shift) + 1) << shift;
      const uint64_t to = next < end ? next : end;
      const uint64_t pages = ((to - 1) >> PAGE_SHIFT) - (at >> PAGE_SHIFT) + 1;
      atomic_fetch_add_explicit(&counts[at >> shift], (uint32_t)pages, memory_order_relaxed);
      at = to;
    }
    return;
  }
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

EXPORT ssize_t pread64(int fd, void *memory, size_t bytes, off64_t offset) {
  REAL(pread64);
  const ssize_t done = real(fd, memory, bytes, offset);
  count(fd, memory, done, offset, 0);
  return done;
}

EXPORT ssize_t pwrite64(int fd, const void *memory, size_t bytes, off64_t offset) {
  REAL(pwrite64);
  const ssize_t done = real(fd, memory, bytes, offset);
  count(fd, memory, done, offset, 1);
  return done;
}

EXPORT ssize_t preadv64(int fd, const struct iovec *parts, int n, off64_t offset) {
  REAL(preadv64);
  const ssize_t done = real(fd, parts, n, offset);
  if (n > 0) count(fd, parts[0].iov_base, done, offset, 0);
  return done;
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t offset) {
  REAL(pwritev64);
  const ssize_t done = real(fd, parts, n, offset);
  if (n > 0) count(fd, parts[0].iov_base, done, offset, 1);
  return done;
}
