// The priority of the calling thread. Without privileges it can not be raised: then nothing changes, and nothing is told.
#pragma once
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

inline id_t ThreadId() { return static_cast<id_t>(syscall(SYS_gettid)); }
inline void SetThreadNice(int nice) { setpriority(PRIO_PROCESS, ThreadId(), nice); }
