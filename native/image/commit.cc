#include "commit.h"

#include <algorithm>
#include <cstring>

// Zero and base pages are listed in groups of this many, so that a reader's buffer is bounded.
constexpr size_t kMaxGroupPages = 8192;

CommitWriter::CommitWriter(SegmentWriter& writer, const uint8_t* key) : writer_(writer), digest_(key) {
  group_.kind = EntryKind::kEnd;  // none is open
}

void CommitWriter::Header(CommitHeader header, const uint8_t* device, size_t deviceBytes,
                          const std::vector<SegmentEntry>& segments, Compressor& compressor) {
  commitOffset_ = writer_.position();
  std::vector<uint8_t> compressed(deviceBytes);
  const size_t stored = compressor.Compress(device, deviceBytes, compressed.data());
  if (stored > 0) device = compressed.data();
  header.magic = kCommitMagic;
  header.deviceRawBytes = static_cast<uint32_t>(deviceBytes);
  header.deviceStoredBytes = static_cast<uint32_t>(stored > 0 ? stored : deviceBytes);
  header.segments = static_cast<uint32_t>(segments.size());
  writer_.Watch(&digest_);
  const uint8_t* key = digest_.key();
  header.deviceChecksum = Checksum(key, device, header.deviceStoredBytes);
  header.checksum = Checksum(key, &header, offsetof(CommitHeader, checksum));
  writer_.Append(&header, sizeof header);
  writer_.Append(device, header.deviceStoredBytes);
  writer_.Append(segments.data(), segments.size() * sizeof(SegmentEntry));
}

void CommitWriter::Entry(size_t page, EntryKind kind, size_t segment, uint64_t offset, size_t slot, uint64_t hash) {
  const bool block = kind == EntryKind::kBlock;
  const uint16_t bit = block ? static_cast<uint16_t>(1u << slot) : 0;
  const bool same = group_.kind == kind && group_.segment == segment && group_.offset == offset &&
                    pages_.size() < kMaxGroupPages && (!block || bit > group_.mask);
  if (!same) {
    EndGroup();
    group_.kind = kind;
    group_.segment = static_cast<uint16_t>(segment);
    group_.offset = offset;
  }
  group_.mask |= bit;
  pages_.push_back(static_cast<uint32_t>(page));
  if (block) hashes_.push_back(hash);
}

void CommitWriter::EndGroup() {
  if (group_.kind == EntryKind::kEnd) return;
  group_.count = static_cast<uint32_t>(pages_.size());
  writer_.Append(&group_, sizeof group_);
  writer_.Append(pages_.data(), pages_.size() * sizeof(uint32_t));
  writer_.Append(hashes_.data(), hashes_.size() * sizeof(uint64_t));
  pages_.clear();
  hashes_.clear();
  group_ = {};
  group_.kind = EntryKind::kEnd;
}

void CommitWriter::Finish(uint64_t recordOffset) {
  EndGroup();
  writer_.Append(&group_, sizeof group_);
  Trailer trailer = {};
  trailer.commitBytes = writer_.position() + sizeof trailer - commitOffset_;
  trailer.recordBytes = writer_.position() + sizeof trailer - recordOffset;
  digest_.Add(&trailer, offsetof(Trailer, checksum));
  trailer.checksum = digest_.Value();
  trailer.magic = kTrailerMagic;
  writer_.Watch(nullptr);
  writer_.Append(&trailer, sizeof trailer);
}

namespace {

// Reads a stretch of a file in pieces, with a running checksum. Never reads past `end`.
class Stretch {
 public:
  Stretch(const File& file, uint64_t offset, uint64_t end, const uint8_t* key)
      : file_(file), at_(offset), end_(end), digest_(key), buffer_(kPieceBytes) {}
  void Take(void* out, size_t bytes) {
    Copy(out, bytes);
    digest_.Add(out, bytes);
  }
  void TakeUnchecked(void* out, size_t bytes) { Copy(out, bytes); }
  Digest& digest() { return digest_; }
  [[noreturn]] void Throw(const char* what) const { throw CorruptImage(file_.path, what); }

 private:
  static constexpr size_t kPieceBytes = 64u << 10;
  void Copy(void* out, size_t bytes) {
    uint8_t* to = static_cast<uint8_t*>(out);  // the caller's, with room for `bytes`
    while (bytes > 0) {
      if (from_ == filled_) {
        if (at_ >= end_) Throw("a table ends too early");
        filled_ = static_cast<size_t>(std::min<uint64_t>(kPieceBytes, end_ - at_));
        file_.Read(at_, buffer_.data(), filled_);
        at_ += filled_;
        from_ = 0;
      }
      const size_t part = std::min(bytes, filled_ - from_);
      memcpy(to, buffer_.data() + from_, part);
      from_ += part;
      to += part;
      bytes -= part;
    }
  }
  const File& file_;
  uint64_t at_;
  const uint64_t end_;
  Digest digest_;
  std::vector<uint8_t> buffer_;
  size_t from_ = 0;
  size_t filled_ = 0;
};

bool GoodHeader(const CommitHeader& header, const uint8_t* key) {
  return header.magic == kCommitMagic && header.checksum == Checksum(key, &header, offsetof(CommitHeader, checksum)) &&
         header.deviceRawBytes <= kMaxDeviceBytes && header.deviceStoredBytes <= header.deviceRawBytes &&
         header.segments < kMaxSegments;
}

bool GoodGroup(const GroupHeader& group, uint64_t commitOffset, size_t segments) {
  if (group.segment > segments) return false;
  if (group.kind == EntryKind::kZero || group.kind == EntryKind::kBase)
    return group.count > 0 && group.count <= kMaxGroupPages;
  return group.kind == EntryKind::kBlock && group.count == static_cast<uint32_t>(__builtin_popcount(group.mask)) &&
         group.count > 0 && group.offset < (group.segment == 0 ? commitOffset : kMaxSegmentBytes);
}

}  // namespace

Commit ReadCommit(const File& file, uint64_t offset, uint64_t end, const uint8_t* key, size_t pages,
                  const VisitGroup& visit) {
  Stretch stretch(file, offset, end, key);
  Commit commit;
  CommitHeader& header = commit.header;
  stretch.Take(&header, sizeof header);
  if (!GoodHeader(header, key)) stretch.Throw("no commit where one should be");
  std::vector<uint8_t> skipped(std::min<size_t>(header.deviceStoredBytes, 64u << 10));
  for (size_t left = header.deviceStoredBytes; left > 0;) {
    const size_t part = std::min(left, skipped.size());
    stretch.Take(skipped.data(), part);
    left -= part;
  }
  commit.segments.resize(header.segments);
  stretch.Take(commit.segments.data(), header.segments * sizeof(SegmentEntry));
  std::vector<uint32_t> numbers(kMaxGroupPages);
  uint64_t hashes[kBlockSlots];
  for (;;) {
    TableGroup group = {};
    stretch.Take(&group.header, sizeof group.header);
    if (group.header.kind == EntryKind::kEnd) break;
    if (!GoodGroup(group.header, offset, header.segments)) stretch.Throw("a table group is damaged");
    const size_t count = group.header.count;
    stretch.Take(numbers.data(), count * sizeof(uint32_t));
    group.pages = numbers.data();
    group.segments = &commit.segments;
    if (group.header.kind == EntryKind::kBlock) {
      stretch.Take(hashes, count * sizeof(uint64_t));
      group.hashes = hashes;
    }
    for (size_t i = 0; i < count; i++)
      if (numbers[i] >= pages) stretch.Throw("a table names a page that the RAM has not");
    if (visit) visit(group);
  }
  Trailer& trailer = commit.trailer;
  stretch.Take(&trailer, offsetof(Trailer, checksum));
  const uint64_t checksum = stretch.digest().Value();
  stretch.TakeUnchecked(&trailer.checksum, sizeof trailer - offsetof(Trailer, checksum));
  if (trailer.checksum != checksum || trailer.magic != kTrailerMagic || trailer.recordBytes < trailer.commitBytes)
    stretch.Throw("a table fails its checksum");
  return commit;
}

CommitHeader ReadCommitHeader(const File& file, uint64_t offset, const uint8_t* key) {
  CommitHeader header;
  file.Read(offset, &header, sizeof header);
  if (!GoodHeader(header, key)) throw CorruptImage(file.path, "no commit where one should be");
  return header;
}

std::vector<uint8_t> ReadDeviceState(const File& file, uint64_t commitOffset, const uint8_t* key) {
  const CommitHeader header = ReadCommitHeader(file, commitOffset, key);
  std::vector<uint8_t> stored(header.deviceStoredBytes);
  file.Read(commitOffset + sizeof header, stored.data(), stored.size());
  if (Checksum(key, stored.data(), stored.size()) != header.deviceChecksum)
    throw CorruptImage(file.path, "the device state fails its checksum");
  if (header.deviceStoredBytes == header.deviceRawBytes) return stored;
  std::vector<uint8_t> raw(header.deviceRawBytes);
  if (!Decompress(stored.data(), stored.size(), raw.data(), raw.size()))
    throw CorruptImage(file.path, "the device state can not be decompressed");
  return raw;
}
