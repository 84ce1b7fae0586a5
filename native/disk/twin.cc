#include "twin.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "../memory.h"

namespace {

constexpr size_t kReadBytes = 256u << 10;

void WriteAll(int fd, const uint8_t* data, size_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t written = pwrite(fd, data, bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw ErrnoFailure(written < 0 ? errno : EIO, "pwrite", "the shadow's disk");
    data += written;
    bytes -= static_cast<size_t>(written);
    offset += static_cast<uint64_t>(written);
  }
}

void PutZeros(int fd, size_t page, size_t count) {
  const auto offset = static_cast<off_t>(page * kPageBytes);
  const auto bytes = static_cast<off_t>(count * kPageBytes);
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes) == 0) return;
  static const uint8_t zeros[kPageBytes] = {};
  for (size_t i = 0; i < count; i++) WriteAll(fd, zeros, kPageBytes, (page + i) * kPageBytes);
}

// Calls visit(page, content) for each page from `from` to before `to` as the file has it; nullptr in a hole.
template <typename Visit>
void ReadDisk(int fd, size_t from, size_t to, const Visit& visit) {
  std::vector<uint8_t> buffer;
  const auto end = static_cast<off_t>(to * kPageBytes);
  for (auto at = static_cast<off_t>(from * kPageBytes); at < end;) {
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO) throw ErrnoFailure(errno, "lseek", "the disk");
    data = data < 0 ? end : std::min(end, data & ~static_cast<off_t>(kPageBytes - 1));
    for (; at < data; at += kPageBytes) visit(static_cast<size_t>(at) / kPageBytes, nullptr);
    if (at >= end) break;
    off_t hole = lseek(fd, at, SEEK_HOLE);
    if (hole < 0) throw ErrnoFailure(errno, "lseek", "the disk");
    hole = std::min(end, (hole + static_cast<off_t>(kPageBytes) - 1) & ~static_cast<off_t>(kPageBytes - 1));
    buffer.resize(kReadBytes);
    while (at < hole) {
      const size_t wanted = std::min<size_t>(kReadBytes, static_cast<size_t>(hole - at));
      size_t got = 0;
      while (got < wanted) {
        const ssize_t part = pread(fd, buffer.data() + got, wanted - got, at + static_cast<off_t>(got));
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) throw ErrnoFailure(errno, "pread", "the disk");
        if (part == 0) throw Failure{"ERR_SIZE", "pread", "the disk is shorter than it should be"};
        got += static_cast<size_t>(part);
      }
      for (size_t i = 0; i < wanted; i += kPageBytes)
        visit((static_cast<size_t>(at) + i) / kPageBytes, buffer.data() + i);
      at += static_cast<off_t>(wanted);
    }
  }
}

// Writes the image's content of the pages that `differs` says, from `from` on.
uint64_t Mend(const ShadowImage& image, int fd, size_t firstPage, size_t from, std::vector<bool>* differs) {
  uint64_t mended = 0;
  PageScratch scratch;
  for (size_t i = 0; i < differs->size();) {
    if (!(*differs)[i]) {
      i++;
      continue;
    }
    size_t zeros = i;
    while (zeros < differs->size() && (*differs)[zeros] &&
           image.PageHash(firstPage + from + zeros) == image.ZeroHash())
      (*differs)[zeros++] = false;
    if (zeros > i) {
      PutZeros(fd, from + i, zeros - i);
      mended += zeros - i;
      i = zeros;
      continue;
    }
    image.ReadAround(firstPage + from + i, scratch, [&](size_t each, const uint8_t* content) {
      if (each < firstPage + from || each - firstPage - from >= differs->size()) return;
      const size_t at = each - firstPage - from;
      if (!(*differs)[at]) return;
      (*differs)[at] = false;
      WriteAll(fd, content, kPageBytes, (from + at) * kPageBytes);
      mended++;
    });
  }
  return mended;
}

}  // namespace

size_t VisitDisk(int fd, const std::function<void(size_t page, const uint8_t* content)>& visit) {
  const off_t bytes = lseek(fd, 0, SEEK_END);
  if (bytes < 0) throw ErrnoFailure(errno, "lseek", "the disk");
  const size_t pages = static_cast<size_t>(bytes) / kPageBytes;
  ReadDisk(fd, 0, pages, visit);
  return pages;
}

uint64_t FillDisk(const ShadowImage& image, int fd, size_t firstPage, size_t from, size_t to) {
  std::vector<bool> differs(to - from);
  ReadDisk(fd, from, to, [&](size_t page, const uint8_t* content) {
    const uint64_t hash = content == nullptr ? image.ZeroHash() : image.HashOf(content);
    differs[page - from] = hash != image.PageHash(firstPage + page);
  });
  return Mend(image, fd, firstPage, from, &differs);
}

static int Duplicate(int fd) {
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw ErrnoFailure(errno, "dup", "the shadow's disk");
  return copy;
}

DiskTwin::DiskTwin(int fd, size_t firstPage, size_t pages) : fd_(Duplicate(fd)), firstPage_(firstPage), pages_(pages) {}
DiskTwin::~DiskTwin() { close(fd_); }

void DiskTwin::Break(const Failure& failure) {
  next_ = 0;
  std::lock_guard<std::mutex> lock(mutex_);
  failure_ = failure.message;
}

std::string DiskTwin::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void DiskTwin::Advance(const ShadowImage& image, size_t count) {
  const size_t from = next_;
  const size_t to = std::min(pages_, from + count);
  try {
    FillDisk(image, fd_, firstPage_, from, to);
  } catch (const Failure& failure) {
    Break(failure);
    throw;
  }
  next_ = to;
  if (to < pages_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  failure_.clear();
}

void DiskTwin::Apply(size_t page, size_t count, const uint8_t* content) {
  if (page >= next_) return;  // comes with Advance
  count = std::min(count, next_ - page);
  try {
    if (content == nullptr)
      PutZeros(fd_, page, count);
    else
      WriteAll(fd_, content, count * kPageBytes, page * kPageBytes);
  } catch (const Failure& failure) {
    Break(failure);
  }
}

std::vector<uint64_t> DiskTwin::Hashes(const ShadowImage& image) const {
  std::vector<uint64_t> hashes(next_);
  for (size_t page = 0; page < hashes.size(); page++) hashes[page] = image.PageHash(firstPage_ + page);
  return hashes;
}

void DiskTwin::Rewound(const ShadowImage& image, const std::vector<uint64_t>& before) {
  std::vector<bool> differs(before.size());
  for (size_t page = 0; page < before.size(); page++) differs[page] = before[page] != image.PageHash(firstPage_ + page);
  try {
    Mend(image, fd_, firstPage_, 0, &differs);
  } catch (const Failure& failure) {
    Break(failure);
  }
}
