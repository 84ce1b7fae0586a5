// Page number → where its content is, and its checksum: the index of an image, 16 bytes per page (0.4 % of the RAM).
#pragma once
#include <cstddef>
#include <cstdint>

#include "format.h"

// Eight bytes: kind (3 bits), segment slot (16), byte offset of the block (41), slot in the block (4). Zero is kBase.
class Location {
 public:
  constexpr Location() = default;
  constexpr explicit Location(uint64_t bits) : bits_(bits) {}
  static constexpr Location Of(EntryKind kind) { return Location(static_cast<uint64_t>(kind)); }
  static constexpr Location In(EntryKind kind, size_t segment, uint64_t offset, size_t slot) {
    return Location(static_cast<uint64_t>(kind) | uint64_t{segment} << 3 | offset << 19 | uint64_t{slot} << 60);
  }
  constexpr EntryKind kind() const { return static_cast<EntryKind>(bits_ & 7); }
  constexpr bool stored() const { return kind() == EntryKind::kBlock; }
  constexpr size_t segment() const { return bits_ >> 3 & 0xffff; }
  constexpr uint64_t offset() const { return bits_ >> 19 & (kMaxSegmentBytes - 1); }
  constexpr size_t slot() const { return bits_ >> 60; }
  constexpr uint64_t bits() const { return bits_; }
  constexpr bool operator==(Location other) const { return bits_ == other.bits_; }

 private:
  uint64_t bits_ = 0;
};

// Two flat arrays in memory that is taken as it is written: pages that no epoch changed cost nothing, and no page is
// ever allocated for by itself. One thread may write (under the image's lock) while another reads single values.
class PageTable {
 public:
  explicit PageTable(size_t pages);
  ~PageTable();
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  size_t pages() const { return pages_; }
  Location At(size_t page) const { return Location(__atomic_load_n(&locations_[page], __ATOMIC_RELAXED)); }
  uint64_t Hash(size_t page) const { return __atomic_load_n(&hashes_[page], __ATOMIC_RELAXED); }  // of a stored page
  void Set(size_t page, Location location, uint64_t hash) {
    if (hashes_[page] != hash) __atomic_store_n(&hashes_[page], hash, __ATOMIC_RELAXED);
    if (locations_[page] != location.bits()) __atomic_store_n(&locations_[page], location.bits(), __ATOMIC_RELAXED);
  }
  void Assign(const PageTable& other);
  size_t ResidentBytes() const;

 private:
  size_t bytes() const;
  const size_t pages_;
  uint64_t* locations_;
  uint64_t* hashes_;
};
