#include "recovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "record_writer.h"

namespace {

struct FoundFile {
  std::string path;
  SegmentKind kind;
  uint32_t number;
  ParsedHeader header;
  std::shared_ptr<Segment> segment;  // when the header is good
};

struct Folder {
  std::vector<FoundFile> files;  // by rising number
  std::vector<std::string> leftovers;
};

struct FoundRecord {
  std::shared_ptr<Segment> segment;
  RecordPlace place;
};

// What is to be done to the files once all of it is known.
struct Plan {
  std::vector<std::pair<std::shared_ptr<Segment>, uint64_t>> cuts;  // to this length
  std::vector<std::string> removals;
};

Folder ListFolder(const std::string& path) {
  Folder found;
  DIR* dir = opendir(path.c_str());
  if (dir == nullptr) throw ErrnoFailure(errno, "opendir", path);
  while (const struct dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    char end[8] = {};
    unsigned number = 0;
    if (name.size() > 4 && name.compare(name.size() - 4, 4, ".tmp") == 0) found.leftovers.push_back(path + "/" + name);
    if (sscanf(name.c_str(), "%8u.%5s", &number, end) != 2 || number == 0) continue;
    const SegmentKind kind = strcmp(end, "log") == 0 ? SegmentKind::kLog : SegmentKind::kFold;
    if (name == SegmentName(kind, number)) found.files.push_back({path + "/" + name, kind, number, {}, nullptr});
  }
  closedir(dir);
  std::sort(found.files.begin(), found.files.end(),
            [](const FoundFile& a, const FoundFile& b) { return a.number < b.number; });
  return found;
}

Failure Refusal(HeaderVerdict verdict, const std::string& path) {
  switch (verdict) {
    case HeaderVerdict::kNewer:
      return {"ERR_IMAGE_NEWER", "open", path + " was written by a newer version of ShadowVM"};
    case HeaderVerdict::kForeign:
      return {"ERR_IMAGE_FOREIGN", "open", path + " is no part of this shadow image"};
    default:
      return CorruptImage(path, "the file's header is damaged");
  }
}

// Reads every header. One good one makes an image; a damaged one beside it is damage, and not something foreign.
const FoundFile& ReadHeaders(Folder* folder, int flags) {
  const FoundFile* good = nullptr;
  for (FoundFile& found : folder->files) {
    auto file = std::make_unique<File>(found.path, flags);
    found.header = ParseSegmentHeader(*file);
    if (found.header.verdict == HeaderVerdict::kNewer) throw Refusal(HeaderVerdict::kNewer, found.path);
    if (found.header.verdict != HeaderVerdict::kGood) continue;
    if (found.header.fixed.number != found.number || found.header.fixed.kind != found.kind)
      throw Refusal(HeaderVerdict::kForeign, found.path);
    if (good != nullptr &&
        memcmp(good->header.identity.imageId, found.header.identity.imageId, kIdBytes) != 0)
      throw Refusal(HeaderVerdict::kForeign, found.path);
    found.segment = std::make_shared<Segment>(std::move(file), found.kind, found.number);
    found.segment->headerBytes = found.header.bytes;
    if (good == nullptr) good = &found;
  }
  if (good == nullptr) throw Refusal(folder->files.front().header.verdict, folder->files.front().path);
  return *good;
}

std::string Hex(const uint8_t* id) {
  std::string text;
  for (size_t i = 0; i < kIdBytes; i++) {
    char byte[3];
    snprintf(byte, sizeof byte, "%02x", id[i]);
    text += byte;
  }
  return text;
}

void CheckBase(const ImageIdentity& identity, const std::shared_ptr<ShadowImage>& base, const std::string& path) {
  if (!identity.hasBase()) {
    if (base) throw Failure{"ERR_IMAGE_BASE", "open", path + " has no base, and one was given"};
    return;
  }
  const std::string needed = Hex(identity.baseId);
  if (!base) throw Failure{"ERR_IMAGE_BASE", "open", path + " needs the base image " + needed};
  if (base->id() != needed || base->HeadEpoch() != identity.baseEpoch || base->ramBytes() != identity.ramBytes ||
      base->diskBytes() != identity.diskBytes)
    throw Failure{"ERR_IMAGE_BASE", "open", path + " needs the base image " + needed + ", not " + base->id()};
}

EpochRecord ToEpoch(const std::shared_ptr<Segment>& segment, const RecordPlace& place, bool durable) {
  const CommitHeader& header = place.header;
  EpochRecord record;
  record.info.meta = {header.epoch, header.parent, header.generation, header.cutAtWallMs, header.cutAtMonotonicNs};
  record.info.changedPages = header.changedPages;
  record.info.storedBytes = header.kind == RecordKind::kFold ? header.epochBytes : place.end - place.offset;
  record.info.durable = durable;
  record.sequence = header.sequence;
  record.segment = segment;
  record.commitOffset = place.commitOffset;
  record.end = place.end;
  return record;
}

class Recovery {
 public:
  Recovery(Folder folder, ImageState* state, OpenReport* report)
      : folder_(std::move(folder)), state_(*state), report_(*report) {}
  Plan Judge();

 private:
  void ChooseFold();
  void ScanLogs();
  void DropUnsafe();
  void BuildChain();
  void PlanChanges();
  // Gives up the records from index `from` on.
  void Cut(size_t from, const std::string& why);
  bool NamedByFold(uint32_t number) const;
  void Say(const std::string& words) { report_.words += (report_.words.empty() ? "" : "; ") + words; }

  Folder folder_;
  ImageState& state_;
  OpenReport& report_;
  Plan plan_;
  std::shared_ptr<Segment> fold_;
  RecordPlace foldPlace_;
  std::vector<SegmentEntry> foldSegments_;
  bool foldDamaged_ = false;  // a newer one than fold_ is there and of no use
  std::vector<FoundRecord> records_;
  std::vector<std::pair<std::shared_ptr<Segment>, uint64_t>> goodEnds_;
  uint64_t foldSequence() const { return fold_ ? foldPlace_.header.sequence : 0; }
};

void Recovery::ChooseFold() {
  for (size_t i = folder_.files.size(); i-- > 0 && !fold_;) {
    const FoundFile& found = folder_.files[i];
    if (found.kind != SegmentKind::kFold) continue;
    try {
      if (!found.segment) throw CorruptImage(found.path, "the file's header is damaged");
      foldPlace_ = FindFold(*found.segment, state_.identity, &foldSegments_);
      fold_ = found.segment;
    } catch (const Failure& failure) {
      if (failure.code != "ERR_IMAGE_CORRUPT") throw;
      foldDamaged_ = true;
      Say(failure.message);
    }
  }
}

bool Recovery::NamedByFold(uint32_t number) const {
  return fold_ && std::any_of(foldSegments_.begin(), foldSegments_.end(),
                              [&](const SegmentEntry& entry) { return entry.number == number; });
}

// Finds the records after the fold. Only an unbroken sequence counts: each epoch builds on the one before.
void Recovery::ScanLogs() {
  for (const FoundFile& found : folder_.files) {
    if (!found.segment) continue;
    Segment& segment = *found.segment;
    segment.bytes = segment.file->Size();
    for (const SegmentEntry& entry : foldSegments_)
      if (entry.number == found.number) {
        segment.storedPages = entry.storedPages;
        segment.lastSequence = entry.lastSequence;
      }
    if (found.segment == fold_) segment.lastSequence = foldSequence();
    // All that such a segment has is in the fold's table: it is not read here.
    if (found.kind == SegmentKind::kFold || (NamedByFold(found.number) && segment.lastSequence <= foldSequence())) continue;
    const ScanResult scan = ScanLog(segment, state_.identity, foldSequence());
    segment.storedPages = 0;
    for (const RecordPlace& place : scan.records) {
      segment.storedPages += place.storedPages;
      segment.lastSequence = place.header.sequence;
      records_.push_back({found.segment, place});
    }
    // Damage before the fold's epoch: blocks that the fold names lie behind it, and the file keeps its length.
    const bool keep = NamedByFold(found.number) &&
                      (scan.records.empty() || scan.records.back().header.sequence < foldSequence());
    if (keep) Say(found.path + " is damaged");
    goodEnds_.emplace_back(found.segment, keep ? segment.bytes.load() : scan.goodEnd);
  }
  records_.erase(std::remove_if(records_.begin(), records_.end(),
                                [&](const FoundRecord& r) { return r.place.header.sequence <= foldSequence(); }),
                 records_.end());
  for (size_t i = 0; i < records_.size(); i++)
    if (records_[i].place.header.sequence != foldSequence() + 1 + i) {
      if (i == 0 && (foldDamaged_ || !fold_))
        throw CorruptImage(state_.folder->folder, "the records before epoch " +
                                                      std::to_string(records_[0].place.header.epoch) + " are gone");
      return Cut(i, "a record before it is damaged or gone");
    }
  if (records_.empty() && foldDamaged_) throw CorruptImage(state_.folder->folder, report_.words);
}

void Recovery::Cut(size_t from, const std::string& why) {
  uint64_t epochs = 0;
  for (size_t i = from; i < records_.size(); i++) {
    epochs += records_[i].place.header.kind == RecordKind::kEpoch;
    for (auto& [segment, goodEnd] : goodEnds_)
      if (segment == records_[i].segment) goodEnd = std::min(goodEnd, records_[i].place.offset);
  }
  Say("epoch " + std::to_string(records_[from].place.header.epoch) +
      (epochs > 1 ? " and " + std::to_string(epochs - 1) + " later ones are" : " is") + " lost: " + why);
  report_.lostEpochs += epochs;
  records_.resize(from);
}

// Records that nobody flushed may have reached the disk in any order and in part.
void Recovery::DropUnsafe() {
  uint64_t durable = foldSequence();
  for (const FoundRecord& record : records_) durable = std::max(durable, record.place.header.durableSequence);
  for (size_t i = 0; i < records_.size(); i++) {
    const RecordPlace& place = records_[i].place;
    if (place.header.sequence <= durable || PayloadIsWhole(*records_[i].segment->file, place, state_.key())) continue;
    Cut(i, "its pages did not all reach the disk");
    break;
  }
  state_.durableSequence = std::min(durable, foldSequence() + records_.size());
}

void Recovery::BuildChain() {
  std::vector<EpochRecord> known;
  if (fold_) known.push_back(ToEpoch(fold_, foldPlace_, true));
  state_.lastEpoch = fold_ ? foldPlace_.header.lastEpoch : 0;
  uint64_t head = fold_ ? foldPlace_.header.epoch : 0;
  for (const FoundRecord& record : records_) {
    const CommitHeader& header = record.place.header;
    if (header.kind == RecordKind::kEpoch) known.push_back(ToEpoch(record.segment, record.place, false));
    head = header.epoch;
    state_.lastEpoch = std::max(state_.lastEpoch, header.lastEpoch);
  }
  // From the head back over the parents, which all have lower numbers: the loop ends.
  uint64_t next = head;
  for (size_t i = known.size(); i-- > 0 && next != 0;) {
    if (known[i].info.meta.epoch != next) continue;
    state_.chain.push_back(known[i]);
    next = fold_ && i == 0 ? 0 : known[i].info.meta.parent;
  }
  if (next != 0 || (fold_ && !state_.chain.empty() && state_.chain.back().segment != fold_))
    throw CorruptImage(state_.folder->folder, "epoch " + std::to_string(next) + ", which others build on, is gone");
  std::reverse(state_.chain.begin(), state_.chain.end());
  state_.lastSequence = foldSequence() + records_.size();
}

void Recovery::PlanChanges() {
  std::shared_ptr<Segment> kept;
  for (const FoundFile& found : folder_.files)
    if (found.segment) kept = found.segment;
  for (const FoundFile& found : folder_.files) {
    // An image without any epoch has nothing but a header, and that is kept.
    const bool used = found.segment == fold_ || NamedByFold(found.number) || (state_.chain.empty() && found.segment == kept) ||
                      std::any_of(records_.begin(), records_.end(),
                                  [&](const FoundRecord& record) { return record.segment == found.segment; });
    // A header that never became whole carries nothing; and no fold is given up while a damaged one might need it.
    if (!found.segment ? found.kind == SegmentKind::kLog && !NamedByFold(found.number) : !used && !foldDamaged_)
      plan_.removals.push_back(found.path);
    else if (found.segment)
      state_.segments.Add(found.segment);
  }
  for (const auto& [segment, goodEnd] : goodEnds_) {
    const uint64_t size = segment->file->Size();
    segment->bytes = goodEnd;
    segment->lastSequence = std::min(segment->lastSequence.load(), state_.lastSequence);
    if (segment->lastSequence > state_.durableSequence) state_.unsynced.push_back(segment);
    if (goodEnd == size) continue;
    report_.cutBytes += size - goodEnd;
    plan_.cuts.emplace_back(segment, goodEnd);
  }
  if (report_.cutBytes > 0) Say(std::to_string(report_.cutBytes) + " bytes of records that never became whole were cut off");
  for (const std::string& path : folder_.leftovers) plan_.removals.push_back(path);
  report_.removedFiles = plan_.removals.size();
  if (state_.lastSequence == 0) state_.active = kept;
  state_.nextNumber = folder_.files.back().number + 1;
}

Plan Recovery::Judge() {
  ChooseFold();
  ScanLogs();
  DropUnsafe();
  BuildChain();
  PlanChanges();
  state_.Load(state_.chain, &state_.table);
  report_.headEpoch = state_.chain.empty() ? 0 : state_.chain.back().info.meta.epoch;
  return plan_;
}

}  // namespace

std::unique_ptr<ImageState> RecoverFolder(const std::string& path, std::shared_ptr<ShadowImage> base,
                                          OpenReport* report) {
  auto lock = std::make_unique<FolderLock>(path);
  Folder folder = ListFolder(path);
  if (folder.files.empty()) throw Failure{"ERR_IMAGE_NOT_FOUND", "open", "there is no shadow image at " + path};
  const ImageIdentity identity = ReadHeaders(&folder, O_RDWR).header.identity;
  CheckBase(identity, base, path);
  auto state = std::make_unique<ImageState>(identity, std::move(base));
  state->folder = std::move(lock);
  state->writer = std::make_unique<RecordWriter>(*state);
  const Plan plan = Recovery(std::move(folder), state.get(), report).Judge();
  for (const auto& [segment, bytes] : plan.cuts) segment->file->Truncate(bytes);
  for (const std::string& removal : plan.removals)
    if (unlink(removal.c_str()) != 0) throw ErrnoFailure(errno, "unlink", removal);
  if (!plan.removals.empty()) state->folder->Sync();
  return state;
}

std::unique_ptr<ImageState> OpenPacked(const std::string& path, std::shared_ptr<ShadowImage> base) {
  auto file = std::make_unique<File>(path, O_RDONLY);
  const ParsedHeader header = ParseSegmentHeader(*file);
  if (header.verdict != HeaderVerdict::kGood) throw Refusal(header.verdict, path);
  if (header.fixed.kind != SegmentKind::kFold)
    throw Failure{"ERR_IMAGE_FOREIGN", "open", path + " is one segment of an image, not a packed one"};
  CheckBase(header.identity, base, path);
  auto segment = std::make_shared<Segment>(std::move(file), SegmentKind::kFold, header.fixed.number);
  segment->headerBytes = header.bytes;
  auto state = std::make_unique<ImageState>(header.identity, std::move(base));
  const RecordPlace place = FindFold(*segment, state->identity, nullptr);
  segment->bytes = place.end;
  segment->lastSequence = place.header.sequence;
  state->segments.Add(segment);
  state->chain.push_back(ToEpoch(segment, place, true));
  state->lastEpoch = place.header.lastEpoch;
  state->durableSequence = state->lastSequence = place.header.sequence;
  state->Load(state->chain, &state->table);
  return state;
}
