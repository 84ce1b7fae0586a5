// XXH3 over guest pages, compiled once per instruction set; the best one this CPU has is taken at load time.
//
// The hash is keyed with random bytes drawn for each protected VM: a guest that could craft two pages with the same
// checksum could hide a change from its own shadow, and it can not without the key.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr size_t kHashKeyBytes = 192;  // XXH3's default secret size

using HashPage = uint64_t (*)(const uint8_t* page, const uint8_t* key);
HashPage BestHashPage();

uint64_t HashPageSse2(const uint8_t* page, const uint8_t* key);
uint64_t HashPageAvx2(const uint8_t* page, const uint8_t* key);
