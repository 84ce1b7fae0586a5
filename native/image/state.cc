#include "state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "record_writer.h"

static int LockFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    throw errno == ENOENT ? Failure{"ERR_IMAGE_NOT_FOUND", "open", "there is no shadow image at " + folder}
                          : ErrnoFailure(errno, "open", folder);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int number = errno;
    close(fd);
    throw number == EWOULDBLOCK ? Failure{"ERR_IMAGE_IN_USE", "flock", folder + " is open already"}
                                : ErrnoFailure(number, "flock", folder);
  }
  return fd;
}

FolderLock::FolderLock(const std::string& folder) : folder(folder), fd(LockFolder(folder)) {}
FolderLock::~FolderLock() { close(fd); }
void FolderLock::Sync() const { SyncFolder(fd, folder); }

static uint64_t HashOfZeros(HashPage hash, const uint8_t* key) {
  static const uint8_t zeros[kPageBytes] = {};
  return hash(zeros, key);
}

ImageState::ImageState(ImageIdentity given, std::shared_ptr<ShadowImage> base)
    : identity(std::move(given)),
      base(std::move(base)),
      hash(BestHashPage()),
      zeroHash(HashOfZeros(hash, identity.key)),
      table(identity.pages()) {}

ImageState::~ImageState() = default;

uint64_t ImageState::PageHash(size_t page) const {
  const Location at = table.At(page);
  if (at.stored()) return table.Hash(page);
  return at.kind() == EntryKind::kBase && base ? base->PageHash(page) : zeroHash;
}

void ImageState::MarkDamaged(uint32_t page) {
  std::unique_lock<std::shared_mutex> lock(mutex);
  damaged.insert(page);
  damagedCount = damaged.size();
}

bool ImageState::IsDamaged(uint32_t page) {
  if (damagedCount == 0) return false;
  std::shared_lock<std::shared_mutex> lock(mutex);
  return damaged.count(page) > 0;
}

std::string ImageState::PathOf(SegmentKind kind, uint32_t number) const {
  return folder->folder + "/" + SegmentName(kind, number);
}

std::vector<EpochRecord> ImageState::ChainTo(uint64_t epoch) const {
  std::shared_lock<std::shared_mutex> lock(mutex);
  std::vector<EpochRecord> records;
  for (const EpochRecord& record : chain) {
    records.push_back(record);
    if (record.info.meta.epoch != epoch) continue;
    if (epoch < reachableFrom) break;
    return records;
  }
  throw Failure{"ERR_NO_EPOCH", "image", "epoch " + std::to_string(epoch) + " is not kept (any more)"};
}

bool ImageState::UndoLeadsTo(uint64_t epoch) const {
  std::shared_lock<std::shared_mutex> lock(mutex);
  return chain.size() >= 2 && undo.epoch == chain.back().info.meta.epoch && chain[chain.size() - 2].info.meta.epoch == epoch;
}

void ImageState::Undo() {
  for (const UndoTable::Entry& entry : undo.entries) table.Set(entry.page, entry.location, entry.hash);
}

void ImageState::Load(const std::vector<EpochRecord>& records, PageTable* into) {
  for (const EpochRecord& record : records) {
    // The slot of each segment that this table can name; slots do not move while the caller holds tableMutex.
    std::vector<size_t> slots;
    const auto slotOf = [&](uint32_t number) {
      std::unique_lock<std::shared_mutex> lock(mutex);
      const size_t slot = segments.Find(number);
      if (slot != kMaxSegments) return slot;
      return segments.Add(std::make_shared<Segment>(nullptr, SegmentKind::kLog, number));
    };
    slots.push_back(slotOf(record.segment->number));
    const File& file = *record.segment->file;
    ReadCommit(file, record.commitOffset, record.end, key(), identity.pages(), [&](const TableGroup& group) {
      if (slots.size() == 1)
        for (const SegmentEntry& entry : *group.segments) slots.push_back(slotOf(entry.number));
      const GroupHeader& header = group.header;
      uint16_t mask = header.mask;
      for (size_t i = 0; i < header.count; i++) {
        if (group.hashes == nullptr) {
          into->Set(group.pages[i], Location::Of(header.kind), 0);
          continue;
        }
        const size_t slot = static_cast<size_t>(__builtin_ctz(mask));  // as many bits as pages: ReadCommit saw to it
        mask = static_cast<uint16_t>(mask & (mask - 1));
        into->Set(group.pages[i], Location::In(header.kind, slots[header.segment], header.offset, slot), group.hashes[i]);
      }
    });
  }
}

void ImageState::Flush() {
  std::lock_guard<std::mutex> flushing(flushMutex);
  // After a failed fdatasync the kernel forgets which pages it lost: a second one would succeed and mean nothing.
  if (flushFailed) throw Failure{"EIO", "fdatasync", "an earlier flush failed; open the image again"};
  std::vector<std::shared_ptr<Segment>> dirty;
  uint64_t sequence;
  bool names;
  {
    std::unique_lock<std::shared_mutex> lock(mutex);
    dirty = std::move(unsynced);
    unsynced.clear();
    names = folderUnsynced;
    folderUnsynced = false;
    sequence = lastSequence;
  }
  try {
    for (const auto& segment : dirty) {
      segment->file->Sync();
      segment->file->DropCache(0, segment->bytes);
    }
    if (names) folder->Sync();
  } catch (const Failure&) {
    flushFailed = true;
    throw;
  }
  std::unique_lock<std::shared_mutex> lock(mutex);
  durableSequence = std::max(durableSequence, sequence);
}
