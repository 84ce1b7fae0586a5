#define XXH_INLINE_ALL
#include "digest.h"

#include <xxhash.h>

#include "../checksum.h"

uint64_t Checksum(const uint8_t* key, const void* data, size_t bytes) {
  return key == nullptr ? XXH3_64bits(data, bytes) : XXH3_64bits_withSecret(data, bytes, key, kHashKeyBytes);
}

struct Digest::State {
  XXH3_state_t xxh;
};

// The state keeps a pointer to `key`, which therefore outlives it: both belong to an image.
Digest::Digest(const uint8_t* key) : key_(key), state_(std::make_unique<State>()) {
  XXH3_64bits_reset_withSecret(&state_->xxh, key, kHashKeyBytes);
}
Digest::~Digest() = default;
void Digest::Add(const void* data, size_t bytes) { XXH3_64bits_update(&state_->xxh, data, bytes); }
uint64_t Digest::Value() const { return XXH3_64bits_digest(&state_->xxh); }
