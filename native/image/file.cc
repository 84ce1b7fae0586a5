#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

// Linux 6.14; headers of Debian lack it.
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080
#endif

// Without RWF_DONTCACHE: so much is written before its writeback is started, and the stretch before it is dropped.
constexpr uint64_t kWritebackBytes = 4u << 20;

Failure CorruptImage(const std::string& path, const std::string& what) {
  return {"ERR_IMAGE_CORRUPT", "read", path + ": " + what};
}

static int OpenFile(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) throw ErrnoFailure(errno, "open", path);
  return fd;
}

File::File(const std::string& path, int flags) : path(path), fd(OpenFile(path, flags)) {}
File::~File() { close(fd); }

uint64_t File::Size() const {
  struct stat st;
  if (fstat(fd, &st) != 0) throw ErrnoFailure(errno, "fstat", path);
  return static_cast<uint64_t>(st.st_size);
}

// The caller's buffer has room for `bytes`; the kernel writes no more than that into it.
size_t File::ReadSome(uint64_t offset, void* out, size_t bytes) const {
  size_t done = 0;
  while (done < bytes) {
    const bool dontCache = dontCache_.load(std::memory_order_relaxed);
    struct iovec part = {static_cast<uint8_t*>(out) + done, bytes - done};
    const ssize_t n = preadv2(fd, &part, 1, static_cast<off_t>(offset + done), dontCache ? RWF_DONTCACHE : 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (dontCache && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)) {
        dontCache_ = false;
        continue;
      }
      throw ErrnoFailure(errno, "read", path);
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

void File::Read(uint64_t offset, void* out, size_t bytes) const {
  if (ReadSome(offset, out, bytes) != bytes) throw CorruptImage(path, "the file ends too early");
}

void File::Expect(uint64_t offset, size_t bytes) const {
  posix_fadvise(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);  // a hint
}

void File::Write(uint64_t offset, const void* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const bool dontCache = dontCache_.load(std::memory_order_relaxed);
    struct iovec part = {const_cast<uint8_t*>(static_cast<const uint8_t*>(data)) + done, bytes - done};  // only read
    const ssize_t n = pwritev2(fd, &part, 1, static_cast<off_t>(offset + done), dontCache ? RWF_DONTCACHE : 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (dontCache && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)) {
        dontCache_ = false;
        continue;
      }
      throw ErrnoFailure(errno, "write", path);
    }
    if (n == 0) throw ErrnoFailure(EIO, "write", path);
    done += static_cast<size_t>(n);
  }
  const uint64_t end = offset + bytes;
  if (dontCache_.load(std::memory_order_relaxed) || end < startedWritebackAt_ + kWritebackBytes) return;
  // Started and not waited for: the stretch before it should be clean by now, and can be dropped. Failing costs memory
  // only; an error of the disk itself is reported by Sync.
  sync_file_range(fd, static_cast<off_t>(startedWritebackAt_), static_cast<off_t>(end - startedWritebackAt_),
                  SYNC_FILE_RANGE_WRITE);
  DropCache(0, startedWritebackAt_);
  startedWritebackAt_ = end;
}

void File::Truncate(uint64_t bytes) {
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) throw ErrnoFailure(errno, "ftruncate", path);
  startedWritebackAt_ = std::min(startedWritebackAt_, bytes);
}

void File::Sync() const {
  if (fdatasync(fd) != 0) throw ErrnoFailure(errno, "fdatasync", path);
}

void File::DropCache(uint64_t offset, uint64_t bytes) const {
  if (bytes > 0) posix_fadvise(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
}

// The mapping is never read or written through: it only lets mincore look.
uint64_t File::CachedBytes() const {
  const size_t bytes = Size();
  if (bytes == 0) return 0;
  void* area = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (area == MAP_FAILED) return 0;
  std::vector<uint8_t> present((bytes + kPageBytes - 1) / kPageBytes);
  uint64_t cached = 0;
  if (mincore(area, bytes, present.data()) == 0)
    for (const uint8_t page : present) cached += (page & 1) * kPageBytes;
  munmap(area, bytes);
  return cached;
}

void SyncFolder(int fd, const std::string& path) {
  if (fsync(fd) != 0) throw ErrnoFailure(errno, "fsync", path);
}
