// Compression of blocks and device states. zstd at a fast level; docs/shadow-image.md has the figures that chose it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

constexpr int kAppendLevel = -1;

class Compressor {
 public:
  explicit Compressor(int level);
  ~Compressor();
  Compressor(const Compressor&) = delete;
  Compressor& operator=(const Compressor&) = delete;
  // Bytes written to `out`; 0 when it would not become smaller than `bytes`. `out` has room for `bytes`.
  size_t Compress(const uint8_t* data, size_t bytes, uint8_t* out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Fills exactly `bytes` of `out`; false when the stored bytes are not the compressed form of so many. Safe for any
// input: neither is read or written out of bounds.
bool Decompress(const uint8_t* stored, size_t storedBytes, uint8_t* out, size_t bytes);
