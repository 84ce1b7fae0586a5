#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SSE2
#include <xxhash.h>

#include "checksum.h"

uint64_t HashPageSse2(const uint8_t* page, const uint8_t* key) {
  return XXH3_64bits_withSecret(page, 4096, key, kHashKeyBytes);
}
