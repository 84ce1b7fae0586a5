#include "scan.h"

#include <algorithm>
#include <optional>

#include "block.h"

namespace {

bool GoodRecordHeader(const RecordHeader& header, const Segment& segment, uint64_t offset, const uint8_t* key) {
  return header.magic == kRecordMagic && header.offset == offset && header.segment == segment.number &&
         header.checksum == Checksum(key, &header, offsetof(RecordHeader, checksum));
}

// The record from `offset` whose commit is at `commitOffset`, if all of that is true.
std::optional<RecordPlace> Judge(const Segment& segment, const ImageIdentity& identity, uint64_t offset,
                                 uint64_t commitOffset, uint64_t end) {
  RecordHeader header;
  if (segment.file->ReadSome(offset, &header, sizeof header) != sizeof header ||
      !GoodRecordHeader(header, segment, offset, identity.key))
    return std::nullopt;
  RecordPlace place;
  try {
    const Commit commit = ReadCommit(*segment.file, commitOffset, end, identity.key, identity.pages(),
                                     [&](const TableGroup& group) {
                                       if (group.hashes != nullptr) place.storedPages += group.header.count;
                                     });
    place.header = commit.header;
    place.end = commitOffset + commit.trailer.commitBytes;
    if (place.end - offset != commit.trailer.recordBytes) return std::nullopt;
  } catch (const Failure& failure) {
    if (failure.code != "ERR_IMAGE_CORRUPT") throw;  // a read that failed says nothing about the bytes
    return std::nullopt;
  }
  if (place.header.kind != header.kind || place.header.sequence != header.sequence ||
      (header.kind != RecordKind::kEpoch && header.kind != RecordKind::kRewind))
    return std::nullopt;
  place.offset = offset;
  place.commitOffset = commitOffset;
  return place;
}

// By the lengths in its trailer: one or two reads per record, however big it is.
std::optional<RecordPlace> RecordEndingAt(const Segment& segment, const ImageIdentity& identity, uint64_t end) {
  Trailer trailer;
  const uint64_t room = end - segment.headerBytes;
  if (room < sizeof(RecordHeader) + sizeof(CommitHeader) + sizeof trailer) return std::nullopt;
  segment.file->Read(end - sizeof trailer, &trailer, sizeof trailer);
  if (trailer.magic != kTrailerMagic || trailer.recordBytes > room ||
      trailer.recordBytes < sizeof(RecordHeader) + sizeof(CommitHeader) + sizeof trailer ||
      trailer.commitBytes > trailer.recordBytes - sizeof(RecordHeader))
    return std::nullopt;
  const auto place = Judge(segment, identity, end - trailer.recordBytes, end - trailer.commitBytes, end);
  return place && place->end == end ? place : std::nullopt;
}

// From block to block: for a segment whose end is torn.
std::optional<RecordPlace> RecordStartingAt(const Segment& segment, const ImageIdentity& identity, uint64_t offset,
                                            uint64_t end) {
  uint64_t at = offset + sizeof(RecordHeader);
  BlockHeader header;
  uint32_t pages[kBlockSlots];
  while (at < end && ReadBlockHeader(*segment.file, at, end, identity.key, &header, pages)) at += BlockTotalBytes(header);
  return at < end ? Judge(segment, identity, offset, at, end) : std::nullopt;
}

}  // namespace

ScanResult ScanLog(const Segment& segment, const ImageIdentity& identity, uint64_t floor) {
  const uint64_t size = segment.file->Size();
  ScanResult result;
  result.goodEnd = size;
  uint64_t end = size;
  bool complete = end <= segment.headerBytes;
  while (!complete) {
    const auto place = RecordEndingAt(segment, identity, end);
    if (!place) break;
    result.records.push_back(*place);
    end = place->offset;
    complete = end == segment.headerBytes || place->header.sequence <= floor;
  }
  if (complete) {
    std::reverse(result.records.begin(), result.records.end());
    return result;
  }
  result.records.clear();
  uint64_t at = segment.headerBytes;
  while (at < size) {
    const auto place = RecordStartingAt(segment, identity, at, size);
    if (!place) break;
    result.records.push_back(*place);
    at = place->end;
  }
  result.goodEnd = at;
  return result;
}

bool PayloadIsWhole(const File& file, const RecordPlace& place, const uint8_t* key) {
  std::vector<uint8_t> payload(kBlockBytes);
  uint64_t at = place.offset + sizeof(RecordHeader);
  while (at < place.commitOffset) {
    BlockHeader header;
    uint32_t pages[kBlockSlots];
    if (!ReadBlockHeader(file, at, place.commitOffset, key, &header, pages)) return false;
    // storedBytes is at most kBlockBytes, and the block ends before the commit: ReadBlockHeader saw to both.
    file.Read(at + BlockTotalBytes(header) - header.storedBytes, payload.data(), header.storedBytes);
    if (Checksum(key, payload.data(), header.storedBytes) != header.payloadChecksum) return false;
    at += BlockTotalBytes(header);
  }
  return true;
}

RecordPlace FindFold(const Segment& segment, const ImageIdentity& identity, std::vector<SegmentEntry>* named) {
  const uint64_t end = segment.file->Size();
  Trailer trailer;
  if (end < segment.headerBytes + sizeof(CommitHeader) + sizeof trailer)
    throw CorruptImage(segment.file->path, "the file ends too early");
  segment.file->Read(end - sizeof trailer, &trailer, sizeof trailer);
  if (trailer.magic != kTrailerMagic || trailer.recordBytes != end || trailer.commitBytes > end - segment.headerBytes)
    throw CorruptImage(segment.file->path, "the table is not there");
  RecordPlace place;
  place.commitOffset = end - trailer.commitBytes;
  place.end = end;
  place.header = ReadCommitHeader(*segment.file, place.commitOffset, identity.key);
  if (place.header.kind != RecordKind::kFold) throw CorruptImage(segment.file->path, "this is no fold");
  if (named != nullptr)
    *named = ReadCommit(*segment.file, place.commitOffset, end, identity.key, identity.pages(), nullptr).segments;
  return place;
}
