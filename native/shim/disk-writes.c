// QEMU writes to a disk's file through the C library (aio=threads): a few functions that are stood before here.
//
// A page is marked when its write is over and before QEMU hears of that. So whoever clears a mark and then reads the page
// has what the write put there, or finds it marked again; and when QEMU has no write under way (a guest that was stopped),
// everything is marked.
#define _GNU_SOURCE
#include "disk-writes.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE_BYTES 4096u

static struct shadowvm_control *watched;

static void set_bit(uint64_t *words, uint64_t bit) {
  atomic_fetch_or((_Atomic uint64_t *)&words[bit / 64], 1ull << bit % 64);
}

static void mark(struct shadowvm_marks *marks, uint64_t first, uint64_t end) {
  for (uint64_t page = first; page < end;) {
    const uint64_t word_end = (page / 64 + 1) * 64;
    const uint64_t stop = end < word_end ? end : word_end;
    const uint64_t bits = (stop - page == 64 ? ~0ull : ((1ull << (stop - page)) - 1) << page % 64);
    atomic_fetch_or((_Atomic uint64_t *)&marks->pages[page / 64], bits);
    page = stop;
  }
  for (uint64_t chunk = first / SHADOWVM_CHUNK_PAGES; chunk <= (end - 1) / SHADOWVM_CHUNK_PAGES; chunk++)
    set_bit(marks->chunks, chunk);
}

// A write that failed may have changed something too.
static void note(int fd, off64_t offset, uint64_t bytes) {
  if (watched == NULL || offset < 0 || bytes == 0) return;
  const int error = errno;
  struct stat st;
  if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
    struct shadowvm_disk *disks = (struct shadowvm_disk *)((char *)watched + watched->disks_offset);
    for (uint32_t i = 0; i < watched->disk_count; i++) {
      if (st.st_ino != watched->disk_files[i].inode || st.st_dev != watched->disk_files[i].device) continue;
      const uint64_t first = (uint64_t)offset / PAGE_BYTES;
      const uint64_t end = ((uint64_t)offset + bytes + PAGE_BYTES - 1) / PAGE_BYTES;
      if (end <= SHADOWVM_DISK_PAGES_MAX) mark(&disks[i].written, first, end);
    }
  }
  errno = error;
}

static uint64_t bytes_of(const struct iovec *parts, int count) {
  uint64_t bytes = 0;
  for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
  return bytes;
}

// What stands behind ours. Several threads may find out at once: they find the same.
#define REAL(name) \
  static typeof(name) *real; \
  if (real == NULL) real = (typeof(name) *)dlsym(RTLD_NEXT, #name)
#define EXPORT __attribute__((visibility("default")))

EXPORT ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
  REAL(pwrite);
  const ssize_t done = real(fd, data, bytes, offset);
  note(fd, offset, bytes);
  return done;
}
EXPORT ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
  REAL(pwrite64);
  const ssize_t done = real(fd, data, bytes, offset);
  note(fd, offset, bytes);
  return done;
}
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  REAL(pwritev);
  const ssize_t done = real(fd, parts, count, offset);
  note(fd, offset, bytes_of(parts, count));
  return done;
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
  REAL(pwritev64);
  const ssize_t done = real(fd, parts, count, offset);
  note(fd, offset, bytes_of(parts, count));
  return done;
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
  REAL(pwritev2);
  const ssize_t done = real(fd, parts, count, offset, flags);
  note(fd, offset, bytes_of(parts, count));
  return done;
}
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
  REAL(pwritev64v2);
  const ssize_t done = real(fd, parts, count, offset, flags);
  note(fd, offset, bytes_of(parts, count));
  return done;
}
// Holes and ranges of zeros.
EXPORT int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  REAL(fallocate);
  const int failed = real(fd, mode, offset, bytes);
  note(fd, offset, (uint64_t)bytes);
  return failed;
}
EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) {
  REAL(fallocate64);
  const int failed = real(fd, mode, offset, bytes);
  note(fd, offset, (uint64_t)bytes);
  return failed;
}
EXPORT ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t bytes, unsigned flags) {
  REAL(copy_file_range);
  const off64_t at = out_offset != NULL ? *out_offset : lseek64(out, 0, SEEK_CUR);
  const ssize_t done = real(in, in_offset, out, out_offset, bytes, flags);
  note(out, at, bytes);
  return done;
}

void watch_disk_writes(struct shadowvm_control *control) {
  watched = control;
  control->disks_watched = 1;
}
