#include "codec.h"

#include <zstd.h>

#include <new>

struct Compressor::State {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ~State() { ZSTD_freeCCtx(context); }
};

Compressor::Compressor(int level) : state_(std::make_unique<State>()) {
  if (state_->context == nullptr) throw std::bad_alloc();
  ZSTD_CCtx_setParameter(state_->context, ZSTD_c_compressionLevel, level);
}
Compressor::~Compressor() = default;

size_t Compressor::Compress(const uint8_t* data, size_t bytes, uint8_t* out) {
  // One byte less than the raw form: what does not fit did not pay.
  const size_t n = ZSTD_compress2(state_->context, out, bytes > 0 ? bytes - 1 : 0, data, bytes);
  return ZSTD_isError(n) ? 0 : n;
}

bool Decompress(const uint8_t* stored, size_t storedBytes, uint8_t* out, size_t bytes) {
  // One for each thread that reads, freed with it: making one for each block would cost more than the block.
  struct Context {
    ZSTD_DCtx* context = ZSTD_createDCtx();
    ~Context() { ZSTD_freeDCtx(context); }
  };
  static thread_local Context reader;
  if (reader.context == nullptr) throw std::bad_alloc();
  return ZSTD_decompressDCtx(reader.context, out, bytes, stored, storedBytes) == bytes;
}
