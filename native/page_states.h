// Which pages of a QEMU's RAM are there: the bytes behind its control page (shim/control.h has the states).
#pragma once
#include <cstddef>
#include <memory>

#include "process.h"

// Safe from any thread. What the bytes say is only believed as far as no harm comes of it: a QEMU that its guest has
// taken over can write them too.
class PageStates {
 public:
  explicit PageStates(std::shared_ptr<ControlPage> control);

  size_t pages() const { return lazy_ ? control_->stateCount() : SIZE_MAX; }
  shadowvm_page Get(size_t page) const;
  // ABSENT → INSTALLING. False when somebody else was first.
  bool Claim(size_t page);
  // The end of a claim: PRESENT, or ABSENT again when the page could not be installed.
  void Settle(size_t page, shadowvm_page state);

  // Whether a mapping of the manager's own may read the page. False: it is absent, and equals what it will be filled
  // from. A page that is being installed is waited for, since its guest may write it before we hear that it is there.
  // Throws Failure ERR_PAGE_STUCK when that takes longer than any installation does, ERR_VM_DEAD.
  bool MayRead(size_t page) const;

 private:
  const std::shared_ptr<ControlPage> control_;
  const bool lazy_;
};
