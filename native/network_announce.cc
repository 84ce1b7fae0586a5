// Who is where: what a bridge, its hosts and the neighbours are told when a guest's port changes.
#include "netlink.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/neighbour.h>
#include <net/if_arp.h>
#include <sys/socket.h>

namespace {

// A frame to everybody on the interface. Protocol 0: the socket only sends; nothing is ever queued on it.
void SendFrame(Napi::Env env, const std::string& name, const void* frame, size_t bytes) {
  static thread_local int kept = -1;
  const int fd = KeptSocket(env, &kept, AF_PACKET, SOCK_RAW, 0);
  const auto* ethernet = static_cast<const ethhdr*>(frame);
  sockaddr_ll target{};
  target.sll_family = AF_PACKET;
  target.sll_protocol = ethernet->h_proto;
  target.sll_ifindex = IndexOf(env, name);
  target.sll_halen = kMacBytes;
  memcpy(target.sll_addr, ethernet->h_dest, kMacBytes);
  const ssize_t sent = sendto(fd, frame, bytes, 0, reinterpret_cast<const sockaddr*>(&target), sizeof target);
  if (sent != static_cast<ssize_t>(bytes)) throw ErrnoError(env, sent < 0 ? errno : EIO, "sendto", name);
}

struct ArpFrame {
  ethhdr ethernet;
  arphdr arp;
  uint8_t senderMac[kMacBytes];
  uint8_t senderAddress[4];
  uint8_t targetMac[kMacBytes];
  uint8_t targetAddress[4];
} __attribute__((packed));
static_assert(sizeof(ArpFrame) == 42, "an ARP frame on Ethernet");

// Gratuitous ARP in both forms, since some stacks take only one of them: as a request (RFC 5227 announcement) and as a
// reply.
void AnnounceByArp(Napi::Env env, const std::string& name, const Mac& mac, const IpAddress& address) {
  ArpFrame frame{};
  memset(frame.ethernet.h_dest, 0xff, kMacBytes);
  memcpy(frame.ethernet.h_source, mac.bytes, kMacBytes);
  frame.ethernet.h_proto = htons(ETH_P_ARP);
  frame.arp.ar_hrd = htons(ARPHRD_ETHER);
  frame.arp.ar_pro = htons(ETH_P_IP);
  frame.arp.ar_hln = kMacBytes;
  frame.arp.ar_pln = 4;
  memcpy(frame.senderMac, mac.bytes, kMacBytes);
  memcpy(frame.senderAddress, address.bytes, 4);
  memcpy(frame.targetAddress, address.bytes, 4);
  for (const uint16_t operation : {uint16_t{ARPOP_REQUEST}, uint16_t{ARPOP_REPLY}}) {
    frame.arp.ar_op = htons(operation);
    if (operation == ARPOP_REPLY) memcpy(frame.targetMac, mac.bytes, kMacBytes);
    SendFrame(env, name, &frame, sizeof frame);
  }
}

// RFC 4861, 4.4 with the option of 4.6.1, inside its IPv6 and Ethernet headers.
struct AdvertisementFrame {
  ethhdr ethernet;
  uint8_t versionAndClass[4];
  uint16_t payloadBytes;
  uint8_t nextHeader;
  uint8_t hopLimit;
  uint8_t source[16];
  uint8_t destination[16];
  uint8_t type;
  uint8_t code;
  uint16_t checksum;
  uint8_t flags;
  uint8_t reserved[3];
  uint8_t target[16];
  uint8_t optionType;
  uint8_t optionUnits;
  uint8_t targetMac[kMacBytes];
} __attribute__((packed));
static_assert(sizeof(AdvertisementFrame) == 86, "a neighbour advertisement on Ethernet");
constexpr size_t kAdvertisementBytes = sizeof(AdvertisementFrame) - offsetof(AdvertisementFrame, type);

uint32_t SumOf(const uint8_t* bytes, size_t count) {
  uint32_t sum = 0;
  for (size_t i = 0; i < count; i += 2) sum += static_cast<uint32_t>(bytes[i] << 8 | bytes[i + 1]);
  return sum;
}

// An unsolicited neighbour advertisement (RFC 4861, 7.2.6) with the override flag, to all nodes.
void AnnounceByAdvertisement(Napi::Env env, const std::string& name, const Mac& mac, const IpAddress& address) {
  const uint8_t allNodes[16] = {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  const uint8_t allNodesMac[kMacBytes] = {0x33, 0x33, 0, 0, 0, 1};
  AdvertisementFrame frame{};
  memcpy(frame.ethernet.h_dest, allNodesMac, kMacBytes);
  memcpy(frame.ethernet.h_source, mac.bytes, kMacBytes);
  frame.ethernet.h_proto = htons(ETH_P_IPV6);
  frame.versionAndClass[0] = 0x60;
  frame.payloadBytes = htons(kAdvertisementBytes);
  frame.nextHeader = IPPROTO_ICMPV6;
  frame.hopLimit = 255;  // others are dropped: they could come from beyond the link
  memcpy(frame.source, address.bytes, 16);
  memcpy(frame.destination, allNodes, 16);
  frame.type = 136;
  frame.flags = 0x20;  // override what the neighbours know
  memcpy(frame.target, address.bytes, 16);
  frame.optionType = 2;  // the target's link-layer address
  frame.optionUnits = 1;
  memcpy(frame.targetMac, mac.bytes, kMacBytes);
  // Over a pseudo header of both addresses (one behind the other here), the length and the protocol.
  uint32_t sum = SumOf(frame.source, 32) + kAdvertisementBytes + IPPROTO_ICMPV6 + SumOf(&frame.type, kAdvertisementBytes);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  frame.checksum = htons(static_cast<uint16_t>(~sum));
  SendFrame(env, name, &frame, sizeof frame);
}

// announce(ifname, mac, address): void. Tells everybody on the interface that the address is at the MAC, by gratuitous ARP
// or an unsolicited neighbour advertisement. The frame carries the guest's MAC as its source, so every switch that it
// passes learns the way; on a bridge it goes to all ports.
Napi::Value Announce(const Napi::CallbackInfo& info) {
  const char* usage = "announce(ifname, mac, address)";
  const std::string name = NameArgument(info, 0, usage);
  const Mac mac = MacArgument(info, 1, usage);
  const IpAddress address = AddressArgument(info, 2, usage);
  if (address.family == AF_INET)
    AnnounceByArp(info.Env(), name, mac, address);
  else
    AnnounceByAdvertisement(info.Env(), name, mac, address);
  return info.Env().Undefined();
}

// sendBlank(ifname): void. A frame to nobody, of a type that is for experiments: whoever is behind the interface drops it.
Napi::Value SendBlank(const Napi::CallbackInfo& info) {
  const std::string name = NameArgument(info, 0, "sendBlank(ifname)");
  constexpr size_t kFrameBytesMin = 60;
  uint8_t frame[kFrameBytesMin] = {};
  ethhdr header{};
  header.h_dest[0] = header.h_source[0] = 0x02;  // of local meaning
  header.h_proto = htons(ETH_P_802_EX1);
  memcpy(frame, &header, sizeof header);
  SendFrame(info.Env(), name, frame, sizeof frame);
  return info.Env().Undefined();
}

// learnAddress(ifname, mac): boolean. Tells the bridge that mac is behind its port ifname, as if a frame had come from
// there (it ages as such): what a host sends out of its bridge teaches the neighbours but not the bridge itself.
// false: the port does not forward (down, no carrier, or in no bridge), so it can not learn either.
Napi::Value LearnAddress(const Napi::CallbackInfo& info) {
  const char* usage = "learnAddress(ifname, mac)";
  const std::string name = NameArgument(info, 0, usage);
  const Mac mac = MacArgument(info, 1, usage);
  Napi::Env env = info.Env();
  ndmsg message{};
  message.ndm_family = AF_BRIDGE;
  message.ndm_ifindex = IndexOf(env, name);
  message.ndm_state = NUD_REACHABLE;
  message.ndm_flags = NTF_MASTER;
  NetlinkRequest request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &message, sizeof message);
  request.Attribute(NDA_LLADDR, mac.bytes, kMacBytes);
  const int number = request.Send(env);
  // EPERM is the bridge's word for a port that is not learning; a caller without CAP_NET_ADMIN gets it too, but had
  // to have the right to bring the port up before. EOPNOTSUPP: in no bridge.
  if (number == EPERM || number == EOPNOTSUPP || number == EINVAL) return Napi::Boolean::New(env, false);
  if (number != 0) throw ErrnoError(env, number, "RTM_NEWNEIGH", name);
  return Napi::Boolean::New(env, true);
}

// setNeighbour(ifname, address, mac): void. Tells this host's own stack, which does not hear what it announces. An entry that
// it is still asking for (after the bridge was without a running port) is resolved and its waiting packets leave; by
// itself the kernel would ask again at its next turn, up to a second later. The entry ages as any other.
Napi::Value SetNeighbour(const Napi::CallbackInfo& info) {
  const char* usage = "setNeighbour(ifname, address, mac)";
  const std::string name = NameArgument(info, 0, usage);
  const IpAddress address = AddressArgument(info, 1, usage);
  const Mac mac = MacArgument(info, 2, usage);
  ndmsg message{};
  message.ndm_family = address.family;
  message.ndm_ifindex = IndexOf(info.Env(), name);
  message.ndm_state = NUD_REACHABLE;
  NetlinkRequest request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &message, sizeof message);
  request.Attribute(NDA_DST, address.bytes, address.Bytes());
  request.Attribute(NDA_LLADDR, mac.bytes, kMacBytes);
  request.SendOrThrow(info.Env(), "RTM_NEWNEIGH", name);
  return info.Env().Undefined();
}

}  // namespace

void RegisterAnnounce(Napi::Env env, Napi::Object exports) {
  exports.Set("announce", Napi::Function::New(env, Announce));
  exports.Set("sendBlank", Napi::Function::New(env, SendBlank));
  exports.Set("learnAddress", Napi::Function::New(env, LearnAddress));
  exports.Set("setNeighbour", Napi::Function::New(env, SetNeighbour));
}
