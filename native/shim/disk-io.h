// Counts what the guest reads from its disks and writes to them.
#pragma once
#include <stddef.h>

#include "control.h"

// From now on. `bytes`: of the whole file that the control page begins.
void count_disk_io(struct shadowvm_control *control, size_t bytes);
