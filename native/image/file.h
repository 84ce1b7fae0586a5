// A file of an image. What it reads and writes stays out of the page cache where the kernel can do that: the cache of
// the log would otherwise be the biggest part of what a shadow takes.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "../memory.h"
#include "../worker.h"

Failure CorruptImage(const std::string& path, const std::string& what);

class File {
 public:
  // Throws the errno of open(2). A file that is created is for its owner only: it holds the hash key.
  File(const std::string& path, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  uint64_t Size() const;
  // All or nothing; a file that ends before that is ERR_IMAGE_CORRUPT.
  void Read(uint64_t offset, void* out, size_t bytes) const;
  // As much as there is, up to `bytes`.
  size_t ReadSome(uint64_t offset, void* out, size_t bytes) const;
  // It is about to be read: the disk is asked for it, and nobody waits.
  void Expect(uint64_t offset, size_t bytes) const;
  void Write(uint64_t offset, const void* data, size_t bytes);
  void Truncate(uint64_t bytes);
  void Sync() const;  // data and size
  // Drops what is clean from the page cache. Without RWF_DONTCACHE only this keeps it small.
  void DropCache(uint64_t offset, uint64_t bytes) const;
  uint64_t CachedBytes() const;

  const std::string path;
  const int fd;

 private:
  mutable std::atomic<bool> dontCache_{true};  // until the kernel or the file system refuses
  uint64_t startedWritebackAt_ = 0;            // the writer's own
};

// Makes created, renamed and removed names durable.
void SyncFolder(int fd, const std::string& path);
