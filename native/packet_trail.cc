// What a guest was sent of late: a ring of the frames that went out at its tap. When it is promoted, those that its epoch
// has not seen are sent to it again; otherwise their senders would find out by time-outs of 200 ms and more.
//
// The kernel fills the ring by itself (PACKET_RX_RING); here frames are only counted, forgotten and sent again. It takes
// newest frames only while there is room: what does not fit is lost as on any network.
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "netlink.h"

namespace {

// With its headers a frame of the usual 1500 bytes fits; longer ones (segments of 64 KiB) are left to their senders.
constexpr uint32_t kFrameBytes = 2048;
// struct virtio_net_hdr, whose own header is not C++.
constexpr size_t kOffloadHeaderBytes = 10;
constexpr uint32_t kBlockBytes = 64 * 1024;
constexpr uint32_t kFrames = 512;
constexpr size_t kRingBytes = size_t{kFrames} * kFrameBytes;

class PacketTrail : public Napi::ObjectWrap<PacketTrail> {
 public:
  static void Register(Napi::Env env, Napi::Object exports) {
    exports.Set("PacketTrail", DefineClass(env, "PacketTrail",
                                           {InstanceMethod("mark", &PacketTrail::Mark), InstanceMethod("forget", &PacketTrail::Forget),
                                            InstanceMethod("replay", &PacketTrail::Replay), InstanceMethod("close", &PacketTrail::Close)}));
  }
  explicit PacketTrail(const Napi::CallbackInfo& info);
  ~PacketTrail() override { Release(); }

 private:
  // mark(): number of frames seen so far. A frame that comes later has a higher number.
  Napi::Value Mark(const Napi::CallbackInfo& info);
  // forget(mark): those up to it are not replayed any more.
  void Forget(const Napi::CallbackInfo& info);
  // replay(tap): sends what is left to the guest on another tap. @returns how many frames
  Napi::Value Replay(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo&) { Release(); }

  tpacket2_hdr* Frame(uint64_t number) const {
    return reinterpret_cast<tpacket2_hdr*>(ring_ + (number % kFrames) * size_t{kFrameBytes});
  }
  static bool IsFull(const tpacket2_hdr* frame) {
    // Written by the kernel when the rest of the frame is.
    return (reinterpret_cast<const std::atomic<uint32_t>*>(&frame->tp_status)->load(std::memory_order_acquire) &
            TP_STATUS_USER) != 0;
  }
  void LookForMore() {
    while (ring_ != nullptr && seen_ - forgotten_ < kFrames && IsFull(Frame(seen_))) seen_++;
  }
  void Release();

  int fd_ = -1;
  uint8_t* ring_ = nullptr;
  // Frames are numbered as they come; those from forgotten_ to seen_ are in the ring.
  uint64_t forgotten_ = 0;
  uint64_t seen_ = 0;
};

void SetOption(Napi::Env env, int fd, int level, int option, const void* value, socklen_t bytes, const char* what) {
  if (setsockopt(fd, level, option, value, bytes) < 0) throw ErrnoError(env, errno, "setsockopt", what);
}

PacketTrail::PacketTrail(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PacketTrail>(info) {
  Napi::Env env = info.Env();
  const std::string name = NameArgument(info, 0, "PacketTrail(tap)");
  const int index = IndexOf(env, name);
  // Protocol 0: nothing comes before everything is set.
  fd_ = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
  if (fd_ < 0) throw ErrnoError(env, errno, "socket", name);
  try {
    // Only what goes out at the tap, which is what the guest is sent.
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, static_cast<uint32_t>(SKF_AD_OFF + SKF_AD_PKTTYPE)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0x40000),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const sock_fprog filter = {4, program};
    SetOption(env, fd_, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter, "SO_ATTACH_FILTER");
    const int version = TPACKET_V2;
    SetOption(env, fd_, SOL_PACKET, PACKET_VERSION, &version, sizeof version, "PACKET_VERSION");
    // Its header says which checksums are still to be made: the host leaves them to the last who needs them.
    const int withHeader = 1;
    SetOption(env, fd_, SOL_PACKET, PACKET_VNET_HDR, &withHeader, sizeof withHeader, "PACKET_VNET_HDR");
    const tpacket_req request = {kBlockBytes, static_cast<uint32_t>(kRingBytes / kBlockBytes), kFrameBytes, kFrames};
    SetOption(env, fd_, SOL_PACKET, PACKET_RX_RING, &request, sizeof request, "PACKET_RX_RING");
    void* ring = mmap(nullptr, kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (ring == MAP_FAILED) throw ErrnoError(env, errno, "mmap", name);
    ring_ = static_cast<uint8_t*>(ring);
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = index;
    if (bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
      throw ErrnoError(env, errno, "bind", name);
  } catch (...) {
    Release();
    throw;
  }
}

Napi::Value PacketTrail::Mark(const Napi::CallbackInfo& info) {
  LookForMore();
  return Napi::Number::New(info.Env(), static_cast<double>(seen_));
}

void PacketTrail::Forget(const Napi::CallbackInfo& info) {
  const uint64_t mark = static_cast<uint64_t>(WholeNumber(info[0], 0, 1e15, "packet trail", "forget(mark)"));
  if (ring_ == nullptr) return;
  for (; forgotten_ < mark && forgotten_ < seen_; forgotten_++)
    reinterpret_cast<std::atomic<uint32_t>*>(&Frame(forgotten_)->tp_status)->store(TP_STATUS_KERNEL, std::memory_order_release);
}

Napi::Value PacketTrail::Replay(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string name = NameArgument(info, 0, "replay(tap)");
  LookForMore();
  // Kept open, as closing one waits; protocol 0, so that it only sends.
  static thread_local int kept = -1;
  const int fd = KeptSocket(env, &kept, AF_PACKET, SOCK_RAW, 0);
  const int withHeader = 1;
  SetOption(env, fd, SOL_PACKET, PACKET_VNET_HDR, &withHeader, sizeof withHeader, "PACKET_VNET_HDR");
  sockaddr_ll target{};
  target.sll_family = AF_PACKET;
  target.sll_ifindex = IndexOf(env, name);
  target.sll_halen = kMacBytes;
  uint32_t replayed = 0;
  for (uint64_t number = forgotten_; ring_ != nullptr && number < seen_; number++) {
    const tpacket2_hdr* frame = Frame(number);
    if (frame->tp_snaplen != frame->tp_len || frame->tp_snaplen < sizeof(ethhdr)) continue;
    const uint8_t* ethernet = reinterpret_cast<const uint8_t*>(frame) + frame->tp_mac;
    target.sll_protocol = reinterpret_cast<const ethhdr*>(ethernet)->h_proto;
    memcpy(target.sll_addr, ethernet, kMacBytes);
    const size_t bytes = kOffloadHeaderBytes + frame->tp_snaplen;
    // One that does not go is one lost on the way; what may have been wrong with it is its sender's.
    if (sendto(fd, ethernet - kOffloadHeaderBytes, bytes, MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&target),
               sizeof target) == static_cast<ssize_t>(bytes))
      replayed++;
  }
  return Napi::Number::New(env, replayed);
}

// On a thread of its own: the end of a packet socket waits for the kernel's grace periods, tens of ms.
void PacketTrail::Release() {
  if (fd_ < 0) return;
  std::thread([fd = fd_, ring = ring_] {
    if (ring != nullptr) munmap(ring, kRingBytes);
    close(fd);
  }).detach();
  fd_ = -1;
  ring_ = nullptr;
}

}  // namespace

void RegisterPacketTrail(Napi::Env env, Napi::Object exports) { PacketTrail::Register(env, exports); }
