// Receives what an epoch changed on one disk: a server of the NBD protocol whose only client is the primary's QEMU.
//
//   QEMU's backup job ─▶ Unix socket ─▶ this object's thread ─▶ bounded queue ─▶ Drain() on the epoch's thread
//
// An intake holds the blocks of one epoch: Expect, then the writes come, then Finish or Fail. Outside of an intake every
// write is refused, and the job that sent it fails.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../memory.h"
#include "../worker.h"

class DiskReceiver {
 public:
  // Listens on an abstract socket, which no folder's permissions hide from a QEMU without privileges, and which nothing is
  // left of. Other processes than `pid` are turned away. `firstPage`: the disk's place among the image's pages.
  DiskReceiver(const std::string& socketName, int pid, uint64_t bytes, size_t firstPage);
  ~DiskReceiver();
  DiskReceiver(const DiskReceiver&) = delete;
  DiskReceiver& operator=(const DiskReceiver&) = delete;

  size_t firstPage() const { return firstPage_; }
  // Begins an intake; what an earlier one left is dropped.
  void Expect();
  // Everything has come.
  void Finish();
  // Nothing of it is of use. No effect without an intake.
  void Fail(const std::string& why);

  // Content of nullptr: zeros. Page numbers are the disk's own.
  using Visit = std::function<void(size_t page, const uint8_t* content)>;
  // Gives out the blocks of the intake in the order in which they came, until it ends. Throws ERR_DISK_LOST when it
  // failed. From one thread at a time.
  void Drain(const Visit& visit);

 private:
  enum class Intake { kNone, kOpen, kFinished, kFailed };
  struct Piece {
    size_t page;
    size_t count;
    std::vector<uint8_t> content;  // empty: zeros
  };
  void Loop();
  void Serve(int client);
  bool Negotiate(int client);
  bool Answer(int client);
  bool ReceiveWrite(int client, uint64_t offset, uint32_t bytes, uint32_t* error);
  uint32_t Give(Piece piece);  // an NBD error, 0 when it is in the queue
  bool MayReach(uint64_t offset, uint64_t bytes) const;

  const std::string socketName_;
  const int pid_;
  const uint64_t bytes_;
  const size_t firstPage_;
  int listener_ = -1;

  std::mutex mutex_;
  std::condition_variable changed_;
  Intake intake_ = Intake::kNone;  // guarded by mutex_, as are the following
  std::deque<Piece> queue_;
  size_t queuedBytes_ = 0;
  std::string why_;
  int client_ = -1;
  bool stop_ = false;
  std::thread thread_;
};
