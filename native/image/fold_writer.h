// Writes a fold: blocks, and one table of all pages at one epoch.
#pragma once
#include <string>
#include <vector>

#include "block.h"
#include "commit.h"
#include "pace.h"
#include "page_table.h"
#include "state.h"

// The segment slot by which a table refers to the fold that is being written.
constexpr size_t kThisFold = kMaxSegments;

class FoldWriter {
 public:
  // Writes to `path`.tmp; the file gets its name when it is whole, or is removed with this object.
  FoldWriter(const ImageIdentity& identity, const std::string& path, uint32_t number, int level);
  ~FoldWriter();
  FoldWriter(const FoldWriter&) = delete;
  FoldWriter& operator=(const FoldWriter&) = delete;

  // Copies these pages (sorted by place) out of their blocks and lets `table` point to the copies. A block whose pages
  // are all wanted is copied as it is when `verbatim`. Throws ERR_IMAGE_CORRUPT rather than copy a damaged page.
  void Move(const SegmentSet& segments, const std::vector<uint32_t>& pages, bool verbatim, PageTable* table, Pace& pace);
  void AddPage(uint32_t page, uint64_t hash, const uint8_t* content, PageTable* table);
  // Writes epoch, device state and table, and syncs the file. Returns the offset of the commit.
  uint64_t Finish(CommitHeader header, const std::vector<uint8_t>& device, const SegmentSet& segments, PageTable* table);
  // `replace` false: EEXIST when the path is taken.
  void Name(bool replace);

  uint64_t bytes() const { return writer_.position(); }
  uint64_t movedPages() const { return movedPages_; }

 private:
  void EndBlock(PageTable* table);

  const ImageIdentity& identity_;
  const std::string path_;
  const std::string temporary_;
  File file_;
  bool named_ = false;
  SegmentWriter writer_;
  Compressor compressor_;
  BlockBuilder builder_;
  struct Placed {
    uint32_t page;
    uint64_t hash;
  };
  std::vector<Placed> inBuilder_;  // by slot
  HashPage hash_ = BestHashPage();
  uint64_t movedPages_ = 0;
};

// The pages of `table` that are stored in segments for which `wanted` says so, in the order in which they were written.
std::vector<uint32_t> StoredPages(const SegmentSet& segments, const PageTable& table, const std::vector<bool>& wanted);
