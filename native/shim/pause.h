// The pause of an epoch, and what a guest in strict mode may send, told to QEMU without a monitor.
#pragma once
#include "control.h"

// Called once by QEMU's main thread, when its main loop is there. Where QEMU can not be told so, the control page says it.
void serve_pauses(struct shadowvm_control *control);
