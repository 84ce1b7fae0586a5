// XXH3 over parts of files, keyed like the page checksums: a guest that knows the format can not write page contents
// that pass for one of its structures.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

// `key` of nullptr: the plain hash, for the header that holds the key.
uint64_t Checksum(const uint8_t* key, const void* data, size_t bytes);

// The same over bytes that come piece by piece.
class Digest {
 public:
  explicit Digest(const uint8_t* key);
  ~Digest();
  void Add(const void* data, size_t bytes);
  uint64_t Value() const;
  const uint8_t* key() const { return key_; }

 private:
  struct State;
  const uint8_t* const key_;
  std::unique_ptr<State> state_;
};
