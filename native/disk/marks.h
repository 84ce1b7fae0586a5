// Which pages of a primary's disk were written: the manager's side of a struct shadowvm_disk (shim/control.h).
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "../process.h"

// One thread at a time; the shim's threads mark meanwhile. What a QEMU that its guest has taken over makes of these bytes
// harms its own disks alone: no page beyond `pages` is ever told.
class DiskMarks {
 public:
  // Throws ERR_SIZE when the process has no such disk.
  DiskMarks(std::shared_ptr<ControlPage> control, size_t index, size_t pages);

  // What a manager that died had taken is as if it had not; and what it was about to look at is looked at again.
  void Recover();
  // As if nothing had been written.
  void Clear();
  // How many pages are marked; stops counting above `enough`.
  size_t Count(size_t enough) const;
  // Takes the marks there are, and returns them as runs of pages. They are kept as taken until Settle or GiveBack.
  struct Run {
    size_t first;
    size_t end;
  };
  std::vector<Run> Take();
  // Of no page's marks anything is to be known any more: the epoch that has it is committed.
  void Settle(size_t page);
  void GiveBack(size_t page);

 private:
  size_t words() const { return (pages_ + 63) / 64; }
  uint64_t ValidBits(size_t word) const;
  void MarkWritten(size_t word, uint64_t bits);
  // Calls visit(word) for those of an array of words that may not be zero; the others take no memory, and are to take none.
  void VisitWords(const uint64_t* array, const std::function<void(size_t word)>& visit) const;

  const std::shared_ptr<ControlPage> control_;
  shadowvm_disk* const disk_;
  const size_t pages_;
};
