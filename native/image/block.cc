#include "block.h"

#include <cstring>

#include "digest.h"

BlockBuilder::BlockBuilder() : raw_(kBlockBytes), stored_(kBlockBytes) {}

size_t BlockBuilder::Add(uint32_t page, const uint8_t* content) {
  pages_[slots_] = page;
  memcpy(raw_.data() + slots_ * kPageBytes, content, kPageBytes);
  return slots_++;
}

static uint64_t HeaderChecksum(const uint8_t* key, const BlockHeader& header, const uint32_t* pages) {
  uint8_t bytes[sizeof header + kBlockSlots * sizeof(uint32_t)];
  memcpy(bytes, &header, offsetof(BlockHeader, checksum));
  memcpy(bytes + offsetof(BlockHeader, checksum), pages, header.slots * sizeof(uint32_t));
  return Checksum(key, bytes, offsetof(BlockHeader, checksum) + header.slots * sizeof(uint32_t));
}

void BlockBuilder::Compress(Compressor& compressor, const uint8_t* key) {
  header_ = {};
  header_.magic = kBlockMagic;
  header_.kind = BlockKind::kPages;
  header_.slots = static_cast<uint8_t>(slots_);
  header_.rawBytes = static_cast<uint32_t>(slots_ * kPageBytes);
  const size_t compressed = compressor.Compress(raw_.data(), header_.rawBytes, stored_.data());
  header_.codec = compressed > 0 ? Codec::kZstd : Codec::kRaw;
  header_.storedBytes = compressed > 0 ? static_cast<uint32_t>(compressed) : header_.rawBytes;
  header_.payloadChecksum = Checksum(key, compressed > 0 ? stored_.data() : raw_.data(), header_.storedBytes);
  header_.checksum = HeaderChecksum(key, header_, pages_);
}

uint64_t BlockBuilder::Write(SegmentWriter& writer) {
  const uint64_t offset = writer.position();
  writer.Append(&header_, sizeof header_);
  writer.Append(pages_, slots_ * sizeof(uint32_t));
  writer.Append(header_.codec == Codec::kZstd ? stored_.data() : raw_.data(), header_.storedBytes);
  slots_ = 0;
  return offset;
}

static size_t HeadBytes(const BlockHeader& header) { return sizeof header + header.slots * sizeof(uint32_t); }
size_t BlockTotalBytes(const BlockHeader& header) { return HeadBytes(header) + header.storedBytes; }

// Parses `bytes` of a file's content at `data`. Everything the rest of this file relies on is checked here.
static bool ParseHead(const uint8_t* data, size_t bytes, const uint8_t* key, BlockHeader* header, uint32_t* pages) {
  if (bytes < sizeof *header) return false;
  memcpy(header, data, sizeof *header);
  if (header->magic != kBlockMagic || header->slots == 0 || header->slots > kBlockSlots || bytes < HeadBytes(*header))
    return false;
  memcpy(pages, data + sizeof *header, header->slots * sizeof(uint32_t));
  if (header->checksum != HeaderChecksum(key, *header, pages)) return false;
  if (header->rawBytes > kBlockBytes || header->storedBytes > kBlockBytes) return false;
  if (header->kind != BlockKind::kPages || header->rawBytes != header->slots * kPageBytes) return false;
  return header->codec == Codec::kZstd || (header->codec == Codec::kRaw && header->storedBytes == header->rawBytes);
}

BlockView ReadBlock(const Segment& segment, uint64_t offset, const uint8_t* key, PageScratch& scratch) {
  if (!segment.file) throw CorruptImage(SegmentName(segment.kind, segment.number), "the segment is lost");
  const File& file = *segment.file;
  scratch.stored.resize(kMaxStoredBlockBytes);
  BlockView view;
  const size_t got = file.ReadSome(offset, scratch.stored.data(), kMostBlocksBytes);
  if (!ParseHead(scratch.stored.data(), got, key, &view.header, view.pages))
    throw CorruptImage(file.path, "no block at offset " + std::to_string(offset));
  const size_t head = HeadBytes(view.header);
  view.whole = scratch.stored.data();
  view.wholeBytes = BlockTotalBytes(view.header);  // at most kMaxStoredBlockBytes: ParseHead saw to it
  if (view.wholeBytes > got) file.Read(offset + got, scratch.stored.data() + got, view.wholeBytes - got);
  if (view.header.codec == Codec::kRaw) {
    view.raw = view.whole + head;
    return view;
  }
  scratch.raw.resize(kBlockBytes);
  if (!Decompress(view.whole + head, view.header.storedBytes, scratch.raw.data(), view.header.rawBytes))
    throw CorruptImage(file.path, "the block at offset " + std::to_string(offset) + " can not be decompressed");
  view.raw = scratch.raw.data();
  return view;
}

bool ReadBlockHeader(const File& file, uint64_t offset, uint64_t end, const uint8_t* key, BlockHeader* header,
                     uint32_t* pages) {
  uint8_t head[sizeof *header + kBlockSlots * sizeof(uint32_t)];
  const size_t got = file.ReadSome(offset, head, sizeof head);
  return ParseHead(head, got, key, header, pages) && offset + BlockTotalBytes(*header) <= end;
}
