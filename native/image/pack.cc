// Packing an epoch into one file, and reading everything to see whether it is still right.
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../fault_point.h"
#include "fold_writer.h"
#include "shadow_image.h"

PackStats ShadowImage::Pack(const PackOptions& options, const std::atomic<bool>& stop) {
  ImageState& s = *state_;
  std::unique_lock<std::mutex> turn(s.upkeepMutex, std::try_to_lock);
  if (!turn) throw Failure{"ERR_BUSY", "pack", "other upkeep of this image is under way"};
  const std::string& label = options.label.empty() ? s.identity.label : options.label;
  if (label.size() > kMaxLabelBytes) throw Failure{"ERR_SIZE", "pack", "the label is too long"};
  if (access(options.path.c_str(), F_OK) == 0) throw ErrnoFailure(EEXIST, "pack", options.path);

  PageTable table(s.identity.pages());
  SegmentSet segments;
  EpochRecord at;
  {
    std::lock_guard<std::mutex> moving(s.tableMutex);
    const std::vector<EpochRecord> records = s.ChainTo(options.epoch != 0 ? options.epoch : HeadEpoch());
    s.Load(records, &table);
    at = records.back();
    std::shared_lock<std::shared_mutex> lock(s.mutex);
    segments = s.segments;
  }
  ImageIdentity identity = s.identity;
  if (getrandom(identity.imageId, kIdBytes, 0) != static_cast<ssize_t>(kIdBytes))
    throw ErrnoFailure(errno, "getrandom", "image");
  identity.label = label;
  const bool flatten = options.flatten && s.base;
  if (flatten) {
    memset(identity.baseId, 0, kIdBytes);
    identity.baseEpoch = 0;
  }
  Pace pace(100, stop);
  FoldWriter writer(identity, options.path, 1, std::min(std::max(options.effort, 1), 19));
  PackStats stats;
  FaultPoint("pack", 1);
  if (flatten) {
    // The base's pages are the oldest, and its own oldest ones come first.
    std::vector<uint32_t> order = s.base->StoredOrder(0, table.pages());
    std::reverse(order.begin(), order.end());
    std::vector<bool> wanted(table.pages());
    for (const uint32_t page : order) wanted[page] = table.At(page).kind() == EntryKind::kBase;
    PageScratch scratch;
    for (const uint32_t page : order) {
      if (!wanted[page]) continue;  // came with another
      pace.Step();
      s.base->ReadAround(page, scratch, [&](size_t each, const uint8_t* content) {
        if (!wanted[each] || content == nullptr) return;
        wanted[each] = false;
        stats.pages++;
        writer.AddPage(static_cast<uint32_t>(each), s.base->PageHash(each), content, &table);
      });
    }
  }
  // Compressed anew: this file is written once and kept.
  std::vector<bool> elsewhere(kThisFold + 1, true);
  elsewhere[kThisFold] = false;
  writer.Move(segments, StoredPages(segments, table, elsewhere), false, &table, pace);
  stats.pages += writer.movedPages();
  FaultPoint("pack", 2);
  CommitHeader header = {};
  header.sequence = at.sequence;
  header.epoch = header.lastEpoch = at.info.meta.epoch;
  header.generation = at.info.meta.generation;
  header.cutAtWallMs = at.info.meta.cutAtWallMs;
  header.cutAtMonotonicNs = at.info.meta.cutAtMonotonicNs;
  header.changedPages = at.info.changedPages;
  header.epochBytes = at.info.storedBytes;
  writer.Finish(header, ReadDeviceState(*at.segment->file, at.commitOffset, s.key()), segments, &table);
  FaultPoint("pack", 3);
  writer.Name(false);
  FaultPoint("pack", 4);
  const size_t slash = options.path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : options.path.substr(0, slash + 1);
  const File handle(folder, O_RDONLY | O_DIRECTORY);
  SyncFolder(handle.fd, folder);
  stats.bytes = writer.bytes();
  return stats;
}

VerifyStats ShadowImage::Verify(int dutyPercent, const std::atomic<bool>& stop) {
  ImageState& s = *state_;
  std::unique_lock<std::mutex> turn(s.upkeepMutex, std::try_to_lock);
  if (!turn) throw Failure{"ERR_BUSY", "verify", "other upkeep of this image is under way"};
  VerifyStats stats;
  try {
    if (HeadEpoch() != 0) DeviceState(HeadEpoch());
  } catch (const Failure& failure) {
    if (failure.code != "ERR_IMAGE_CORRUPT") throw;
    stats.deviceStateDamaged = true;
  }
  Pace pace(dutyPercent, stop);
  PageScratch scratch;
  std::vector<bool> seen(s.identity.pages());
  for (const uint32_t page : StoredOrder(0, s.identity.pages())) {
    if (seen[page]) continue;  // came with another
    pace.Step();
    try {
      ReadAround(page, scratch, [&](size_t each, const uint8_t*) {
        if (seen[each]) return;
        seen[each] = true;
        stats.pages++;
      });
      stats.blocks++;
    } catch (const Failure& failure) {
      if (failure.code != "ERR_IMAGE_CORRUPT") throw;
      stats.damagedPages.push_back(page);
    }
  }
  std::sort(stats.damagedPages.begin(), stats.damagedPages.end());
  return stats;
}
