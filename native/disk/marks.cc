#include "marks.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

constexpr size_t kChunkWords = SHADOWVM_CHUNK_PAGES / 64;

static uint64_t Load(const uint64_t& word) { return __atomic_load_n(&word, __ATOMIC_SEQ_CST); }
static void Set(uint64_t& word, uint64_t bits) { __atomic_fetch_or(&word, bits, __ATOMIC_SEQ_CST); }
static void Unset(uint64_t& word, uint64_t bits) { __atomic_fetch_and(&word, ~bits, __ATOMIC_SEQ_CST); }

DiskMarks::DiskMarks(std::shared_ptr<ControlPage> control, size_t index, size_t pages)
    : control_(std::move(control)),
      disk_(index < control_->diskCount() ? control_->disk(index) : nullptr),
      pages_(pages) {
  if (disk_ == nullptr || pages > SHADOWVM_DISK_PAGES_MAX)
    throw Failure{"ERR_SIZE", "marks", "the VM's process has no such disk"};
  if (control_->page()->disks_watched == 0)
    throw Failure{"ERR_NOT_TRACKED", "marks", "nothing in the VM's process marks what is written to its disks"};
}

uint64_t DiskMarks::ValidBits(size_t word) const {
  const size_t bits = std::min<size_t>(64, pages_ - word * 64);
  return bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
}

void DiskMarks::MarkWritten(size_t word, uint64_t bits) {
  Set(disk_->written.pages[word], bits);
  const size_t chunk = word / kChunkWords;
  Set(disk_->written.chunks[chunk / 64], uint64_t{1} << chunk % 64);
}

void DiskMarks::VisitWords(const uint64_t* array, const std::function<void(size_t word)>& visit) const {
  const auto* const base = reinterpret_cast<const uint8_t*>(control_->page());
  const auto start = static_cast<off_t>(reinterpret_cast<const uint8_t*>(array) - base);
  const off_t end = start + static_cast<off_t>(words() * sizeof *array);
  for (off_t at = start; at < end;) {
    const off_t data = lseek(control_->fd(), at, SEEK_DATA);
    if (data < 0 && errno != ENXIO) throw ErrnoFailure(errno, "lseek", "the marks of a disk");
    if (data < 0 || data >= end) return;
    off_t hole = lseek(control_->fd(), data, SEEK_HOLE);
    if (hole < 0) throw ErrnoFailure(errno, "lseek", "the marks of a disk");
    hole = std::min(hole, end);
    for (off_t word = std::max(at, data); word < hole; word += static_cast<off_t>(sizeof *array))
      visit(static_cast<size_t>(word - start) / sizeof *array);
    at = hole;
  }
}

void DiskMarks::Recover() {
  VisitWords(disk_->taken, [&](size_t word) {
    const uint64_t bits = Load(disk_->taken[word]);
    if (bits == 0) return;
    MarkWritten(word, bits);
    Unset(disk_->taken[word], bits);
  });
  VisitWords(disk_->written.pages, [&](size_t word) {
    if (Load(disk_->written.pages[word]) != 0) MarkWritten(word, 0);
  });
}

void DiskMarks::Clear() {
  for (const Run& run : Take())
    for (size_t page = run.first; page < run.end; page++) Settle(page);
}

size_t DiskMarks::Count(size_t enough) const {
  size_t count = 0;
  for (size_t chunk = 0; chunk * kChunkWords < words() && count <= enough; chunk++) {
    const uint64_t chunks = Load(disk_->written.chunks[chunk / 64]);
    if (chunks == 0) chunk |= 63;
    if ((chunks >> chunk % 64 & 1) == 0) continue;
    const size_t end = std::min(words(), (chunk + 1) * kChunkWords);
    for (size_t word = chunk * kChunkWords; word < end; word++)
      count += static_cast<size_t>(__builtin_popcountll(Load(disk_->written.pages[word]) & ValidBits(word)));
  }
  return count;
}

std::vector<DiskMarks::Run> DiskMarks::Take() {
  std::vector<Run> runs;
  const auto add = [&](size_t page) {
    if (!runs.empty() && runs.back().end == page)
      runs.back().end++;
    else
      runs.push_back({page, page + 1});
  };
  for (size_t chunk = 0; chunk * kChunkWords < words(); chunk++) {
    uint64_t& chunks = disk_->written.chunks[chunk / 64];
    const uint64_t bit = uint64_t{1} << chunk % 64;
    const uint64_t before = Load(chunks);
    if (before == 0) chunk |= 63;
    if ((before & bit) == 0) continue;
    Unset(chunks, bit);
    const size_t end = std::min(words(), (chunk + 1) * kChunkWords);
    for (size_t word = chunk * kChunkWords; word < end; word++) {
      const uint64_t bits = Load(disk_->written.pages[word]) & ValidBits(word);
      if (bits == 0) continue;
      Set(disk_->taken[word], bits);  // first: a death between the two forgets nothing
      Unset(disk_->written.pages[word], bits);
      for (uint64_t left = bits; left != 0; left &= left - 1)
        add(word * 64 + static_cast<size_t>(__builtin_ctzll(left)));
    }
  }
  return runs;
}

void DiskMarks::Settle(size_t page) { Unset(disk_->taken[page / 64], uint64_t{1} << page % 64); }

void DiskMarks::GiveBack(size_t page) {
  MarkWritten(page / 64, uint64_t{1} << page % 64);
  Settle(page);
}
