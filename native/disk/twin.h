// The file that a promotion's guest will find as its disk: kept at exactly what the image's head holds.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../image/shadow_image.h"
#include "../worker.h"

// Calls visit for each page of a disk's file, from its first to its last; content of nullptr in a hole. Returns the
// number of pages.
size_t VisitDisk(int fd, const std::function<void(size_t page, const uint8_t* content)>& visit);

// Makes pages `from` to before `to` of a disk's file what the head holds of them, and returns how many were not. Holes
// are looked up and not read. `firstPage`: the disk's place among the image's pages.
uint64_t FillDisk(const ShadowImage& image, int fd, size_t firstPage, size_t from, size_t to);

// Not thread-safe but for left() and failure(): all else comes from the thread that commits, so that no page can get an
// older content than a commit gave it.
class DiskTwin {
 public:
  // Takes a duplicate of the descriptor. Nothing is known of the file: it is compared with the image from the start.
  DiskTwin(int fd, size_t firstPage, size_t pages);
  ~DiskTwin();
  DiskTwin(const DiskTwin&) = delete;
  DiskTwin& operator=(const DiskTwin&) = delete;

  size_t firstPage() const { return firstPage_; }
  size_t pages() const { return pages_; }
  // Compares the next `count` pages and mends them. Throws what reading or writing says.
  void Advance(const ShadowImage& image, size_t count);
  // Pages that a commit just changed; nullptr: to zeros. Nothing is thrown: a twin that can not be written is begun anew by
  // Advance.
  void Apply(size_t page, size_t count, const uint8_t* content);
  // What it was to get can not be had.
  void Break(const Failure& failure);
  // The image was taken back: pages with another checksum than in `before`, of this disk, are mended.
  void Rewound(const ShadowImage& image, const std::vector<uint64_t>& before);
  std::vector<uint64_t> Hashes(const ShadowImage& image) const;

  // Pages that were not compared yet; 0: the file is the head.
  size_t left() const { return pages_ - next_; }
  // Why it had to be begun anew; empty when it had not.
  std::string failure() const;

 private:
  const int fd_;
  const size_t firstPage_;
  const size_t pages_;
  std::atomic<size_t> next_{0};
  mutable std::mutex mutex_;
  std::string failure_;  // guarded by mutex_
};
