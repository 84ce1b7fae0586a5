// Marks what QEMU writes to the guest's disks, in the file behind the control page.
#pragma once
#include "control.h"

// From here on. `control` is the start of the mapping of the whole file.
void watch_disk_writes(struct shadowvm_control *control);
