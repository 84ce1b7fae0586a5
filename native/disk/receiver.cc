#include "receiver.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "nbd.h"

// Above this QEMU waits: its job with the rest, and a guest that is about to overwrite what was not sent yet.
constexpr size_t kQueuedBytesMax = 8u << 20;
constexpr size_t kPieceBytes = 256u << 10;
constexpr uint32_t kRequestBytesMax = 32u << 20;
// Names of exports and lists of what a client wants to know; both are short.
constexpr uint32_t kOptionBytesMax = 4096;

static bool Receive(int fd, void* out, size_t bytes) {
  uint8_t* to = static_cast<uint8_t*>(out);  // the caller's, with room for `bytes`
  while (bytes > 0) {
    const ssize_t got = recv(fd, to, bytes, MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

static bool Send(int fd, const void* data, size_t bytes) {
  const uint8_t* from = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd, from, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    from += sent;
    bytes -= static_cast<size_t>(sent);
  }
  return true;
}

static bool Skip(int fd, uint64_t bytes) {
  uint8_t nowhere[4096];
  for (; bytes > 0; bytes -= std::min<uint64_t>(bytes, sizeof nowhere))
    if (!Receive(fd, nowhere, std::min<uint64_t>(bytes, sizeof nowhere))) return false;
  return true;
}

DiskReceiver::DiskReceiver(const std::string& socketName, int pid, uint64_t bytes, size_t firstPage)
    : socketName_(socketName), pid_(pid), bytes_(bytes), firstPage_(firstPage) {
  struct sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // Abstract: a zero byte and the name, without one at its end.
  if (socketName.empty() || socketName.size() >= sizeof address.sun_path)
    throw Failure{"ERR_SIZE", "bind", "the name of the disk's socket is empty or too long"};
  memcpy(address.sun_path + 1, socketName.data(), socketName.size());
  const auto length = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + 1 + socketName.size());
  listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener_ < 0) throw ErrnoFailure(errno, "socket", socketName);
  if (bind(listener_, reinterpret_cast<struct sockaddr*>(&address), length) != 0 || listen(listener_, 4) != 0) {
    const int number = errno;
    close(listener_);
    throw ErrnoFailure(number, "bind", socketName);
  }
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "shadowvm-disk");
    Loop();
  });
}

DiskReceiver::~DiskReceiver() {
  Fail("the receiver is closed");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    if (client_ >= 0) shutdown(client_, SHUT_RDWR);
  }
  changed_.notify_all();
  shutdown(listener_, SHUT_RDWR);  // wakes accept()
  thread_.join();
  close(listener_);
}

// ---- The intake ----

void DiskReceiver::Expect() {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.clear();
  queuedBytes_ = 0;
  intake_ = Intake::kOpen;
}

void DiskReceiver::Finish() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (intake_ == Intake::kOpen) intake_ = Intake::kFinished;
  }
  changed_.notify_all();
}

void DiskReceiver::Fail(const std::string& why) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (intake_ == Intake::kNone || intake_ == Intake::kFailed) return;
    intake_ = Intake::kFailed;
    why_ = why;
    queue_.clear();
    queuedBytes_ = 0;
  }
  changed_.notify_all();
}

void DiskReceiver::Drain(const Visit& visit) {
  for (;;) {
    Piece piece;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !queue_.empty() || intake_ != Intake::kOpen; });
      if (intake_ == Intake::kFailed) throw Failure{"ERR_DISK_LOST", "drain", "the disk's blocks did not all come: " + why_};
      if (queue_.empty()) {
        intake_ = Intake::kNone;
        return;
      }
      piece = std::move(queue_.front());
      queue_.pop_front();
      queuedBytes_ -= piece.content.size();
    }
    changed_.notify_all();
    // `content` has count pages, or none: Give's callers saw to it.
    for (size_t i = 0; i < piece.count; i++)
      visit(piece.page + i, piece.content.empty() ? nullptr : piece.content.data() + i * kPageBytes);
  }
}

uint32_t DiskReceiver::Give(Piece piece) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return queuedBytes_ < kQueuedBytesMax || intake_ != Intake::kOpen || stop_; });
    if (intake_ != Intake::kOpen || stop_) return nbd::kIo;
    queuedBytes_ += piece.content.size();
    queue_.push_back(std::move(piece));
  }
  changed_.notify_all();
  return nbd::kOk;
}

// ---- The protocol ----

void DiskReceiver::Loop() {
  for (;;) {
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) {
        if (client >= 0) close(client);
        return;
      }
      if (client >= 0) client_ = client;
    }
    if (client < 0) {
      usleep(10000);  // out of descriptors: the next connection may find some
      continue;
    }
    struct ucred peer = {};
    socklen_t bytes = sizeof peer;
    const bool known = getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.pid == pid_;
    if (known) Serve(client);
    std::lock_guard<std::mutex> lock(mutex_);
    client_ = -1;
    close(client);
  }
}

void DiskReceiver::Serve(int client) {
  if (!Negotiate(client)) return;
  while (Answer(client)) {
  }
  Fail("QEMU ended the connection, or sent what is no request");
}

// True when the client has chosen the export: requests follow.
bool DiskReceiver::Negotiate(int client) {
  const nbd::Greeting greeting;
  uint32_t clientFlags;
  if (!Send(client, &greeting, sizeof greeting) || !Receive(client, &clientFlags, sizeof clientFlags)) return false;
  const bool noZeroes = be32toh(clientFlags) & nbd::kNoZeroes;
  const auto reply = [&](uint32_t option, uint32_t type, const void* data, uint32_t bytes) {
    const nbd::OptionReplyHeader header = {htobe64(nbd::kOptionReplyMagic), htobe32(option), htobe32(type), htobe32(bytes)};
    return Send(client, &header, sizeof header) && (bytes == 0 || Send(client, data, bytes));
  };
  for (;;) {
    nbd::OptionHeader header;
    if (!Receive(client, &header, sizeof header) || be64toh(header.magic) != nbd::kOptionMagic) return false;
    const uint32_t option = be32toh(header.option);
    const uint32_t bytes = be32toh(header.bytes);
    // One disk has one socket: whatever name the export is asked for by, this is it.
    if (bytes > kOptionBytesMax || !Skip(client, bytes)) return false;
    switch (option) {
      case nbd::kExportName: {
        struct __attribute__((packed)) {
          uint64_t bytes;
          uint16_t flags;
          uint8_t zeroes[124];
        } chosen = {htobe64(bytes_), htobe16(nbd::kExportFlags), {}};
        return Send(client, &chosen, noZeroes ? sizeof chosen - sizeof chosen.zeroes : sizeof chosen);
      }
      case nbd::kInfo:
      case nbd::kGo: {
        const nbd::ExportInfo info = {htobe16(nbd::kInfoExport), htobe64(bytes_), htobe16(nbd::kExportFlags)};
        const nbd::BlockSizeInfo sizes = {htobe16(nbd::kInfoBlockSize), htobe32(kPageBytes), htobe32(64u << 10),
                                          htobe32(kRequestBytesMax)};
        if (!reply(option, nbd::kReplyInfo, &info, sizeof info) || !reply(option, nbd::kReplyInfo, &sizes, sizeof sizes) ||
            !reply(option, nbd::kAck, nullptr, 0))
          return false;
        if (option == nbd::kGo) return true;
        break;
      }
      case nbd::kAbort:
        reply(option, nbd::kAck, nullptr, 0);
        return false;
      default:
        if (!reply(option, nbd::kUnsupported, nullptr, 0)) return false;
    }
  }
}

bool DiskReceiver::MayReach(uint64_t offset, uint64_t bytes) const {
  return bytes > 0 && offset % kPageBytes == 0 && bytes % kPageBytes == 0 && offset <= bytes_ && bytes <= bytes_ - offset;
}

// One request. False at its end, and when what came can not be a request: nothing after it can be made sense of.
bool DiskReceiver::Answer(int client) {
  nbd::Request request;
  if (!Receive(client, &request, sizeof request) || be32toh(request.magic) != nbd::kRequestMagic) return false;
  const uint64_t offset = be64toh(request.offset);
  const uint32_t bytes = be32toh(request.bytes);
  uint32_t error = nbd::kInvalidArgument;
  switch (be16toh(request.command)) {
    case nbd::kWrite:
      if (bytes > kRequestBytesMax || !ReceiveWrite(client, offset, bytes, &error)) return false;
      break;
    case nbd::kWriteZeroes:
      if (MayReach(offset, bytes)) error = Give({offset / kPageBytes, bytes / kPageBytes, {}});
      break;
    case nbd::kDisconnect:
      return false;
  }
  const nbd::Reply reply = {htobe32(nbd::kReplyMagic), htobe32(error), request.handle};
  return Send(client, &reply, sizeof reply);
}

// The payload is taken off the socket whatever becomes of it. False when it does not all come.
bool DiskReceiver::ReceiveWrite(int client, uint64_t offset, uint32_t bytes, uint32_t* error) {
  if (!MayReach(offset, bytes)) return Skip(client, bytes);
  *error = nbd::kOk;
  while (bytes > 0) {
    const uint32_t part = std::min<uint32_t>(bytes, kPieceBytes);
    Piece piece = {offset / kPageBytes, part / kPageBytes, std::vector<uint8_t>(part)};
    if (!Receive(client, piece.content.data(), part)) return false;
    if (*error == nbd::kOk) *error = Give(std::move(piece));
    offset += part;
    bytes -= part;
  }
  return true;
}
