#include "hot_pages.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <unordered_set>

#include "image/codec.h"
#include "image/file.h"

struct HotPagesHeader {
  char magic[8];
  uint32_t pages;
} __attribute__((packed));

static const char kMagic[8] = {'S', 'V', 'M', 'H', 'O', 'T', '2', '\n'};

static size_t ChunksOf(size_t pages) { return (pages + kHotChunkPages - 1) / kHotChunkPages; }

bool HotPages::Unpack(size_t chunk, uint8_t* out) const {
  const std::vector<uint8_t>& stored = chunks[chunk];
  return Decompress(stored.data(), stored.size(), out, PagesOf(chunk) * kPageBytes);
}

HotPages ReadHotPages(const std::string& path) {
  try {
    const File file(path, O_RDONLY);
    HotPagesHeader header;
    if (file.ReadSome(0, &header, sizeof header) != sizeof header) return {};
    if (memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.pages > kHotPagesMax) return {};
    // Nothing that is stored is larger than its pages.
    std::vector<uint8_t> bytes(std::min<uint64_t>(file.Size(), sizeof header + kHotPagesMax * (8 + kPageBytes)));
    if (file.ReadSome(0, bytes.data(), bytes.size()) != bytes.size()) return {};
    const size_t chunks = ChunksOf(header.pages);
    size_t at = sizeof header + (header.pages + chunks) * sizeof(uint32_t);
    if (bytes.size() < at) return {};
    HotPages hot;
    hot.numbers.resize(header.pages);
    memcpy(hot.numbers.data(), bytes.data() + sizeof header, header.pages * sizeof(uint32_t));
    std::vector<uint32_t> storedBytes(chunks);
    memcpy(storedBytes.data(), bytes.data() + at - chunks * sizeof(uint32_t), chunks * sizeof(uint32_t));
    for (const uint32_t each : storedBytes) {
      if (bytes.size() - at < each) return {};
      hot.chunks.emplace_back(bytes.data() + at, bytes.data() + at + each);
      at += each;
    }
    return hot;
  } catch (const Failure&) {
    return {};
  }
}

void WriteHotPages(const std::string& path, const PageSource& source, const std::vector<uint32_t>& numbers,
                   const std::atomic<bool>& stop) {
  HotPagesHeader header = {};
  memcpy(header.magic, kMagic, sizeof kMagic);
  std::vector<uint32_t> taken;
  std::vector<uint8_t> contents;
  PageScratch scratch;
  for (const uint32_t page : numbers) {
    if (stop) return;
    if (page >= source.pages() || taken.size() == kHotPagesMax) continue;
    const size_t at = contents.size();
    contents.resize(at + kPageBytes);
    taken.push_back(page);
    source.ReadAround(page, scratch, [&](size_t each, const uint8_t* content) {
      if (each == page && content != nullptr) memcpy(contents.data() + at, content, kPageBytes);
    });
  }
  header.pages = static_cast<uint32_t>(taken.size());
  Compressor compressor(kAppendLevel);
  std::vector<uint32_t> storedBytes;
  std::vector<uint8_t> stored;
  for (size_t at = 0; at < contents.size(); at += kHotChunkPages * kPageBytes) {
    const size_t bytes = std::min(kHotChunkPages * kPageBytes, contents.size() - at);
    const size_t before = stored.size();
    stored.resize(before + bytes);
    // What does not become smaller is left out: its pages come from the source.
    storedBytes.push_back(
        static_cast<uint32_t>(compressor.Compress(contents.data() + at, bytes, stored.data() + before)));
    stored.resize(before + storedBytes.back());
  }
  const std::string fresh = path + ".new";
  {
    File file(fresh, O_RDWR | O_CREAT | O_TRUNC);
    file.Write(0, &header, sizeof header);
    file.Write(sizeof header, taken.data(), taken.size() * sizeof(uint32_t));
    const size_t sizesAt = sizeof header + taken.size() * sizeof(uint32_t);
    file.Write(sizesAt, storedBytes.data(), storedBytes.size() * sizeof(uint32_t));
    file.Write(sizesAt + storedBytes.size() * sizeof(uint32_t), stored.data(), stored.size());
  }
  // Not flushed: after a power loss it may be empty, and is written anew.
  if (rename(fresh.c_str(), path.c_str()) != 0) throw ErrnoFailure(errno, "rename", path);
}

std::vector<uint32_t> MergeHotPages(const std::vector<uint32_t>& filled, const std::vector<uint32_t>& missed,
                                    const std::vector<uint32_t>& before) {
  std::unordered_set<uint32_t> seen(before.begin(), before.end());
  std::vector<uint32_t> all;
  for (const std::vector<uint32_t>* part : {&filled, &missed})
    for (const uint32_t page : *part)
      if (seen.insert(page).second) all.push_back(page);
  if (all.size() > kHotPagesMax) {
    const auto oldest = all.begin() + kHotPagesFirst;
    all.erase(oldest, oldest + static_cast<ptrdiff_t>(all.size() - kHotPagesMax));
  }
  return all;
}
