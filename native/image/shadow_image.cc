#include "shadow_image.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../fault_point.h"
#include "record_writer.h"
#include "recovery.h"

static void FillRandom(uint8_t* out, size_t bytes) {
  if (getrandom(out, bytes, 0) != static_cast<ssize_t>(bytes)) throw ErrnoFailure(errno, "getrandom", "image");
}

static std::string Hex(const uint8_t* id) {
  std::string text;
  for (size_t i = 0; i < kIdBytes; i++) {
    text += "0123456789abcdef"[id[i] >> 4];
    text += "0123456789abcdef"[id[i] & 15];
  }
  return text;
}

ShadowImage::ShadowImage(std::unique_ptr<ImageState> state) : state_(std::move(state)) {}
ShadowImage::~ShadowImage() { Abandon(); }

std::shared_ptr<ShadowImage> ShadowImage::Create(const std::string& folder, const ImageOptions& options) {
  if (options.ramBytes == 0 || options.ramBytes % kPageBytes != 0 || options.ramBytes > kMaxPageBytes)
    throw Failure{"ERR_SIZE", "create", "guest RAM must be a positive whole number of 4 KiB pages"};
  if (options.diskBytes % kMiB != 0 || options.diskBytes > kMaxPageBytes - options.ramBytes)
    throw Failure{"ERR_SIZE", "create", "disks must be a whole number of MiB, and not beyond all measure"};
  if (options.vm.size() > kMaxVmBytes || options.label.size() > kMaxLabelBytes)
    throw Failure{"ERR_SIZE", "create", "the VM's name or the label is too long"};
  ImageIdentity identity;
  identity.ramBytes = options.ramBytes;
  identity.diskBytes = options.diskBytes;
  identity.vm = options.vm;
  identity.label = options.label;
  FillRandom(identity.imageId, kIdBytes);
  if (options.base) {
    const ImageState& base = *options.base->state_;
    if (base.identity.ramBytes != options.ramBytes || base.identity.diskBytes != options.diskBytes)
      throw Failure{"ERR_IMAGE_BASE", "create", "the base image is of another RAM or disk size"};
    memcpy(identity.baseId, base.identity.imageId, kIdBytes);
    identity.baseEpoch = options.base->HeadEpoch();
    memcpy(identity.key, base.identity.key, kHashKeyBytes);  // equal pages have equal checksums
  } else {
    FillRandom(identity.key, kHashKeyBytes);
  }
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) throw ErrnoFailure(errno, "mkdir", folder);
  auto state = std::make_unique<ImageState>(identity, options.base);
  state->folder = std::make_unique<FolderLock>(folder);
  state->segmentBytes = options.segmentBytes;
  // The first segment alone makes the folder an image; it is there whole, under its name, or not at all.
  const std::string path = state->PathOf(SegmentKind::kLog, 1);
  const std::string temporary = path + ".tmp";
  unlink(temporary.c_str());
  try {
    File file(temporary, O_RDWR | O_CREAT | O_EXCL);
    const std::vector<uint8_t> header = EncodeSegmentHeader(identity, SegmentKind::kLog, 1);
    file.Write(0, header.data(), header.size());
    file.Sync();
    if (link(temporary.c_str(), path.c_str()) != 0)
      throw errno == EEXIST ? Failure{"ERR_IMAGE_EXISTS", "create", folder + " holds a shadow image already"}
                            : ErrnoFailure(errno, "link", path);
  } catch (...) {
    unlink(temporary.c_str());
    throw;
  }
  unlink(temporary.c_str());
  state->folder->Sync();
  state.reset();  // and its lock
  OpenReport report;
  auto image = std::shared_ptr<ShadowImage>(new ShadowImage(RecoverFolder(folder, options.base, &report)));
  image->state_->segmentBytes = options.segmentBytes;
  return image;
}

std::shared_ptr<ShadowImage> ShadowImage::Open(const std::string& path, std::shared_ptr<ShadowImage> base,
                                               OpenReport* report) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0)
    throw errno == ENOENT ? Failure{"ERR_IMAGE_NOT_FOUND", "open", "there is no shadow image at " + path}
                          : ErrnoFailure(errno, "stat", path);
  OpenReport ignored;
  if (report == nullptr) report = &ignored;
  *report = {};
  auto state = S_ISDIR(st.st_mode) ? RecoverFolder(path, std::move(base), report) : OpenPacked(path, std::move(base));
  auto image = std::shared_ptr<ShadowImage>(new ShadowImage(std::move(state)));
  report->headEpoch = image->HeadEpoch();
  return image;
}

const std::string& ShadowImage::vm() const { return state_->identity.vm; }
const std::string& ShadowImage::label() const { return state_->identity.label; }
std::string ShadowImage::id() const { return Hex(state_->identity.imageId); }
std::string ShadowImage::baseId() const { return state_->identity.hasBase() ? Hex(state_->identity.baseId) : ""; }
const std::shared_ptr<ShadowImage>& ShadowImage::base() const { return state_->base; }
uint64_t ShadowImage::ramBytes() const { return state_->identity.ramBytes; }
uint64_t ShadowImage::diskBytes() const { return state_->identity.diskBytes; }
size_t ShadowImage::pages() const { return state_->identity.ramPages(); }
const uint8_t* ShadowImage::HashKey() const { return state_->key(); }
uint64_t ShadowImage::HashOf(const uint8_t* content) const { return state_->HashOf(content); }
uint64_t ShadowImage::ZeroHash() const { return state_->zeroHash; }
uint64_t ShadowImage::PageHash(size_t page) const { return state_->PageHash(page); }

uint64_t ShadowImage::HeadEpoch() const {
  std::shared_lock<std::shared_mutex> lock(state_->mutex);
  return state_->chain.empty() ? 0 : state_->chain.back().info.meta.epoch;
}

uint64_t ShadowImage::LastEpoch() const {
  std::shared_lock<std::shared_mutex> lock(state_->mutex);
  return state_->lastEpoch;
}

static RecordWriter& WriterOf(const ImageState& state) {
  if (!state.writer) throw Failure{"ERR_READ_ONLY", "append", "a packed image is for reading only"};
  return *state.writer;
}

void ShadowImage::Hurry() { WriterOf(*state_).Hurry(); }
void ShadowImage::Begin() { WriterOf(*state_).Begin(RecordKind::kEpoch); }
void ShadowImage::Add(size_t page, uint64_t hash, const uint8_t* content) { WriterOf(*state_).Add(page, hash, content); }
AppendStats ShadowImage::Commit(const EpochMeta& meta, const uint8_t* device, size_t deviceBytes,
                                const std::function<void()>& beforeItCounts) {
  return WriterOf(*state_).Commit(meta, device, deviceBytes, beforeItCounts);
}
void ShadowImage::Abandon() {
  if (state_->writer && state_->writer->epochOpen()) state_->writer->Abandon();
}
void ShadowImage::Flush() { state_->Flush(); }

void ShadowImage::Rewind(uint64_t epoch, bool durably) {
  ImageState& s = *state_;
  {
    std::lock_guard<std::mutex> moving(s.tableMutex);
    const std::vector<EpochRecord> records = s.ChainTo(epoch);
    if (epoch == HeadEpoch()) return;
    const bool undone = s.UndoLeadsTo(epoch);
    PageTable table(s.identity.pages());
    if (!undone) s.Load(records, &table);
    FaultPoint("rewind", 1);
    WriterOf(s).Begin(RecordKind::kRewind);  // from here on no epoch is committed
    s.writer->WriteRewind(epoch);
    FaultPoint("rewind", 2);
    std::unique_lock<std::shared_mutex> lock(s.mutex);
    if (undone) s.Undo();
    else s.table.Assign(table);
    s.chain.resize(records.size());
    s.undo.epoch = 0;
    s.writer->Settle();
  }
  FaultPoint("rewind", 3);
  if (durably) Flush();
}

ImageStats ShadowImage::Stats() const {
  const ImageState& s = *state_;
  ImageStats stats;
  std::vector<std::shared_ptr<Segment>> segments;
  std::vector<uint64_t> live;
  {
    std::shared_lock<std::shared_mutex> lock(s.mutex);
    for (size_t slot = 0; slot < s.segments.size(); slot++) segments.push_back(s.segments.At(slot));
    live.resize(segments.size());
    for (size_t page = 0; page < s.identity.pages(); page++) {
      const Location at = s.table.At(page);
      if (!at.stored()) continue;
      stats.storedPages++;
      live[at.segment()]++;
    }
    if (!s.chain.empty()) {
      stats.headEpoch = s.chain.back().info.meta.epoch;
      stats.oldestEpoch = std::max(s.chain.front().info.meta.epoch, s.reachableFrom);
    }
  }
  for (size_t slot = 0; slot < segments.size(); slot++) {
    if (!segments[slot] || !segments[slot]->file) continue;
    const uint64_t bytes = segments[slot]->file->Size();
    stats.segments++;
    stats.bytesOnDisk += bytes;
    stats.pageCacheBytes += segments[slot]->file->CachedBytes();
    const uint64_t stored = segments[slot]->storedPages;
    if (stored > 0) stats.liveBytes += bytes * std::min(live[slot], stored) / stored;
  }
  stats.indexBytes = s.table.ResidentBytes();
  return stats;
}
