#include "segment.h"

#include <time.h>

#include <algorithm>
#include <cstdio>

#include "digest.h"
#include "shadow_image.h"

bool ImageIdentity::hasBase() const {
  return std::any_of(std::begin(baseId), std::end(baseId), [](uint8_t byte) { return byte != 0; });
}

std::string SegmentName(SegmentKind kind, uint32_t number) {
  char name[32];
  snprintf(name, sizeof name, "%08u.%s", number, kind == SegmentKind::kLog ? "log" : "fold");
  return name;
}

std::vector<uint8_t> EncodeSegmentHeader(const ImageIdentity& identity, SegmentKind kind, uint32_t number) {
  SegmentHeader header = {};
  memcpy(header.magic, kSegmentMagic, sizeof header.magic);
  header.version = identity.diskBytes == 0 ? kFormatVersionWithoutDisks : kFormatVersion;
  header.kind = kind;
  memcpy(header.imageId, identity.imageId, kIdBytes);
  memcpy(header.baseId, identity.baseId, kIdBytes);
  header.baseEpoch = identity.baseEpoch;
  header.ramBytes = identity.ramBytes;
  header.diskMiB = static_cast<uint32_t>(identity.diskBytes / kMiB);
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  header.createdAtWallMs = static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
  header.number = number;
  header.vmBytes = static_cast<uint32_t>(identity.vm.size());
  header.labelBytes = static_cast<uint32_t>(identity.label.size());
  memcpy(header.key, identity.key, sizeof header.key);
  const std::string texts = identity.vm + identity.label;
  header.textChecksum = Checksum(nullptr, texts.data(), texts.size());
  header.checksum = Checksum(nullptr, &header, offsetof(SegmentHeader, checksum));
  std::vector<uint8_t> bytes(sizeof header + texts.size());
  memcpy(bytes.data(), &header, sizeof header);
  memcpy(bytes.data() + sizeof header, texts.data(), texts.size());
  return bytes;
}

ParsedHeader ParseSegmentHeader(const File& file) {
  ParsedHeader parsed;
  SegmentHeader& header = parsed.fixed;
  const size_t got = file.ReadSome(0, &header, sizeof header);
  // A file that was created and never reached the disk reads as empty or as zeros: torn, not foreign.
  static const uint8_t zeros[sizeof header.magic] = {};
  const size_t known = std::min(got, sizeof header.magic);
  if (memcmp(header.magic, kSegmentMagic, known) != 0 && memcmp(header.magic, zeros, known) != 0) {
    parsed.verdict = HeaderVerdict::kForeign;
    return parsed;
  }
  // Only magic and version have a fixed place in all versions.
  if (got < sizeof header || memcmp(header.magic, zeros, sizeof zeros) == 0) return parsed;
  if (header.version > kFormatVersion) {
    parsed.verdict = HeaderVerdict::kNewer;
    return parsed;
  }
  if (header.checksum != Checksum(nullptr, &header, offsetof(SegmentHeader, checksum)) || header.version == 0 ||
      header.vmBytes > kMaxVmBytes || header.labelBytes > ShadowImage::kMaxLabelBytes || header.ramBytes == 0 ||
      header.ramBytes % kPageBytes != 0 || header.ramBytes > kMaxPageBytes - header.diskMiB * kMiB ||
      (header.diskMiB != 0 && header.version == kFormatVersionWithoutDisks) ||
      (header.kind != SegmentKind::kLog && header.kind != SegmentKind::kFold))
    return parsed;
  std::string texts(header.vmBytes + header.labelBytes, '\0');
  if (file.ReadSome(sizeof header, texts.data(), texts.size()) != texts.size() ||
      header.textChecksum != Checksum(nullptr, texts.data(), texts.size()))
    return parsed;
  ImageIdentity& identity = parsed.identity;
  memcpy(identity.imageId, header.imageId, kIdBytes);
  memcpy(identity.baseId, header.baseId, kIdBytes);
  identity.baseEpoch = header.baseEpoch;
  identity.ramBytes = header.ramBytes;
  identity.diskBytes = header.diskMiB * kMiB;
  memcpy(identity.key, header.key, kHashKeyBytes);
  identity.vm = texts.substr(0, header.vmBytes);
  identity.label = texts.substr(header.vmBytes);
  parsed.bytes = sizeof header + texts.size();
  parsed.verdict = HeaderVerdict::kGood;
  return parsed;
}

size_t SegmentSet::Add(std::shared_ptr<Segment> segment) {
  for (size_t slot = 0; slot < slots_.size(); slot++)
    if (!slots_[slot]) {
      slots_[slot] = std::move(segment);
      return slot;
    }
  if (slots_.size() == kMaxSegments)
    throw Failure{"ERR_IMAGE_FULL", "append", "the image has too many segments; compact it or make them bigger"};
  slots_.push_back(std::move(segment));
  return slots_.size() - 1;
}

size_t SegmentSet::Find(uint32_t number) const {
  for (size_t slot = 0; slot < slots_.size(); slot++)
    if (slots_[slot] && slots_[slot]->number == number) return slot;
  return kMaxSegments;
}
