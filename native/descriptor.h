// A descriptor that another process has open, taken over by number.
#pragma once

// A duplicate (close-on-exec) of descriptor `number` of process `pid`, for the caller to close. The number in the other
// process is the same open file: it needs no path, and works for memory files and userfaultfds, which have none.
// Throws Failure: ESRCH, EBADF, EPERM.
int TakeDescriptor(int pid, int number);
