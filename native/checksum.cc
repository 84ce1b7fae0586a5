#include "checksum.h"

HashPage BestHashPage() {
  if (__builtin_cpu_supports("avx2")) return HashPageAvx2;
  return HashPageSse2;
}
