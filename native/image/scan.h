// Finds the whole records of a log segment, whatever else its bytes are.
#pragma once
#include <vector>

#include "commit.h"
#include "segment.h"

struct RecordPlace {
  uint64_t offset = 0;
  uint64_t commitOffset = 0;
  uint64_t end = 0;
  uint64_t storedPages = 0;
  CommitHeader header = {};
};

struct ScanResult {
  std::vector<RecordPlace> records;  // in order; those with a sequence below `floor` may be missing
  uint64_t goodEnd = 0;              // the file should end here; less than its size when something torn follows
};

// Records up to sequence `floor` need not be found: nothing depends on them.
ScanResult ScanLog(const Segment& segment, const ImageIdentity& identity, uint64_t floor);

// Reads every block of a record; false when one is not as it was written. For records that may not have reached the
// disk whole: their end can get there before their beginning.
bool PayloadIsWhole(const File& file, const RecordPlace& place, const uint8_t* key);

// The fold commit at the end of a file. With `named`, all of it is checked and the segments that it names are returned;
// without, the one who loads the table checks it. Throws ERR_IMAGE_CORRUPT.
RecordPlace FindFold(const Segment& segment, const ImageIdentity& identity, std::vector<SegmentEntry>* named);
