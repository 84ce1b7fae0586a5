// Appends to one segment through a small buffer.
//
// All writes begin at a page of the file, so the last page is written again, with the same bytes in front, when a record
// begins in the middle of it. Otherwise the kernel would have to read that page back first: it does not keep it cached.
#pragma once
#include <cstdint>
#include <vector>

#include "digest.h"
#include "file.h"

class SegmentWriter {
 public:
  static constexpr size_t kBufferBytes = 128u << 10;

  SegmentWriter() { buffer_.reserve(kBufferBytes); }
  // What is appended next goes to `offset` of `file`, what was not flushed is forgotten.
  void Start(File* file, uint64_t offset);
  uint64_t position() const { return offset_ + buffer_.size(); }
  void Append(const void* data, size_t bytes);
  void Flush();
  // Appended bytes are added to `digest` as well, until it is null again.
  void Watch(Digest* digest) { digest_ = digest; }

 private:
  File* file_ = nullptr;  // of the segment that the owner of this writer holds
  uint64_t offset_ = 0;   // of the buffer's first byte; a multiple of the page size
  size_t written_ = 0;    // of the buffer
  std::vector<uint8_t> buffer_;
  Digest* digest_ = nullptr;
};
