#include "capture.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <unordered_set>

#include "../page_source.h"

// 32 MiB of an epoch's pages are kept until it is committed; the twins are written from them.
constexpr size_t kKeptPagesMax = 8192;
constexpr size_t kBlockPages = 256;
// 2 MiB stay between epochs, so that a pause does not pay for page faults.
constexpr size_t kWarmBlocks = 2;
constexpr size_t kWarmPages = 16384;
constexpr uint32_t kNoSlot = UINT32_MAX;

DiskCapture::DiskCapture(std::shared_ptr<ControlPage> control, std::shared_ptr<ShadowImage> image,
                         const std::vector<CapturedDisk>& disks)
    : control_(std::move(control)), image_(std::move(image)) {
  for (size_t i = 0; i < disks.size(); i++) disks_.push_back({-1, disks[i].firstPage, disks[i].pages, {control_, control_->IndexOfDisk(disks[i].fd), disks[i].pages}});
  for (size_t i = 0; i < disks.size(); i++) {
    disks_[i].marks.Recover();
    disks_[i].fd = fcntl(disks[i].fd, F_DUPFD_CLOEXEC, 0);
    if (disks_[i].fd < 0) throw ErrnoFailure(errno, "dup", "the primary's disk");
  }
}

// The marks stay as they are: whoever comes next recovers them.
DiskCapture::~DiskCapture() {
  for (const Disk& disk : disks_)
    if (disk.fd >= 0) close(disk.fd);
}

uint8_t* DiskCapture::Slot(size_t slot) { return blocks_[slot / kBlockPages].get() + slot % kBlockPages * kPageBytes; }

void DiskCapture::Note(size_t page, size_t slot) {
  const auto [known, isNew] = placeOf_.try_emplace(static_cast<uint32_t>(page), static_cast<uint32_t>(captured_.size()));
  if (isNew) captured_.push_back({static_cast<uint32_t>(page), 0, 0, false});
  captured_[known->second].slot = static_cast<uint32_t>(slot);
}

static void ReadAll(int fd, uint8_t* to, size_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t got = pread(fd, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw ErrnoFailure(errno, "pread", "the primary's disk");
    if (got == 0) throw Failure{"ERR_SIZE", "pread", "the primary's disk is shorter than it should be"};
    to += got;
    bytes -= static_cast<size_t>(got);
    offset += static_cast<uint64_t>(got);
  }
}

void DiskCapture::ReadRun(const Disk& disk, size_t first, size_t end, const Record* record) {
  while (first < end) {
    if (record != nullptr && slotsUsed_ >= kKeptPagesMax) Spill(*record);
    if (slotsUsed_ == blocks_.size() * kBlockPages)
      blocks_.push_back(std::unique_ptr<uint8_t[]>(new uint8_t[kBlockPages * kPageBytes]));
    const size_t count = std::min(end - first, kBlockPages - slotsUsed_ % kBlockPages);
    ReadAll(disk.fd, Slot(slotsUsed_), count * kPageBytes, first * kPageBytes);
    for (size_t i = 0; i < count; i++) Note(disk.firstPage + first + i, slotsUsed_ + i);
    slotsUsed_ += count;
    first += count;
  }
}

void DiskCapture::Compare(const Record& record) {
  control_->ForgetMarked();
  for (Disk& disk : disks_) {
    disk.marks.Clear();
    VisitDisk(disk.fd, [&](size_t page, const uint8_t* content) {
      const size_t number = disk.firstPage + page;
      if (page >= disk.pages) return;
      const uint64_t hash = content == nullptr ? image_->ZeroHash() : image_->HashOf(content);
      if (hash != image_->PageHash(number)) ReadRun(disk, page, page + 1, &record);
    });
  }
}

size_t DiskCapture::Count(size_t enough) const {
  size_t count = 0;
  for (const Disk& disk : disks_) count += disk.marks.Count(enough);
  return count;
}

size_t DiskCapture::Collect(const Record* record) {
  size_t pages = 0;
  for (Disk& disk : disks_) {
    const std::vector<DiskMarks::Run> runs = disk.marks.Take();
    try {
      for (const DiskMarks::Run& run : runs) {
        ReadRun(disk, run.first, run.end, record);
        pages += run.end - run.first;
      }
    } catch (...) {
      for (const DiskMarks::Run& run : runs)
        for (size_t page = run.first; page < run.end; page++) disk.marks.GiveBack(page);
      throw;
    }
  }
  return pages;
}

void DiskCapture::RecordOne(Captured& captured, const Record& record) {
  if (captured.slot == kNoSlot) return;
  const uint8_t* content = Slot(captured.slot);
  captured.hash = image_->HashOf(content);
  record(captured.page, captured.hash, content);
}

void DiskCapture::Spill(const Record& record) {
  for (Captured& captured : captured_) {
    RecordOne(captured, record);
    captured.slot = kNoSlot;
  }
  slotsUsed_ = 0;
}

size_t DiskCapture::RecordAll(const Record& record) {
  size_t count = 0;
  for (Captured& captured : captured_) {
    RecordOne(captured, record);
    captured.changed = captured.hash != image_->PageHash(captured.page);
    count += captured.changed;
  }
  return count;
}

void DiskCapture::Apply(DiskTwin& twin) const {
  const auto isOf = [&](const Captured& captured) {
    return captured.changed && captured.page >= twin.firstPage() && captured.page - twin.firstPage() < twin.pages();
  };
  const auto kept = [&](const Captured& captured) {
    return blocks_[captured.slot / kBlockPages].get() + captured.slot % kBlockPages * kPageBytes;
  };
  std::unordered_set<uint32_t> recorded;  // pages that are to be read back
  for (size_t i = 0; i < captured_.size();) {
    const Captured& first = captured_[i++];
    if (!isOf(first)) continue;
    const size_t page = first.page - twin.firstPage();
    if (first.hash == image_->ZeroHash()) {
      twin.Apply(page, 1, nullptr);
    } else if (first.slot == kNoSlot) {
      recorded.insert(first.page);
    } else {
      size_t count = 1;
      for (; i < captured_.size(); i++, count++) {
        const Captured& next = captured_[i];
        const bool follows = next.slot != kNoSlot && next.page == first.page + count &&
                             kept(next) == kept(first) + count * kPageBytes;
        if (!follows || !isOf(next) || next.hash == image_->ZeroHash()) break;
      }
      twin.Apply(page, count, kept(first));
    }
  }
  PageScratch scratch;
  try {
    while (!recorded.empty())
      image_->ReadAround(*recorded.begin(), scratch, [&](size_t page, const uint8_t* content) {
        if (recorded.erase(static_cast<uint32_t>(page)) > 0) twin.Apply(page - twin.firstPage(), 1, content);
      });
  } catch (const Failure& failure) {
    twin.Break(failure);
  }
}

void DiskCapture::Committed(const std::vector<std::shared_ptr<DiskTwin>>& twins) {
  // In this order: a death in between leaves more marked than need be.
  control_->SetMarked(image_->id(), image_->HeadEpoch());
  EachMark([](DiskMarks& marks, size_t page) { marks.Settle(page); });
  for (const auto& twin : twins) Apply(*twin);
  Reset();
}

void DiskCapture::GiveBack() {
  EachMark([](DiskMarks& marks, size_t page) { marks.GiveBack(page); });
  Reset();
}

template <typename Visit>
void DiskCapture::EachMark(const Visit& visit) {
  for (const Captured& captured : captured_)
    for (Disk& disk : disks_)
      if (captured.page >= disk.firstPage && captured.page - disk.firstPage < disk.pages)
        visit(disk.marks, captured.page - disk.firstPage);
}

void DiskCapture::Reset() {
  captured_.clear();
  if (placeOf_.size() > kWarmPages) placeOf_ = {};
  placeOf_.clear();
  slotsUsed_ = 0;
  if (blocks_.size() > kWarmBlocks) blocks_.resize(kWarmBlocks);
  if (captured_.capacity() > kWarmPages) captured_.shrink_to_fit();
}

size_t DiskCapture::MemoryBytes() const {
  constexpr size_t kPerPage = sizeof(Captured) + 4 * sizeof(void*);  // and its entry in placeOf_
  return blocks_.size() * kBlockPages * kPageBytes + captured_.capacity() * kPerPage;
}
