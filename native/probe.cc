// Whether this kernel can track the writes to shared memory, found out by tracking one: a flag in a feature mask does
// not tell whether a seccomp filter, a sysctl or a container stands in the way.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "addon.h"
#include "shim/kernel-abi.h"

namespace {

constexpr size_t kPages = 4;

// Owns what the probe opens, so that every way out closes it.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

class Mapping {
 public:
  Mapping(int fd, size_t bytes)
      : bytes_(bytes), start_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) {}
  ~Mapping() {
    if (start_ != MAP_FAILED) munmap(start_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  bool valid() const { return start_ != MAP_FAILED; }
  volatile char* bytes() const { return static_cast<volatile char*>(start_); }
  uint64_t address() const { return reinterpret_cast<uint64_t>(start_); }

 private:
  size_t bytes_;
  void* start_;
};

// Gets and re-arms the written pages, each in a bit; -1 with errno on failure.
int WrittenPages(int pagemap, const Mapping& memory, size_t pageBytes) {
  page_region regions[kPages];
  pm_scan_arg scan{};
  scan.size = sizeof scan;
  scan.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
  scan.start = memory.address();
  scan.end = scan.start + kPages * pageBytes;
  scan.vec = reinterpret_cast<uint64_t>(regions);
  // Never 0: kernels were seen to panic on it.
  scan.vec_len = kPages;
  scan.category_mask = PAGE_IS_WRITTEN;
  scan.return_mask = PAGE_IS_WRITTEN;
  // sound: scan and regions outlive the call, and vec_len is the size of regions.
  const int found = ioctl(pagemap, PAGEMAP_SCAN, &scan);
  if (found < 0) return -1;
  int written = 0;
  for (int i = 0; i < found && i < static_cast<int>(kPages); i++)
    for (uint64_t at = regions[i].start; at < regions[i].end; at += pageBytes)
      written |= 1 << ((at - scan.start) / pageBytes);
  return written;
}

std::string Because(const char* what) { return std::string(what) + ": " + strerror(errno); }

// The empty string when tracking works, else the reason why not.
std::string TryTracking() {
  const size_t pageBytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const Fd memfd(memfd_create("shadowvm-probe", MFD_CLOEXEC));
  if (memfd.get() < 0) return Because("memfd_create");
  if (ftruncate(memfd.get(), static_cast<off_t>(kPages * pageBytes)) != 0) return Because("ftruncate");
  const Mapping memory(memfd.get(), kPages * pageBytes);
  if (!memory.valid()) return Because("mmap");
  const Fd uffd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (uffd.get() < 0) return Because("userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;
  if (ioctl(uffd.get(), UFFDIO_API, &api) != 0)
    return errno == EINVAL ? "this kernel's userfaultfd has no asynchronous write protection (Linux 6.7 brought it)"
                           : Because("UFFDIO_API");
  uffdio_register registration{};
  registration.range.start = memory.address();
  registration.range.len = kPages * pageBytes;
  registration.mode = UFFDIO_REGISTER_MODE_WP;
  if (ioctl(uffd.get(), UFFDIO_REGISTER, &registration) != 0) return Because("UFFDIO_REGISTER");
  const Fd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (pagemap.get() < 0) return Because("open /proc/self/pagemap");
  // The first scan arms, the second proves that the armed pages are clean, the third that a write is seen.
  if (WrittenPages(pagemap.get(), memory, pageBytes) < 0)
    return errno == ENOTTY || errno == EINVAL ? "this kernel has no PAGEMAP_SCAN (Linux 6.7 brought it)"
                                              : Because("PAGEMAP_SCAN");
  const int clean = WrittenPages(pagemap.get(), memory, pageBytes);
  memory.bytes()[2 * pageBytes] = 1;
  const int dirty = WrittenPages(pagemap.get(), memory, pageBytes);
  if (clean != 0 || dirty != 1 << 2) return "the kernel accepts the requests but does not report a written page";
  return "";
}

}  // namespace

// probeTracking(): string|null. null: works; else the reason why not.
static Napi::Value ProbeTracking(const Napi::CallbackInfo& info) {
  const std::string reason = TryTracking();
  if (reason.empty()) return info.Env().Null();
  return Napi::String::New(info.Env(), reason);
}

void RegisterProbe(Napi::Env env, Napi::Object exports) {
  exports.Set("probeTracking", Napi::Function::New(env, ProbeTracking));
}
