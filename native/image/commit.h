// The end of a record: epoch, device state, table. The record exists when its trailer does.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "codec.h"
#include "digest.h"
#include "format.h"
#include "page_table.h"
#include "segment.h"
#include "segment_writer.h"

// Writes a commit: Header, then Entry for each page (those of a block together, in slot order), then Finish.
class CommitWriter {
 public:
  CommitWriter(SegmentWriter& writer, const uint8_t* key);
  // Fills in what concerns the device state and the segments.
  void Header(CommitHeader header, const uint8_t* device, size_t deviceBytes, const std::vector<SegmentEntry>& segments,
              Compressor& compressor);
  // `segment` is 0 for the file that is being written, else 1 + its index in `segments`.
  void Entry(size_t page, EntryKind kind, size_t segment, uint64_t offset, size_t slot, uint64_t hash);
  // `recordOffset`: where the record began.
  void Finish(uint64_t recordOffset);

 private:
  void EndGroup();
  SegmentWriter& writer_;
  Digest digest_;
  uint64_t commitOffset_ = 0;
  GroupHeader group_ = {};
  std::vector<uint32_t> pages_;
  std::vector<uint64_t> hashes_;
};

struct TableGroup {
  GroupHeader header;
  const uint32_t* pages;   // header.count
  const uint64_t* hashes;  // header.count, of a block; else null
  const std::vector<SegmentEntry>* segments;  // that header.segment counts
};

// Reads a commit and checks all of it. Calls visit for each group, in bounds for `pages` of RAM; what it was given is to
// be thrown away when this throws ERR_IMAGE_CORRUPT in the end. A visit of null only checks.
using VisitGroup = std::function<void(const TableGroup&)>;
struct Commit {
  CommitHeader header;
  std::vector<SegmentEntry> segments;
  Trailer trailer;
};
Commit ReadCommit(const File& file, uint64_t offset, uint64_t end, const uint8_t* key, size_t pages,
                  const VisitGroup& visit);

// The header alone, checked.
CommitHeader ReadCommitHeader(const File& file, uint64_t offset, const uint8_t* key);
std::vector<uint8_t> ReadDeviceState(const File& file, uint64_t commitOffset, const uint8_t* key);
