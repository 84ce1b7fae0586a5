// The pages that a guest needs in the moment in which it wakes up, with their contents, in a file of their own. They lie
// all over an image: to fetch each with the block that it is stored in is some hundred reads, and takes as long as the
// awakening itself. Together they are one read.
//
// The file is a hint and never an authority: a page is only taken from it when it has the checksum that the source knows
// (PageSource::Holds). One that is missing, foreign or damaged costs time.
//
// The pages come in the order in which they were waited for, and are packed a few at a time: those that the devices are
// loaded with are there before the last ones are unpacked. Those until the guest's first sign of life are in one file,
// those until it has answered its clients in another, which is filled behind the first: in one, what the devices need
// would wait for what the last client needs.
//
//     "SVMHOT2\n"   u32 pages   u32 page number [pages]   u32 stored bytes [chunks]   zstd frame [chunks]
#pragma once
#include <algorithm>
#include <atomic>
#include <string>

#include "page_source.h"

constexpr size_t kHotPagesMax = 1536;  // 6 MiB, a few milliseconds of filling
constexpr size_t kHotPagesFirst = 128;  // always kept: the devices are loaded with them

constexpr size_t kHotChunkPages = 32;

struct HotPages {
  std::vector<uint32_t> numbers;
  std::vector<std::vector<uint8_t>> chunks;  // contents of kHotChunkPages each, the last one of what is left

  size_t PagesOf(size_t chunk) const { return std::min(kHotChunkPages, numbers.size() - chunk * kHotChunkPages); }
  // `out` has room for kHotChunkPages. False: it is damaged.
  bool Unpack(size_t chunk, uint8_t* out) const;
};

// Those of the file; none when it is not there or not whole. Throws nothing but std::bad_alloc.
HotPages ReadHotPages(const std::string& path);
// Replaces the file at once or not at all, by what the source holds now; gives up when `stop` is set. Throws Failure.
void WriteHotPages(const std::string& path, const PageSource& source, const std::vector<uint32_t>& numbers,
                   const std::atomic<bool>& stop);
// `filled` and then what was missing all the same, each once, without those of `before`. When there are too many the oldest
// go, but the very first: what was waited for last is certainly needed.
std::vector<uint32_t> MergeHotPages(const std::vector<uint32_t>& filled, const std::vector<uint32_t>& missed,
                                    const std::vector<uint32_t>& before);
