#include "descriptor.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "worker.h"

int TakeDescriptor(int pid, int number) {
  const std::string subject = "descriptor " + std::to_string(number) + " of process " + std::to_string(pid);
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pidfd < 0) throw ErrnoFailure(errno, "pidfd_open", subject);
  const int fd = static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, number, 0));
  const int error = errno;
  close(pidfd);
  if (fd < 0) throw ErrnoFailure(error, "pidfd_getfd", subject);
  return fd;
}
