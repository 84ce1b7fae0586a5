#include "segment_writer.h"

#include <algorithm>

void SegmentWriter::Start(File* file, uint64_t offset) {
  file_ = file;
  digest_ = nullptr;
  written_ = offset % kPageBytes;
  offset_ = offset - written_;
  buffer_.resize(written_);
  if (written_ > 0) file->Read(offset_, buffer_.data(), written_);
}

void SegmentWriter::Append(const void* data, size_t bytes) {
  if (digest_ != nullptr) digest_->Add(data, bytes);
  const uint8_t* from = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const size_t part = std::min(bytes, kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), from, from + part);
    from += part;
    bytes -= part;
    if (buffer_.size() == kBufferBytes) Flush();
  }
}

void SegmentWriter::Flush() {
  if (written_ == buffer_.size()) return;
  file_->Write(offset_, buffer_.data(), buffer_.size());
  const size_t kept = buffer_.size() % kPageBytes;
  offset_ += buffer_.size() - kept;
  buffer_.erase(buffer_.begin(), buffer_.end() - static_cast<ptrdiff_t>(kept));
  written_ = kept;
}
