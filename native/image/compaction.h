// Which segments are worth rewriting: a decision, apart from doing it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

struct SegmentUse {
  size_t slot = 0;
  uint64_t bytes = 0;
  uint64_t storedPages = 0;
  uint64_t livePages = 0;
  bool closed = false;  // all its records are at or before the fold's epoch: only those can go
  bool isTable = false;  // the fold that holds this very epoch's table already
};

struct VictimChoice {
  std::vector<size_t> slots;
  uint64_t bytesAfter = 0;  // estimate
};

// `tableBytes`: what the fold's table will take.
VictimChoice ChooseVictims(std::vector<SegmentUse> uses, uint64_t tableBytes, uint64_t maxBytes, bool force);
