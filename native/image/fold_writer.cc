#include "fold_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

// A leftover of a process that died may be in the way.
static std::string Cleared(const std::string& path) {
  unlink(path.c_str());
  return path;
}

FoldWriter::FoldWriter(const ImageIdentity& identity, const std::string& path, uint32_t number, int level)
    : identity_(identity),
      path_(path),
      temporary_(Cleared(path + ".tmp")),
      file_(temporary_, O_RDWR | O_CREAT | O_EXCL),
      compressor_(level) {
  const std::vector<uint8_t> header = EncodeSegmentHeader(identity, SegmentKind::kFold, number);
  writer_.Start(&file_, 0);
  writer_.Append(header.data(), header.size());
}

FoldWriter::~FoldWriter() {
  if (!named_) unlink(temporary_.c_str());
}

void FoldWriter::Move(const SegmentSet& segments, const std::vector<uint32_t>& pages, bool verbatim, PageTable* table,
                      Pace& pace) {
  PageScratch scratch;
  for (size_t i = 0; i < pages.size();) {
    pace.Step();
    const Location first = table->At(pages[i]);
    const Segment& segment = *segments.At(first.segment());
    const BlockView block = ReadBlock(segment, first.offset(), identity_.key, scratch);
    size_t end = i;
    for (; end < pages.size(); end++) {
      const Location at = table->At(pages[end]);
      if (at.segment() != first.segment() || at.offset() != first.offset()) break;
      if (at.slot() >= block.header.slots || block.pages[at.slot()] != pages[end] ||
          hash_(block.raw + at.slot() * kPageBytes, identity_.key) != table->Hash(pages[end]))
        throw CorruptImage(SegmentName(segment.kind, segment.number),
                           "page " + std::to_string(pages[end]) + " fails its checksum");
    }
    movedPages_ += end - i;
    if (verbatim && end - i == block.header.slots) {
      const uint64_t offset = writer_.position();
      writer_.Append(block.whole, block.wholeBytes);
      for (; i < end; i++)
        table->Set(pages[i], Location::In(EntryKind::kBlock, kThisFold, offset, table->At(pages[i]).slot()),
                   table->Hash(pages[i]));
      continue;
    }
    for (; i < end; i++)
      AddPage(pages[i], table->Hash(pages[i]), block.raw + table->At(pages[i]).slot() * kPageBytes, table);
  }
}

void FoldWriter::AddPage(uint32_t page, uint64_t hash, const uint8_t* content, PageTable* table) {
  builder_.Add(page, content);
  inBuilder_.push_back({page, hash});
  if (builder_.full()) EndBlock(table);
}

void FoldWriter::EndBlock(PageTable* table) {
  if (builder_.empty()) return;
  builder_.Compress(compressor_, identity_.key);
  const uint64_t offset = builder_.Write(writer_);
  for (size_t slot = 0; slot < inBuilder_.size(); slot++)
    table->Set(inBuilder_[slot].page, Location::In(EntryKind::kBlock, kThisFold, offset, slot), inBuilder_[slot].hash);
  inBuilder_.clear();
}

uint64_t FoldWriter::Finish(CommitHeader header, const std::vector<uint8_t>& device, const SegmentSet& segments,
                            PageTable* table) {
  EndBlock(table);
  std::vector<SegmentEntry> named;
  std::vector<uint16_t> indexOf(kThisFold + 1);  // slot → 1 + index in `named`
  for (size_t page = 0; page < table->pages(); page++) {
    const Location at = table->At(page);
    if (!at.stored() || at.segment() == kThisFold || indexOf[at.segment()] != 0) continue;
    const Segment& segment = *segments.At(at.segment());
    named.push_back({segment.number, 0, segment.storedPages, segment.lastSequence});
    indexOf[at.segment()] = static_cast<uint16_t>(named.size());
  }
  std::vector<uint32_t> stored;
  for (size_t page = 0; page < table->pages(); page++)
    if (table->At(page).stored()) stored.push_back(static_cast<uint32_t>(page));
  std::sort(stored.begin(), stored.end(), [&](uint32_t a, uint32_t b) {
    const Location x = table->At(a), y = table->At(b);
    if (x.segment() != y.segment()) return x.segment() < y.segment();
    return x.offset() != y.offset() ? x.offset() < y.offset() : x.slot() < y.slot();
  });
  header.kind = RecordKind::kFold;
  header.durableSequence = header.sequence;
  const uint64_t commitOffset = writer_.position();
  CommitWriter commit(writer_, identity_.key);
  commit.Header(header, device.data(), device.size(), named, compressor_);
  for (const uint32_t page : stored) {
    const Location at = table->At(page);
    commit.Entry(page, at.kind(), indexOf[at.segment()], at.offset(), at.slot(), table->Hash(page));
  }
  // Without a base a page that is not named is all zeros anyway.
  for (size_t page = 0; identity_.hasBase() && page < table->pages(); page++)
    if (table->At(page).kind() == EntryKind::kZero) commit.Entry(page, EntryKind::kZero, 0, 0, 0, 0);
  commit.Finish(0);
  writer_.Flush();
  file_.Sync();
  file_.DropCache(0, writer_.position());
  return commitOffset;
}

void FoldWriter::Name(bool replace) {
  const int failed = replace ? rename(temporary_.c_str(), path_.c_str()) : link(temporary_.c_str(), path_.c_str());
  if (failed != 0) throw ErrnoFailure(errno, replace ? "rename" : "link", path_);
  if (!replace) unlink(temporary_.c_str());
  named_ = true;
}

std::vector<uint32_t> StoredPages(const SegmentSet& segments, const PageTable& table, const std::vector<bool>& wanted) {
  std::vector<uint32_t> pages;
  for (size_t page = 0; page < table.pages(); page++)
    if (table.At(page).stored() && wanted[table.At(page).segment()]) pages.push_back(static_cast<uint32_t>(page));
  std::vector<uint64_t> recency(segments.size());
  for (size_t slot = 0; slot < recency.size(); slot++)
    if (segments.At(slot)) recency[slot] = segments.At(slot)->recency();
  std::sort(pages.begin(), pages.end(), [&](uint32_t a, uint32_t b) {
    const Location x = table.At(a), y = table.At(b);
    if (x.segment() != y.segment())
      return recency[x.segment()] != recency[y.segment()] ? recency[x.segment()] < recency[y.segment()]
                                                          : x.segment() < y.segment();
    return x.offset() != y.offset() ? x.offset() < y.offset() : x.slot() < y.slot();
  });
  return pages;
}
