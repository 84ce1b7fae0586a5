// Sees what QEMU reads from the guest's disks and writes to them, in the file behind the control page.
#pragma once
#include "control.h"

// From here on. `control` is the start of the mapping of the whole file.
void watch_disks(struct shadowvm_control *control);
