// The shadow image: an append-only log of a VM's epochs over an optional base, with an index of its newest epoch in
// memory. docs/shadow-image.md describes the files byte by byte.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../checksum.h"
#include "../page_source.h"

struct EpochMeta {
  uint64_t epoch = 0;
  uint64_t parent = 0;  // the epoch that this one changes; 0: none, it changes the base (or zeros)
  uint32_t generation = 0;
  int64_t cutAtWallMs = 0;
  int64_t cutAtMonotonicNs = 0;
};

struct EpochInfo {
  EpochMeta meta;
  uint64_t changedPages = 0;
  uint64_t storedBytes = 0;
  bool durable = false;  // survives a power loss
};

class ShadowImage;
struct ImageState;
class File;

struct ImageOptions {
  std::string vm;
  uint64_t ramBytes = 0;
  uint64_t diskBytes = 0;  // of all writable disks together, whole MiB
  std::shared_ptr<ShadowImage> base;  // stays open as long as this image is; its hash key is this image's too
  std::string label;                  // free-form text kept with the image, at most kMaxLabelBytes
  uint64_t segmentBytes = 64u << 20;
};

// What Open found and did.
struct OpenReport {
  uint64_t headEpoch = 0;
  uint64_t lostEpochs = 0;    // committed once, gone now; at least so many
  uint64_t cutBytes = 0;      // torn or damaged tail that was cut off
  uint64_t removedFiles = 0;  // leftovers of an interrupted compaction or pack
  std::string words;          // the same for people; empty when nothing was lost
};

struct AppendStats {
  uint64_t changedPages = 0;  // in the new epoch
  uint64_t zeroPages = 0;     // of those, now all zeros
  uint64_t basePages = 0;     // of those, now what the base has
  uint64_t droppedPages = 0;  // added, but the head has the same
  uint64_t storedBytes = 0;   // what the record takes on disk, device state and table included
  int64_t helperCpuNs = 0;    // CPU time of the second thread of a record that hurried
};

struct CompactOptions {
  int64_t keepFromWallMs = 0;  // epochs cut later than this stay rewindable, and the newest one that is not later
  uint64_t maxBytes = 0;       // of all files; 0: no bound
  int dutyPercent = 100;       // of one core
  bool force = false;          // also when little would be gained
};

struct CompactStats {
  bool done = false;  // false: nothing worth doing
  uint64_t bytesBefore = 0;
  uint64_t bytesAfter = 0;
  uint64_t movedPages = 0;
  uint64_t removedSegments = 0;
  uint64_t oldestEpoch = 0;
};

struct PackOptions {
  std::string path;
  uint64_t epoch = 0;   // 0: the head
  bool flatten = true;  // include the base's pages: the file needs no base any more
  std::string label;    // empty: the image's own
  int effort = 9;       // of compression, 1 to 19
};

struct PackStats {
  uint64_t pages = 0;
  uint64_t bytes = 0;
};

struct VerifyStats {
  uint64_t pages = 0;  // read and found right
  uint64_t blocks = 0;
  std::vector<uint32_t> damagedPages;  // the next Add of such a page stores it again
  bool deviceStateDamaged = false;     // of the head
};

struct ImageStats {
  uint64_t bytesOnDisk = 0;
  uint64_t liveBytes = 0;   // estimate: what the head needs of that
  uint64_t indexBytes = 0;  // resident, in memory
  uint64_t storedPages = 0; // of the head: neither zero nor the base's
  uint64_t segments = 0;
  uint64_t headEpoch = 0;
  uint64_t oldestEpoch = 0;
  uint64_t pageCacheBytes = 0;
};

// Thread rules: Begin, Add, Commit, Abandon and PageHash from one thread at a time (the VM's epoch worker). Everything
// else from any thread. Compact, Pack and Verify take turns among themselves (ERR_BUSY) and set nothing else back.
// Everything throws Failure.
class ShadowImage : public PageSource {
 public:
  static constexpr size_t kMaxLabelBytes = 64u << 10;

  // ERR_IMAGE_EXISTS when the folder holds an image already.
  static std::shared_ptr<ShadowImage> Create(const std::string& folder, const ImageOptions& options);
  // A folder is opened to be appended to and recovered on the way; a packed file is opened for reading only. Nothing on
  // disk changes until the whole image has been judged. ERR_IMAGE_NOT_FOUND, ERR_IMAGE_FOREIGN (no shadow image),
  // ERR_IMAGE_NEWER (format version), ERR_IMAGE_BASE (needs a base that is not given, or another one), ERR_IMAGE_CORRUPT
  // (no whole epoch table is left to start from), ERR_IMAGE_IN_USE (another process has it).
  static std::shared_ptr<ShadowImage> Open(const std::string& path, std::shared_ptr<ShadowImage> base,
                                           OpenReport* report);
  ~ShadowImage() override;

  // ---- what it is ----
  const std::string& vm() const;
  const std::string& label() const;
  std::string id() const;      // 32 hexadecimal digits
  std::string baseId() const;  // of the base that it needs; empty: none
  const std::shared_ptr<ShadowImage>& base() const;
  uint64_t ramBytes() const;
  uint64_t diskBytes() const;

  // ---- the head ----
  uint64_t HeadEpoch() const;                // 0: none
  uint64_t LastEpoch() const;                // the highest number ever used; a new epoch needs a higher one
  uint64_t PageHash(size_t page) const;      // lock-free, for the thread that appends
  const uint8_t* HashKey() const;            // kHashKeyBytes
  uint64_t HashOf(const uint8_t* content) const;
  uint64_t ZeroHash() const;

  // ---- append: one record at a time ----
  void Begin();
  // Somebody waits for the record that is open or begun next: two threads compress what is added from here on.
  void Hurry();
  // Pages of disks are numbered on from the RAM's last. `hash` is HashOf(content). A later Add of the same page in one record wins. content is not kept.
  void Add(size_t page, uint64_t hash, const uint8_t* content);
  // parent must be HeadEpoch(), epoch above LastEpoch() (ERR_EPOCH_ORDER). When it throws, the record is abandoned and
  // the head unchanged. ERR_IMAGE_FULL: see Compact.
  // `beforeItCounts` is called when all of the record is written but its end; if it throws, nothing of it remains.
  AppendStats Commit(const EpochMeta& meta, const uint8_t* deviceState, size_t deviceBytes,
                     const std::function<void()>& beforeItCounts = [] {});
  void Abandon();  // harmless without a record

  // ---- read ----
  // As a source of pages it is the RAM's alone.
  size_t pages() const override;
  // Also of a page of a disk, with which only other pages of disks are visited.
  void ReadAround(size_t page, PageScratch& scratch, const Visit& visit) const override;
  void Expect(const std::vector<uint32_t>& pages) const override;
  void Forget(const std::vector<uint32_t>& pages) const override;
  bool Holds(size_t page, const uint8_t* content) const override;
  std::vector<uint32_t> FillOrder() const override;
  // The same order, of the stored pages from `first` to before `end`.
  std::vector<uint32_t> StoredOrder(size_t first, size_t end) const;
  void ReadPage(size_t page, uint8_t* out) const;
  std::vector<EpochInfo> Epochs() const;  // that Rewind can reach, oldest first
  std::vector<uint8_t> DeviceState(uint64_t epoch) const;  // ERR_NO_EPOCH

  // ---- upkeep ----
  // The head becomes `epoch`; later epochs are given up. Quick when it is the one before the head, else the log is read.
  // Whoever waits for a promotion does not wait for the disk: durably is with the next Flush then. ERR_NO_EPOCH, ERR_BUSY
  // while a record is open.
  void Rewind(uint64_t epoch, bool durably = true);
  // Makes everything committed so far survive a power loss. One flush covers all epochs before it.
  void Flush();
  // Folds epochs before the window into one table and drops what nothing needs any more. When maxBytes can not be kept
  // even so, commits fail with ERR_IMAGE_FULL until a later Compact succeeds.
  CompactStats Compact(const CompactOptions& options, const std::atomic<bool>& stop);
  // One self-contained file; there whole or not at all. EEXIST when there is one.
  PackStats Pack(const PackOptions& options, const std::atomic<bool>& stop);
  VerifyStats Verify(int dutyPercent, const std::atomic<bool>& stop);
  ImageStats Stats() const;  // milliseconds per GiB of RAM and of files

 private:
  // Calls visit with the file and the offset of each page's block, those of the base included.
  void VisitBlocks(const std::vector<uint32_t>& pages, const std::function<void(const File&, uint64_t)>& visit) const;
  explicit ShadowImage(std::unique_ptr<ImageState> state);
  const std::unique_ptr<ImageState> state_;
};
