// Blocks: up to 16 pages compressed together.
#pragma once
#include <cstdint>

#include "../page_source.h"
#include "codec.h"
#include "format.h"
#include "segment.h"
#include "segment_writer.h"

class BlockBuilder {
 public:
  BlockBuilder();
  bool empty() const { return slots_ == 0; }
  bool full() const { return slots_ == kBlockSlots; }
  size_t slots() const { return slots_; }
  // The page's slot in the block.
  size_t Add(uint32_t page, const uint8_t* content);
  // What Write() is to append. Of several builders at once, each in one thread and with a compressor of its own.
  void Compress(Compressor& compressor, const uint8_t* key);
  // Appends the compressed block and begins a new one. Returns its offset in the segment.
  uint64_t Write(SegmentWriter& writer);
  void Discard() { slots_ = 0; }

 private:
  BlockHeader header_ = {};
  std::vector<uint8_t> raw_;     // kBlockBytes
  std::vector<uint8_t> stored_;  // kBlockBytes
  uint32_t pages_[kBlockSlots];
  size_t slots_ = 0;
};

// A block in memory: points into the scratch that it was read into.
struct BlockView {
  BlockHeader header;
  uint32_t pages[kBlockSlots];
  const uint8_t* raw;     // header.rawBytes
  const uint8_t* whole;   // header, page numbers and payload as stored
  size_t wholeBytes;
};

constexpr size_t kMostBlocksBytes = 32u << 10;  // what the first read of a block brings; few are larger
constexpr size_t kMaxStoredBlockBytes = sizeof(BlockHeader) + kBlockSlots * sizeof(uint32_t) + kBlockBytes;

// Reads and decodes a block. Throws ERR_IMAGE_CORRUPT when there is none. Contents are not verified: each page has its
// own checksum in the index, which only the caller knows.
BlockView ReadBlock(const Segment& segment, uint64_t offset, const uint8_t* key, PageScratch& scratch);

// Reads the header and page numbers of a block that ends before `end`; false when none is there. Bytes up to the next.
bool ReadBlockHeader(const File& file, uint64_t offset, uint64_t end, const uint8_t* key, BlockHeader* header,
                     uint32_t* pages);
size_t BlockTotalBytes(const BlockHeader& header);
