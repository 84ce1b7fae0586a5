// What the shim's thread does for a QEMU while there is no manager to do it.
#pragma once
#include "control.h"

struct guard {
  struct shadowvm_control *control;
  uint8_t *page_states;  // one per page of RAM, behind the control page
  int rescue;            // our end of a monitor of QEMU's own, -1 if none
};

// Never returns.
_Noreturn void guard_forever(struct guard guard);
