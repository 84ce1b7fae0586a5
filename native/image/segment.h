// The files of an image, and the short numbers by which the index refers to them.
#pragma once
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "file.h"
#include "format.h"

// What all segments of one image have in common.
struct ImageIdentity {
  uint8_t imageId[kIdBytes] = {};
  uint8_t baseId[kIdBytes] = {};
  uint64_t baseEpoch = 0;
  uint64_t ramBytes = 0;
  uint64_t diskBytes = 0;
  uint8_t key[kHashKeyBytes] = {};
  std::string vm;
  std::string label;

  // The RAM's pages, and behind them the disks', in their order.
  size_t pages() const { return (ramBytes + diskBytes) / kPageBytes; }
  size_t ramPages() const { return ramBytes / kPageBytes; }
  bool hasBase() const;
};

struct Segment {
  Segment(std::unique_ptr<File> file, SegmentKind kind, uint32_t number)
      : file(std::move(file)), kind(kind), number(number) {}

  const std::unique_ptr<File> file;  // null: the file is lost, and its pages with it
  const SegmentKind kind;
  const uint32_t number;
  uint64_t headerBytes = 0;
  std::atomic<uint64_t> bytes{0};        // of whole records: the next one starts here
  bool sealed = false;                   // no record is added any more; guarded by the image's lock
  std::atomic<uint64_t> storedPages{0};  // in blocks, whether still needed or not
  std::atomic<uint64_t> lastSequence{0};

  // Pages of a segment with a higher one were written later.
  uint64_t recency() const { return lastSequence * 2 - (kind == SegmentKind::kFold && lastSequence > 0 ? 1 : 0); }
};

std::string SegmentName(SegmentKind kind, uint32_t number);

// The bytes that a new segment begins with.
std::vector<uint8_t> EncodeSegmentHeader(const ImageIdentity& identity, SegmentKind kind, uint32_t number);

enum class HeaderVerdict { kGood, kTorn, kForeign, kNewer };
struct ParsedHeader {
  HeaderVerdict verdict = HeaderVerdict::kTorn;
  SegmentHeader fixed = {};
  ImageIdentity identity;
  uint64_t bytes = 0;  // with the texts
};
// Judges the beginning of a file; any bytes may be there.
ParsedHeader ParseSegmentHeader(const File& file);

// Segment numbers on disk rise for ever; the index uses slots, which are reused. Guarded by the image's lock.
class SegmentSet {
 public:
  size_t Add(std::shared_ptr<Segment> segment);  // ERR_IMAGE_FULL when there are too many
  void Remove(size_t slot) { slots_[slot].reset(); }
  const std::shared_ptr<Segment>& At(size_t slot) const { return slots_[slot]; }
  size_t size() const { return slots_.size(); }
  // The slot of the segment with this number, or kMaxSegments.
  size_t Find(uint32_t number) const;

 private:
  std::vector<std::shared_ptr<Segment>> slots_;
};
