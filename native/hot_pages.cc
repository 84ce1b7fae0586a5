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
  uint32_t storedBytes;
};

static const char kMagic[8] = {'S', 'V', 'M', 'H', 'O', 'T', '1', '\n'};

HotPages ReadHotPages(const std::string& path) {
  try {
    const File file(path, O_RDONLY);
    std::vector<uint8_t> bytes(std::min<uint64_t>(file.Size(), sizeof(HotPagesHeader) + kHotPagesMax * (4 + kPageBytes)));
    HotPagesHeader header;
    if (file.ReadSome(0, bytes.data(), bytes.size()) != bytes.size() || bytes.size() < sizeof header) return {};
    memcpy(&header, bytes.data(), sizeof header);
    if (memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.pages > kHotPagesMax) return {};
    const size_t numbersBytes = header.pages * sizeof(uint32_t);
    if (bytes.size() != sizeof header + numbersBytes + header.storedBytes) return {};
    HotPages hot;
    hot.numbers.resize(header.pages);
    hot.contents.resize(header.pages * kPageBytes);
    memcpy(hot.numbers.data(), bytes.data() + sizeof header, numbersBytes);
    const uint8_t* stored = bytes.data() + sizeof header + numbersBytes;
    if (!Decompress(stored, header.storedBytes, hot.contents.data(), hot.contents.size())) return {};
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
  std::vector<uint8_t> stored(contents.size());
  const size_t storedBytes = Compressor(kAppendLevel).Compress(contents.data(), contents.size(), stored.data());
  if (storedBytes == 0) return;  // nothing, or nothing that is smaller compressed: not worth a file
  header.pages = static_cast<uint32_t>(taken.size());
  header.storedBytes = static_cast<uint32_t>(storedBytes);
  const std::string fresh = path + ".new";
  {
    File file(fresh, O_RDWR | O_CREAT | O_TRUNC);
    file.Write(0, &header, sizeof header);
    file.Write(sizeof header, taken.data(), taken.size() * sizeof(uint32_t));
    file.Write(sizeof header + taken.size() * sizeof(uint32_t), stored.data(), storedBytes);
  }
  // Not flushed: after a power loss it may be empty, and is written anew.
  if (rename(fresh.c_str(), path.c_str()) != 0) throw ErrnoFailure(errno, "rename", path);
}

std::vector<uint32_t> MergeHotPages(const std::vector<uint32_t>& filled, const std::vector<uint32_t>& missed) {
  std::unordered_set<uint32_t> seen;
  std::vector<uint32_t> all;
  for (const std::vector<uint32_t>* part : {&filled, &missed})
    for (const uint32_t page : *part)
      if (seen.insert(page).second) all.push_back(page);
  if (all.size() > kHotPagesMax) all.erase(all.begin(), all.end() - kHotPagesMax);
  return all;
}
