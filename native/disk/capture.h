// What one epoch changes on the primary's disks: found by their marks, read from their files, held until the commit.
#pragma once
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../image/shadow_image.h"
#include "marks.h"
#include "twin.h"

struct CapturedDisk {
  int fd;  // of the primary's file; a duplicate is taken
  size_t firstPage;  // its place among the image's pages
  size_t pages;
};

// The disks are captured as the RAM is: while the guest runs, again and again, and once more while it stands still. A page
// that is written while it is read is marked when that write is over, and read again.
//
// One thread at a time.
class DiskCapture {
 public:
  // Throws ERR_SIZE, ERR_NOT_TRACKED.
  DiskCapture(std::shared_ptr<ControlPage> control, std::shared_ptr<ShadowImage> image,
              const std::vector<CapturedDisk>& disks);
  ~DiskCapture();
  DiskCapture(const DiskCapture&) = delete;
  DiskCapture& operator=(const DiskCapture&) = delete;

  // Into the image's open record. Page numbers are the image's.
  using Record = std::function<void(size_t page, uint64_t hash, const uint8_t* content)>;
  // Nothing is known of what was written: captures every page that is not what the image holds, while the guest runs.
  void Compare(const Record& record);
  // Pages that Collect would take; stops counting above `enough`.
  size_t Count(size_t enough) const;
  // Captures what is marked and returns how many pages. With `record` (the guest runs) what is beyond the room for it goes
  // there; null: the guest stands still, and everything is kept.
  size_t Collect(const Record* record);
  // Records what was kept; returns how many pages of this epoch are not what the image's head holds.
  size_t RecordAll(const Record& record);
  // After the image's commit: twins get what was changed, and the marks are done with.
  void Committed(const std::vector<std::shared_ptr<DiskTwin>>& twins);
  // The epoch is given up: what it had is marked again.
  void GiveBack();
  size_t MemoryBytes() const;

 private:
  struct Disk {
    int fd;
    size_t firstPage;
    size_t pages;
    DiskMarks marks;
  };
  struct Captured {
    uint32_t page;  // the image's number
    uint32_t slot;  // kNoSlot: it is in the record
    uint64_t hash;  // once it was recorded
    bool changed;   // in a commit: not what the image held before
  };
  void ReadRun(const Disk& disk, size_t first, size_t end, const Record* record);
  void Note(size_t page, size_t slot);
  void Spill(const Record& record);
  void RecordOne(Captured& captured, const Record& record);
  void Apply(DiskTwin& twin) const;
  void Reset();
  uint8_t* Slot(size_t slot);
  template <typename Visit>
  void EachMark(const Visit& visit);

  const std::shared_ptr<ControlPage> control_;
  const std::shared_ptr<ShadowImage> image_;
  std::vector<Disk> disks_;
  std::vector<Captured> captured_;
  std::unordered_map<uint32_t, uint32_t> placeOf_;  // page → its place in captured_
  std::vector<std::unique_ptr<uint8_t[]>> blocks_;  // of kBlockPages slots each
  size_t slotsUsed_ = 0;
};
