// Where the pages of a memory come from when it is filled: a shadow image, or another memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

// A reader's own buffers, kept between calls: reading allocates nothing per page.
struct PageScratch {
  std::vector<uint8_t> raw;
  std::vector<uint8_t> stored;
};

class PageSource {
 public:
  using Visit = std::function<void(size_t page, const uint8_t* content)>;

  virtual ~PageSource() = default;
  virtual size_t pages() const = 0;
  // Calls visit for `page` first, then for the pages that are stored with it and are current: they cost nothing more.
  // A content of nullptr is all zeros. Safe to call from several threads, each with a scratch of its own. Throws
  // Failure: ERR_IMAGE_CORRUPT for a page that fails its checksum (it is never visited), or the errno of a read.
  virtual void ReadAround(size_t page, PageScratch& scratch, const Visit& visit) const = 0;
  // These pages are about to be read: what has to come from a disk is asked for at once.
  virtual void Expect(const std::vector<uint32_t>& pages) const { (void)pages; }
  // What was expected has been read, and is not to stay in the page cache.
  virtual void Forget(const std::vector<uint32_t>& pages) const { (void)pages; }
  // Whether `page` has exactly this content, which came from elsewhere.
  virtual bool Holds(size_t page, const uint8_t* content) const = 0;
  // The pages that are not all zeros, most recently written first: the order in which to fill.
  virtual std::vector<uint32_t> FillOrder() const = 0;
};
