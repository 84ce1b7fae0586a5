// QEMU's file driver reads and writes through the C library (aio=threads): a few functions that are stood before here, in
// the threads of its pool. They do what they do, and nobody waits for anybody: some hundred nanoseconds beside a
// transfer's microseconds.
//
// A page is marked when its write is over and before QEMU hears of that. So whoever clears a mark and then reads the page
// has what the write put there, or finds it marked again; and when QEMU has no write under way (a guest that was stopped),
// everything is marked.
//
// What went between a disk and the guest's RAM is counted too. What QEMU moves for itself is in memory of its own, and is
// not counted; neither is what it has to copy for the sake of O_DIRECT's alignment. The alternatives: trace events are
// formatted into text for each request; block statistics do not say where.
#define _GNU_SOURCE
#include "disk-watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "interpose.h"

#define PAGE_BYTES 4096u
#define PAGE_SHIFT 12u

static struct shadowvm_control *watched;

struct found {
  struct shadowvm_disk *disk;  // NULL: the file is not one of a disk
  uint32_t extent_shift;
};

// By its file: QEMU has copies of the descriptor that it was given.
static struct found find(int fd) {
  const int error = errno;
  struct found found = {NULL, 0};
  struct stat st;
  if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
    struct shadowvm_disk *disks = (struct shadowvm_disk *)((char *)watched + watched->disks_offset);
    for (uint32_t i = 0; i < watched->disk_count; i++) {
      if (st.st_ino != watched->disk_files[i].inode || st.st_dev != watched->disk_files[i].device) continue;
      found = (struct found){&disks[i], watched->extent_shift[i]};
      break;
    }
  }
  errno = error;
  return found;
}

static void set_bit(uint64_t *words, uint64_t bit) {
  atomic_fetch_or((_Atomic uint64_t *)&words[bit / 64], 1ull << bit % 64);
}

static void mark(struct shadowvm_marks *marks, uint64_t offset, uint64_t bytes) {
  const uint64_t first = offset / PAGE_BYTES;
  const uint64_t end = (offset + bytes + PAGE_BYTES - 1) / PAGE_BYTES;
  if (bytes == 0 || bytes > (uint64_t)SHADOWVM_DISK_PAGES_MAX * PAGE_BYTES || end > SHADOWVM_DISK_PAGES_MAX) return;
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

static void count(uint32_t *counts, uint32_t shift, uint64_t offset, uint64_t bytes) {
  if (shift < PAGE_SHIFT || shift > 62) return;
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset; at < end && at >> shift < SHADOWVM_EXTENTS_MAX;) {
    const uint64_t next = ((at >> shift) + 1) << shift;
    const uint64_t to = next < end ? next : end;
    const uint64_t pages = ((to - 1) >> PAGE_SHIFT) - (at >> PAGE_SHIFT) + 1;
    atomic_fetch_add_explicit((_Atomic uint32_t *)&counts[at >> shift], (uint32_t)pages, memory_order_relaxed);
    at = to;
  }
}

static int is_guests(const void *memory) { return (uint64_t)memory - watched->ram_base < watched->ram_bytes; }

static const void *memory_of(const struct iovec *parts, int n) { return n > 0 ? parts[0].iov_base : NULL; }

// Past the page cache a device puts what was read into memory that the kernel has prepared before. Whoever looks for written
// pages in between, copies one and protects it again, is not told of what comes after: it is told now.
static void touch(const struct iovec *parts, int n, size_t bytes) {
  for (int i = 0; i < n && bytes > 0; i++) {
    const size_t length = parts[i].iov_len < bytes ? parts[i].iov_len : bytes;
    bytes -= length;
    if (length == 0 || !is_guests(parts[i].iov_base)) continue;
    for (uint64_t at = (uint64_t)parts[i].iov_base, end = at + length; at < end; at = (at / PAGE_BYTES + 1) * PAGE_BYTES) {
      _Atomic uint8_t *byte = (_Atomic uint8_t *)at;
      uint8_t same = atomic_load(byte);
      atomic_compare_exchange_strong(byte, &same, same);  // a write that changes nothing, whatever a vCPU does meanwhile
    }
  }
}

static void saw_read(int fd, off64_t offset, const struct iovec *parts, int n, ssize_t done) {
  if (watched == NULL || done <= 0 || offset < 0 || !is_guests(memory_of(parts, n))) return;
  const struct found found = find(fd);
  if (found.disk == NULL) return;
  count(found.disk->io.read, found.extent_shift, (uint64_t)offset, (uint64_t)done);
  if (fcntl(fd, F_GETFL) & O_DIRECT) touch(parts, n, (size_t)done);
}

// `bytes` were to be written: a write that failed may have changed something too. `memory` is NULL for a write of zeros.
static void saw_write(int fd, off64_t offset, uint64_t bytes, const void *memory, ssize_t done) {
  if (watched == NULL || offset < 0) return;
  const struct found found = find(fd);
  if (found.disk == NULL) return;
  mark(&found.disk->written, (uint64_t)offset, bytes);
  if (done > 0 && is_guests(memory)) count(found.disk->io.written, found.extent_shift, (uint64_t)offset, (uint64_t)done);
}

static uint64_t bytes_of(const struct iovec *parts, int n) {
  uint64_t bytes = 0;
  for (int i = 0; i < n; i++) bytes += parts[i].iov_len;
  return bytes;
}

#define READ(name, offset_type) \
  EXPORT ssize_t name(int fd, void *data, size_t bytes, offset_type offset) { \
    REAL(name); \
    const ssize_t done = real(fd, data, bytes, offset); \
    saw_read(fd, offset, &(struct iovec){data, bytes}, 1, done); \
    return done; \
  }
READ(pread, off_t)
READ(pread64, off64_t)

#define READ_PARTS(name, offset_type) \
  EXPORT ssize_t name(int fd, const struct iovec *parts, int n, offset_type offset) { \
    REAL(name); \
    const ssize_t done = real(fd, parts, n, offset); \
    saw_read(fd, offset, parts, n, done); \
    return done; \
  }
READ_PARTS(preadv, off_t)
READ_PARTS(preadv64, off64_t)

#define WRITE(name, offset_type) \
  EXPORT ssize_t name(int fd, const void *data, size_t bytes, offset_type offset) { \
    REAL(name); \
    const ssize_t done = real(fd, data, bytes, offset); \
    saw_write(fd, offset, bytes, data, done); \
    return done; \
  }
WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)

#define WRITE_PARTS(name, offset_type) \
  EXPORT ssize_t name(int fd, const struct iovec *parts, int n, offset_type offset) { \
    REAL(name); \
    const ssize_t done = real(fd, parts, n, offset); \
    saw_write(fd, offset, bytes_of(parts, n), memory_of(parts, n), done); \
    return done; \
  }
WRITE_PARTS(pwritev, off_t)
WRITE_PARTS(pwritev64, off64_t)

#define WRITE_PARTS_2(name, offset_type) \
  EXPORT ssize_t name(int fd, const struct iovec *parts, int n, offset_type offset, int flags) { \
    REAL(name); \
    const ssize_t done = real(fd, parts, n, offset, flags); \
    saw_write(fd, offset, bytes_of(parts, n), memory_of(parts, n), done); \
    return done; \
  }
WRITE_PARTS_2(pwritev2, off_t)
WRITE_PARTS_2(pwritev64v2, off64_t)

// Holes and ranges of zeros.
#define ALLOCATE(name, offset_type) \
  EXPORT int name(int fd, int mode, offset_type offset, offset_type bytes) { \
    REAL(name); \
    const int failed = real(fd, mode, offset, bytes); \
    saw_write(fd, offset, (uint64_t)bytes, NULL, 0); \
    return failed; \
  }
ALLOCATE(fallocate, off_t)
ALLOCATE(fallocate64, off64_t)

EXPORT ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t bytes, unsigned flags) {
  REAL(copy_file_range);
  const off64_t at = out_offset != NULL ? *out_offset : lseek64(out, 0, SEEK_CUR);
  const ssize_t done = real(in, in_offset, out, out_offset, bytes, flags);
  saw_write(out, at, bytes, NULL, 0);
  return done;
}

void watch_disks(struct shadowvm_control *control) {
  watched = control;
  control->disks_watched = 1;
}
