// QEMU takes the commands of a monitor from its socket one byte at a time, and goes round its thread's loop for each: seven
// system calls, 5 µs. The commands of an epoch have 400 bytes, and the guest stands still for most of them. Here the first
// of these reads takes all there is, and the next ones find it without asking the kernel: 1 µs.
//
// What was read ahead has to be told of by poll() as well. So only sockets are read ahead that a thread waits for by poll(),
// as glib's loop does, in which the monitors are; QEMU's own loops use ppoll().
#define _GNU_SOURCE
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "interpose.h"

#define MONITORS_MAX 2  // the manager's and the shim's own
#define BYTES_MAX 1024
#define POLLED_MAX 8

// Of one socket. Only the thread that waits for it uses what it holds.
struct ahead {
  _Atomic int fd;  // 0: nobody's
  size_t at, end;
  char bytes[BYTES_MAX];
};

static struct ahead aheads[MONITORS_MAX];

// What this thread's last poll() that asked the kernel waited for, and found.
static _Thread_local struct pollfd polled[POLLED_MAX];
static _Thread_local nfds_t polled_count;
// By this the thread has called itself since then: it will look, however often it calls.
static _Thread_local int called = -1;

static struct ahead *ahead_of(int fd) {
  for (int i = 0; i < MONITORS_MAX; i++)
    if (atomic_load_explicit(&aheads[i].fd, memory_order_relaxed) == fd) return &aheads[i];
  return NULL;
}

static int holds_some(int fd) {
  const struct ahead *ahead = fd > 0 ? ahead_of(fd) : NULL;
  return ahead != NULL && ahead->at < ahead->end;
}

static const struct pollfd *polled_as(int fd) {
  for (nfds_t i = 0; i < polled_count; i++)
    if (polled[i].fd == fd) return &polled[i];
  return NULL;
}

EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
  REAL(poll);
  for (nfds_t i = 0; i < count; i++) {
    if (!(fds[i].events & POLLIN) || !holds_some(fds[i].fd)) continue;
    // The others' turn comes when this is used up.
    for (nfds_t other = 0; other < count; other++) fds[other].revents = other == i ? POLLIN : 0;
    return 1;
  }
  called = -1;
  const int ready = real(fds, count, timeout_ms);
  polled_count = ready > 0 && count <= POLLED_MAX ? count : 0;
  for (nfds_t i = 0; i < polled_count; i++) polled[i] = fds[i];
  return ready;
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
  REAL(recvmsg);
  if (fd <= 0 || message->msg_iovlen != 1 || message->msg_iov[0].iov_len != 1) return real(fd, message, flags);
  struct ahead *ahead = ahead_of(fd);
  if (ahead == NULL || ahead->at == ahead->end) {
    const struct pollfd *found = polled_as(fd);
    if (ahead == NULL) ahead = ahead_of(0);
    if (ahead == NULL || found == NULL || !(found->revents & POLLIN)) return real(fd, message, flags);
    struct iovec *const asked = message->msg_iov;
    struct iovec all = {ahead->bytes, sizeof ahead->bytes};
    message->msg_iov = &all;
    const ssize_t done = real(fd, message, flags);  // with the descriptors that came along, if any
    message->msg_iov = asked;
    if (done <= 0) return done;
    ahead->at = 0;
    ahead->end = (size_t)done;
    atomic_store(&ahead->fd, fd);
  } else {
    message->msg_controllen = 0;
    message->msg_flags = 0;
  }
  *(char *)message->msg_iov[0].iov_base = ahead->bytes[ahead->at++];
  return 1;
}

// An eventfd has no type of file, nor has anything else that takes eight bytes to count them.
static int is_eventfd(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
}

// glib calls the thread out of its poll(), four times for each byte, though it is this very thread that would be in there.
// Of several calls in a row, to an eventfd that nobody else reads, one is enough.
EXPORT ssize_t write(int fd, const void *data, size_t bytes) {
  REAL(write);
  if (bytes != sizeof(uint64_t) || polled_count == 0 || polled_as(fd) == NULL) return real(fd, data, bytes);
  if (called == fd) return (ssize_t)bytes;
  const ssize_t done = real(fd, data, bytes);
  if (done == (ssize_t)bytes && is_eventfd(fd)) called = fd;
  return done;
}

// The next socket with this number is another one.
EXPORT int close(int fd) {
  REAL(close);
  struct ahead *ahead = fd > 0 ? ahead_of(fd) : NULL;
  if (ahead != NULL) {
    ahead->at = ahead->end = 0;
    atomic_store(&ahead->fd, 0);
  }
  return real(fd);
}
