#include "page_table.h"

#include <sys/mman.h>

#include <vector>

#include "../worker.h"
#include <cerrno>

size_t PageTable::bytes() const { return (2 * pages_ * sizeof(uint64_t) + kPageBytes - 1) / kPageBytes * kPageBytes; }

PageTable::PageTable(size_t pages) : pages_(pages) {
  void* area = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) throw ErrnoFailure(errno, "mmap", "page table");
  // A huge page would take 2 MiB for one changed entry.
  madvise(area, bytes(), MADV_NOHUGEPAGE);
  // Both arrays lie in this one mapping, which lives as long as this object; page numbers are checked by the callers.
  locations_ = static_cast<uint64_t*>(area);
  hashes_ = locations_ + pages;
}

PageTable::~PageTable() { munmap(locations_, bytes()); }

void PageTable::Assign(const PageTable& other) {
  for (size_t page = 0; page < pages_; page++) Set(page, other.At(page), other.Hash(page));
}

size_t PageTable::ResidentBytes() const {
  std::vector<uint8_t> present(bytes() / kPageBytes);
  size_t resident = 0;
  if (mincore(locations_, bytes(), present.data()) == 0)
    for (const uint8_t page : present) resident += (page & 1) * kPageBytes;
  return resident;
}
