// Bridges, taps and announcements, by ioctl and netlink instead of a spawned `ip`: severing a dead VM and connecting its
// shadow happens inside a failover, where a fork and exec of a helper would cost more than everything else together.
//
// All functions are synchronous: each is a few system calls. Those that take an interface out of a bridge, or delete
// one, wait for the kernel's RCU grace periods and so take up to some milliseconds; src/network/ keeps them off the
// failover's path.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "addon.h"

// linux/if_bridge.h pulls in linux/in6.h, which clashes with netinet/in.h of the C library, so nothing of it is used.

namespace {

constexpr size_t kMacBytes = 6;

struct Mac {
  uint8_t bytes[kMacBytes];
};

// ---- Arguments: everything is checked here, so that nothing below sees a name that is too long or not a name. ----

std::string TextArgument(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  if (!info[index].IsString()) throw MakeTypeError(info.Env(), "network", usage);
  return info[index].As<Napi::String>();
}

// The kernel's rule (dev_valid_name) and two of our own: '%' is a template to the tun driver, which would make an
// interface of another name than asked for; a NUL would cut the name short.
std::string NameArgument(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  const std::string name = TextArgument(info, index, usage);
  const bool badCharacter = std::any_of(name.begin(), name.end(), [](unsigned char c) {
    return c <= ' ' || c == '/' || c == ':' || c == '%' || c == 0x7f;
  });
  if (name.empty() || name.size() >= IFNAMSIZ || name == "." || name == ".." || badCharacter)
    throw MakeError(info.Env(), "EINVAL", "if_nametoindex",
                    std::string(usage) + ": not an interface name of 1 to 15 bytes: '" + name + "'");
  return name;
}

uint32_t NumberArgument(const Napi::CallbackInfo& info, size_t index, const char* usage, double min, double max) {
  return static_cast<uint32_t>(WholeNumber(info[index], min, max, "network", usage));
}

bool BooleanArgument(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  if (!info[index].IsBoolean()) throw MakeTypeError(info.Env(), "network", usage);
  return info[index].As<Napi::Boolean>();
}

in_addr AddressArgument(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  const std::string text = TextArgument(info, index, usage);
  in_addr address{};
  // size() against strlen(): inet_pton stops at a NUL inside the string.
  if (text.size() != strlen(text.c_str()) || inet_pton(AF_INET, text.c_str(), &address) != 1)
    throw MakeError(info.Env(), "EINVAL", "inet_pton", std::string(usage) + ": not an IPv4 address: '" + text + "'");
  return address;
}

Mac MacArgument(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  const std::string text = TextArgument(info, index, usage);
  Mac mac{};
  auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  bool valid = text.size() == kMacBytes * 3 - 1;
  for (size_t i = 0; valid && i < kMacBytes; i++) {
    const int high = digit(text[i * 3]);
    const int low = digit(text[i * 3 + 1]);
    valid = high >= 0 && low >= 0 && (i + 1 == kMacBytes || text[i * 3 + 2] == ':');
    if (valid) mac.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  // The lowest bit of the first byte marks a group: no interface may have such an address.
  if (!valid || (mac.bytes[0] & 1) != 0)
    throw MakeError(info.Env(), "EINVAL", "parse", std::string(usage) + ": not a unicast MAC address: '" + text + "'");
  return mac;
}

// ---- Sockets. Opened once and kept: closing a packet socket waits for an RCU grace period (tens of ms). ----

// A process has one network namespace for its life (Node never calls setns), so a kept socket stays the right one.
int KeptSocket(Napi::Env env, int* kept, int domain, int type, int protocol) {
  if (*kept < 0) {
    const int fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    if (fd < 0) throw ErrnoError(env, errno, "socket", "for network control");
    *kept = fd;
  }
  return *kept;
}

// Thread-local: a worker thread that loads the addon too must not read the answers to this thread's netlink requests.
thread_local int controlSocket = -1;
thread_local int netlinkSocket = -1;
thread_local int packetSocket = -1;

int ControlSocket(Napi::Env env) { return KeptSocket(env, &controlSocket, AF_INET, SOCK_DGRAM, 0); }

ifreq RequestFor(const std::string& name) {
  ifreq request{};
  // NameArgument made sure that it fits with its NUL; the rest of the field is zero already.
  memcpy(request.ifr_name, name.data(), name.size());
  return request;
}

void Control(Napi::Env env, unsigned long command, void* argument, const char* what, const std::string& subject) {
  // sound: every caller passes the structure that the ioctl is defined for, alive for the duration of the call.
  if (ioctl(ControlSocket(env), command, argument) != 0) throw ErrnoError(env, errno, what, subject);
}

int IndexOf(Napi::Env env, const std::string& name) {
  ifreq request = RequestFor(name);
  Control(env, SIOCGIFINDEX, &request, "SIOCGIFINDEX", name);
  return request.ifr_ifindex;
}

// One rtnetlink request and its acknowledgement. The buffer holds header, family header and attributes in order.
class NetlinkRequest {
 public:
  NetlinkRequest(uint16_t type, uint16_t flags, const void* family, size_t familyBytes) {
    nlmsghdr* header = Header();
    header->nlmsg_type = type;
    header->nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    header->nlmsg_len = NLMSG_LENGTH(familyBytes);
    memcpy(NLMSG_DATA(header), family, familyBytes);
  }

  void Attribute(uint16_t type, const void* data, size_t bytes) {
    nlmsghdr* header = Header();
    const size_t offset = NLMSG_ALIGN(header->nlmsg_len);
    // Attributes here are addresses of at most 6 bytes; the bound is asserted because the buffer is fixed.
    if (offset + RTA_SPACE(bytes) > sizeof buffer_) abort();
    auto* attribute = reinterpret_cast<rtattr*>(buffer_ + offset);
    attribute->rta_type = type;
    attribute->rta_len = static_cast<uint16_t>(RTA_LENGTH(bytes));
    memcpy(RTA_DATA(attribute), data, bytes);
    header->nlmsg_len = static_cast<uint32_t>(offset + RTA_SPACE(bytes));
  }

  // Returns 0 or the errno that the kernel answered. @throws where the conversation itself fails
  int Send(Napi::Env env) {
    const int fd = KeptSocket(env, &netlinkSocket, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    static thread_local uint32_t lastSequence = 0;
    nlmsghdr* header = Header();
    header->nlmsg_seq = ++lastSequence;
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    if (sendto(fd, buffer_, header->nlmsg_len, 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel) < 0)
      throw ErrnoError(env, errno, "sendto", "netlink");
    alignas(nlmsghdr) char answer[1024];
    // rtnetlink handles a request within the sender's sendto, so the acknowledgement is already queued: this does not
    // wait. Older answers (of a request that failed half-way) are skipped by their number.
    for (int attempt = 0; attempt < 16; attempt++) {
      const ssize_t bytes = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
      if (bytes < 0 && errno == EINTR) continue;
      if (bytes < 0) throw ErrnoError(env, errno, "recv", "netlink");
      const auto* reply = reinterpret_cast<const nlmsghdr*>(answer);
      if (!NLMSG_OK(reply, static_cast<size_t>(bytes)) || reply->nlmsg_seq != header->nlmsg_seq) continue;
      if (reply->nlmsg_type != NLMSG_ERROR) continue;
      return -static_cast<const nlmsgerr*>(NLMSG_DATA(reply))->error;
    }
    throw MakeError(env, "EPROTO", "recv", "netlink: no acknowledgement");
  }

 private:
  nlmsghdr* Header() { return reinterpret_cast<nlmsghdr*>(buffer_); }
  alignas(nlmsghdr) char buffer_[256] = {};
};

void SendOrThrow(Napi::Env env, NetlinkRequest* request, const char* what, const std::string& subject) {
  const int number = request->Send(env);
  if (number != 0) throw ErrnoError(env, number, what, subject);
}

void DeleteLink(Napi::Env env, const std::string& name) {
  ifinfomsg link{};
  link.ifi_family = AF_UNSPEC;
  link.ifi_index = IndexOf(env, name);
  NetlinkRequest request(RTM_DELLINK, 0, &link, sizeof link);
  SendOrThrow(env, &request, "RTM_DELLINK", name);
}

enum class Kind { kBridge, kTap };

// Deleting is final and the names come from configuration and leftover sweeps: never delete what is not of the kind.
void RequireKind(Napi::Env env, const std::string& name, Kind kind) {
  ethtool_drvinfo driver{};
  driver.cmd = ETHTOOL_GDRVINFO;
  ifreq request = RequestFor(name);
  request.ifr_data = reinterpret_cast<char*>(&driver);
  // A driver that does not answer (EOPNOTSUPP) is neither of the two; its name stays empty.
  if (ioctl(ControlSocket(env), SIOCETHTOOL, &request) != 0 && errno != EOPNOTSUPP)
    throw ErrnoError(env, errno, "ETHTOOL_GDRVINFO", name);
  const std::string found(driver.driver, strnlen(driver.driver, sizeof driver.driver));
  const std::string bus(driver.bus_info, strnlen(driver.bus_info, sizeof driver.bus_info));
  // The tun driver serves layer-3 tunnels too (of VPNs); its bus field tells them apart.
  const bool matches = kind == Kind::kBridge ? found == "bridge" : found == "tun" && bus == "tap";
  if (!matches)
    throw MakeError(env, "ENOTSUP", "ETHTOOL_GDRVINFO",
                    name + " is not a " + (kind == Kind::kBridge ? "bridge" : "tap") + " (driver '" + found + "')");
}

// ---- The functions. ----

// createBridge(name): void. STP is off in a new bridge; the other settings are files, which src/network/ writes.
Napi::Value CreateBridge(const Napi::CallbackInfo& info) {
  const std::string name = NameArgument(info, 0, "createBridge(name)");
  ifreq request = RequestFor(name);
  Control(info.Env(), SIOCBRADDBR, request.ifr_name, "SIOCBRADDBR", name);
  return info.Env().Undefined();
}

// deleteBridge(name): void. Ports that are left are released, not deleted.
Napi::Value DeleteBridge(const Napi::CallbackInfo& info) {
  const std::string name = NameArgument(info, 0, "deleteBridge(name)");
  RequireKind(info.Env(), name, Kind::kBridge);
  DeleteLink(info.Env(), name);
  return info.Env().Undefined();
}

// setAddress(ifname, ipv4, prefixLength): void. By netlink and not SIOCSIFADDR: that one first installs the address with
// its class's mask (10.0.0.0/8), which on a running interface takes the whole class's traffic for a moment.
Napi::Value SetAddress(const Napi::CallbackInfo& info) {
  const char* usage = "setAddress(ifname, ipv4, prefixLength)";
  const std::string name = NameArgument(info, 0, usage);
  const in_addr address = AddressArgument(info, 1, usage);
  const uint32_t prefixLength = NumberArgument(info, 2, usage, 1, 32);
  ifaddrmsg message{};
  message.ifa_family = AF_INET;
  message.ifa_prefixlen = static_cast<uint8_t>(prefixLength);
  message.ifa_scope = RT_SCOPE_UNIVERSE;
  message.ifa_index = static_cast<uint32_t>(IndexOf(info.Env(), name));
  NetlinkRequest request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message, sizeof message);
  request.Attribute(IFA_LOCAL, &address, sizeof address);
  request.Attribute(IFA_ADDRESS, &address, sizeof address);
  if (prefixLength < 31) {
    const in_addr broadcast{address.s_addr | htonl(0xffffffffu >> prefixLength)};
    request.Attribute(IFA_BROADCAST, &broadcast, sizeof broadcast);
  }
  SendOrThrow(info.Env(), &request, "RTM_NEWADDR", name);
  return info.Env().Undefined();
}

// setUp(ifname, up): void. After bringing it up the link state is brought up to date at once: a tap whose QEMU attached
// a moment ago has its carrier change queued for the kernel's link watch, which may run up to a second later, and until
// then the bridge keeps the port disabled. ETHTOOL_GLINK does that work now (ethtool_op_get_link).
Napi::Value SetUp(const Napi::CallbackInfo& info) {
  const char* usage = "setUp(ifname, up)";
  const std::string name = NameArgument(info, 0, usage);
  const bool up = BooleanArgument(info, 1, usage);
  Napi::Env env = info.Env();
  ifreq request = RequestFor(name);
  Control(env, SIOCGIFFLAGS, &request, "SIOCGIFFLAGS", name);
  const short flags = static_cast<short>(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
  if (flags != request.ifr_flags) {
    request.ifr_flags = flags;
    Control(env, SIOCSIFFLAGS, &request, "SIOCSIFFLAGS", name);
  }
  if (up) {
    ethtool_value link{};
    link.cmd = ETHTOOL_GLINK;
    ifreq query = RequestFor(name);
    query.ifr_data = reinterpret_cast<char*>(&link);
    // A driver without the query has no queued carrier changes either; nothing is lost.
    (void)ioctl(ControlSocket(env), SIOCETHTOOL, &query);
  }
  return env.Undefined();
}

// setMac(ifname, mac): void.
Napi::Value SetMac(const Napi::CallbackInfo& info) {
  const char* usage = "setMac(ifname, mac)";
  const std::string name = NameArgument(info, 0, usage);
  const Mac mac = MacArgument(info, 1, usage);
  ifreq request = RequestFor(name);
  request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  memcpy(request.ifr_hwaddr.sa_data, mac.bytes, kMacBytes);
  Control(info.Env(), SIOCSIFHWADDR, &request, "SIOCSIFHWADDR", name);
  return info.Env().Undefined();
}

// createTap(ifname, ownerUid): void. Persistent, so that it outlives this call and the manager; owned by ownerUid, so
// that an unprivileged QEMU may attach to it by name. @throws EEXIST when an interface of the name exists
Napi::Value CreateTap(const Napi::CallbackInfo& info) {
  const char* usage = "createTap(ifname, ownerUid)";
  const std::string name = NameArgument(info, 0, usage);
  // -1 (0xffffffff) means "no owner" to the kernel: anybody with CAP_NET_ADMIN only. Not offered.
  const uint32_t ownerUid = NumberArgument(info, 1, usage, 0, 4294967294.0);
  Napi::Env env = info.Env();
  const int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  if (fd < 0) throw ErrnoError(env, errno, "open", "/dev/net/tun");
  ifreq request = RequestFor(name);
  // IFF_TUN_EXCL: without it, an existing tap of this name, somebody else's perhaps, would silently be taken over.
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL);
  const char* step = "TUNSETIFF";
  int number = ioctl(fd, TUNSETIFF, &request) == 0 ? 0 : errno;
  if (number == EBUSY) number = EEXIST;
  if (number == 0) {
    step = "TUNSETOWNER";
    number = ioctl(fd, TUNSETOWNER, static_cast<unsigned long>(ownerUid)) == 0 ? 0 : errno;
  }
  if (number == 0) {
    step = "TUNSETPERSIST";
    number = ioctl(fd, TUNSETPERSIST, 1UL) == 0 ? 0 : errno;
  }
  // Not persistent until the last step: closing after a failure takes the interface away again.
  close(fd);
  if (number != 0) throw ErrnoError(env, number, step, name);
  return env.Undefined();
}

// deleteTap(ifname): void. Through netlink and not TUNSETPERSIST: it works while a QEMU is attached, which then reads EOF.
Napi::Value DeleteTap(const Napi::CallbackInfo& info) {
  const std::string name = NameArgument(info, 0, "deleteTap(ifname)");
  RequireKind(info.Env(), name, Kind::kTap);
  DeleteLink(info.Env(), name);
  return info.Env().Undefined();
}

void ChangeMembership(Napi::Env env, unsigned long command, const char* what, const std::string& bridge,
                      const std::string& port) {
  ifreq request = RequestFor(bridge);
  request.ifr_ifindex = IndexOf(env, port);
  Control(env, command, &request, what, port + " of " + bridge);
}

// addToBridge(bridge, ifname): void.
Napi::Value AddToBridge(const Napi::CallbackInfo& info) {
  const char* usage = "addToBridge(bridge, ifname)";
  const std::string bridge = NameArgument(info, 0, usage);
  ChangeMembership(info.Env(), SIOCBRADDIF, "SIOCBRADDIF", bridge, NameArgument(info, 1, usage));
  return info.Env().Undefined();
}

// removeFromBridge(bridge, ifname): void. Waits for an RCU grace period.
Napi::Value RemoveFromBridge(const Napi::CallbackInfo& info) {
  const char* usage = "removeFromBridge(bridge, ifname)";
  const std::string bridge = NameArgument(info, 0, usage);
  ChangeMembership(info.Env(), SIOCBRDELIF, "SIOCBRDELIF", bridge, NameArgument(info, 1, usage));
  return info.Env().Undefined();
}

// setPortForwarding(ifname, forwarding): boolean. Opens or closes a port of a bridge by its state alone. Unlike going down
// and leaving the bridge it waits for no RCU grace period, so it takes microseconds even where all CPUs are busy; the
// kernel opens the port again, though, at the next change of the interface's carrier.
// false: the interface is no port, is down, or (when opening) nobody is attached to it.
Napi::Value SetPortForwarding(const Napi::CallbackInfo& info) {
  const char* usage = "setPortForwarding(ifname, forwarding)";
  const std::string name = NameArgument(info, 0, usage);
  const bool forwarding = BooleanArgument(info, 1, usage);
  Napi::Env env = info.Env();
  ifinfomsg link{};
  link.ifi_family = AF_BRIDGE;
  link.ifi_index = IndexOf(env, name);
  // BR_STATE_DISABLED and BR_STATE_FORWARDING of linux/if_bridge.h.
  struct {
    rtattr header;
    uint8_t state;
    uint8_t padding[3];
  } nested{{RTA_LENGTH(1), IFLA_BRPORT_STATE}, static_cast<uint8_t>(forwarding ? 3 : 0), {}};
  NetlinkRequest request(RTM_SETLINK, 0, &link, sizeof link);
  request.Attribute(IFLA_PROTINFO | NLA_F_NESTED, &nested, sizeof nested);
  const int number = request.Send(env);
  if (number == ENETDOWN || number == EINVAL || number == EOPNOTSUPP) return Napi::Boolean::New(env, false);
  if (number != 0) throw ErrnoError(env, number, "RTM_SETLINK", name);
  return Napi::Boolean::New(env, true);
}

// interfaceExists(ifname): boolean.
Napi::Value InterfaceExists(const Napi::CallbackInfo& info) {
  const std::string name = NameArgument(info, 0, "interfaceExists(ifname)");
  Napi::Env env = info.Env();
  ifreq request = RequestFor(name);
  const bool exists = ioctl(ControlSocket(env), SIOCGIFINDEX, &request) == 0;
  if (!exists && errno != ENODEV) throw ErrnoError(env, errno, "SIOCGIFINDEX", name);
  return Napi::Boolean::New(env, exists);
}

// listInterfaces(prefix): string[], sorted.
Napi::Value ListInterfaces(const Napi::CallbackInfo& info) {
  const std::string prefix = TextArgument(info, 0, "listInterfaces(prefix)");
  Napi::Env env = info.Env();
  struct if_nameindex* all = if_nameindex();
  if (all == nullptr) throw ErrnoError(env, errno, "if_nameindex", prefix);
  std::vector<std::string> names;
  for (struct if_nameindex* one = all; one->if_index != 0 && one->if_name != nullptr; one++)
    if (strncmp(one->if_name, prefix.c_str(), prefix.size()) == 0) names.emplace_back(one->if_name);
  if_freenameindex(all);
  std::sort(names.begin(), names.end());
  Napi::Array result = Napi::Array::New(env, names.size());
  for (size_t i = 0; i < names.size(); i++) result.Set(static_cast<uint32_t>(i), names[i]);
  return result;
}

struct InterfaceCounters {
  std::string name;
  double rxBytes, txBytes, rxPackets, txPackets;
};

// All interfaces' counters out of one file that stays open: a single read of some microseconds, where the four files per
// interface under /sys cost twelve system calls. Unlike a netlink query it takes no RTNL lock, so a sampler never waits
// behind somebody's interface being deleted.
std::vector<InterfaceCounters> ReadCounters(Napi::Env env) {
  static thread_local int fd = -1;
  if (fd < 0) fd = open("/proc/self/net/dev", O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw ErrnoError(env, errno, "open", "/proc/self/net/dev");
  std::string text;
  char chunk[16384];
  ssize_t bytes;
  while ((bytes = pread(fd, chunk, sizeof chunk, static_cast<off_t>(text.size()))) > 0)
    text.append(chunk, static_cast<size_t>(bytes));
  if (bytes < 0) throw ErrnoError(env, errno, "read", "/proc/self/net/dev");
  std::vector<InterfaceCounters> all;
  // "  name: rx_bytes rx_packets 6 more tx_bytes tx_packets ..."; the two heading lines have no colon.
  for (size_t start = 0, end; start < text.size(); start = end + 1) {
    end = std::min(text.find('\n', start), text.size());
    const size_t colon = text.find(':', start);
    if (colon == std::string::npos || colon >= end) continue;
    const size_t nameStart = text.find_first_not_of(' ', start);
    InterfaceCounters one{text.substr(nameStart, colon - nameStart), 0, 0, 0, 0};
    // A double holds whole numbers up to 9 PB exactly.
    if (sscanf(text.c_str() + colon + 1, "%lf %lf %*u %*u %*u %*u %*u %*u %lf %lf", &one.rxBytes, &one.rxPackets,
               &one.txBytes, &one.txPackets) == 4)
      all.push_back(one);
  }
  return all;
}

Napi::Object CountersObject(Napi::Env env, const InterfaceCounters& one) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("rxBytes", Napi::Number::New(env, one.rxBytes));
  result.Set("txBytes", Napi::Number::New(env, one.txBytes));
  result.Set("rxPackets", Napi::Number::New(env, one.rxPackets));
  result.Set("txPackets", Napi::Number::New(env, one.txPackets));
  return result;
}

// counters(ifname): {rxBytes, txBytes, rxPackets, txPackets} as the host sees them: on a tap, rx is what the guest sent.
Napi::Value Counters(const Napi::CallbackInfo& info) {
  const std::string name = NameArgument(info, 0, "counters(ifname)");
  Napi::Env env = info.Env();
  for (const InterfaceCounters& one : ReadCounters(env))
    if (one.name == name) return CountersObject(env, one);
  throw ErrnoError(env, ENODEV, "counters", name);
}

// countersByName(prefix): {[ifname]: counters} of all interfaces whose name begins with prefix, at the cost of one.
Napi::Value CountersByName(const Napi::CallbackInfo& info) {
  const std::string prefix = TextArgument(info, 0, "countersByName(prefix)");
  Napi::Env env = info.Env();
  Napi::Object result = Napi::Object::New(env);
  for (const InterfaceCounters& one : ReadCounters(env))
    if (one.name.compare(0, prefix.size(), prefix) == 0) result.Set(one.name, CountersObject(env, one));
  return result;
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

// announce(ifname, mac, ipv4): void. Gratuitous ARP in both forms, since some stacks take only one of them: as a request
// (RFC 5227 announcement) and as a reply. The frame carries the guest's MAC as its source, so every switch that it
// passes learns the way; on a bridge it goes to all ports.
Napi::Value Announce(const Napi::CallbackInfo& info) {
  const char* usage = "announce(ifname, mac, ipv4)";
  const std::string name = NameArgument(info, 0, usage);
  const Mac mac = MacArgument(info, 1, usage);
  const in_addr address = AddressArgument(info, 2, usage);
  Napi::Env env = info.Env();
  // Protocol 0: the socket only sends; nothing is ever queued on it.
  const int fd = KeptSocket(env, &packetSocket, AF_PACKET, SOCK_RAW, 0);
  sockaddr_ll target{};
  target.sll_family = AF_PACKET;
  target.sll_protocol = htons(ETH_P_ARP);
  target.sll_ifindex = IndexOf(env, name);
  target.sll_halen = kMacBytes;
  memset(target.sll_addr, 0xff, kMacBytes);

  ArpFrame frame{};
  memset(frame.ethernet.h_dest, 0xff, kMacBytes);
  memcpy(frame.ethernet.h_source, mac.bytes, kMacBytes);
  frame.ethernet.h_proto = htons(ETH_P_ARP);
  frame.arp.ar_hrd = htons(ARPHRD_ETHER);
  frame.arp.ar_pro = htons(ETH_P_IP);
  frame.arp.ar_hln = kMacBytes;
  frame.arp.ar_pln = 4;
  memcpy(frame.senderMac, mac.bytes, kMacBytes);
  memcpy(frame.senderAddress, &address, 4);
  memcpy(frame.targetAddress, &address, 4);
  for (const uint16_t operation : {uint16_t{ARPOP_REQUEST}, uint16_t{ARPOP_REPLY}}) {
    frame.arp.ar_op = htons(operation);
    if (operation == ARPOP_REPLY) memcpy(frame.targetMac, mac.bytes, kMacBytes);
    const ssize_t sent =
        sendto(fd, &frame, sizeof frame, 0, reinterpret_cast<const sockaddr*>(&target), sizeof target);
    if (sent != sizeof frame) throw ErrnoError(env, sent < 0 ? errno : EIO, "sendto", name);
  }
  return env.Undefined();
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

// setNeighbour(ifname, ipv4, mac): void. Tells this host's own stack, which does not hear what it announces. An entry that
// it is still asking for (after the bridge was without a running port) is resolved and its waiting packets leave; by
// itself the kernel would ask again at its next turn, up to a second later. The entry ages as any other.
Napi::Value SetNeighbour(const Napi::CallbackInfo& info) {
  const char* usage = "setNeighbour(ifname, ipv4, mac)";
  const std::string name = NameArgument(info, 0, usage);
  const in_addr address = AddressArgument(info, 1, usage);
  const Mac mac = MacArgument(info, 2, usage);
  ndmsg message{};
  message.ndm_family = AF_INET;
  message.ndm_ifindex = IndexOf(info.Env(), name);
  message.ndm_state = NUD_REACHABLE;
  NetlinkRequest request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &message, sizeof message);
  request.Attribute(NDA_DST, &address, sizeof address);
  request.Attribute(NDA_LLADDR, mac.bytes, kMacBytes);
  SendOrThrow(info.Env(), &request, "RTM_NEWNEIGH", name);
  return info.Env().Undefined();
}

}  // namespace

void RegisterNetwork(Napi::Env env, Napi::Object exports) {
  exports.Set("createBridge", Napi::Function::New(env, CreateBridge));
  exports.Set("deleteBridge", Napi::Function::New(env, DeleteBridge));
  exports.Set("setAddress", Napi::Function::New(env, SetAddress));
  exports.Set("setUp", Napi::Function::New(env, SetUp));
  exports.Set("setMac", Napi::Function::New(env, SetMac));
  exports.Set("createTap", Napi::Function::New(env, CreateTap));
  exports.Set("deleteTap", Napi::Function::New(env, DeleteTap));
  exports.Set("addToBridge", Napi::Function::New(env, AddToBridge));
  exports.Set("removeFromBridge", Napi::Function::New(env, RemoveFromBridge));
  exports.Set("setPortForwarding", Napi::Function::New(env, SetPortForwarding));
  exports.Set("interfaceExists", Napi::Function::New(env, InterfaceExists));
  exports.Set("listInterfaces", Napi::Function::New(env, ListInterfaces));
  exports.Set("counters", Napi::Function::New(env, Counters));
  exports.Set("countersByName", Napi::Function::New(env, CountersByName));
  exports.Set("announce", Napi::Function::New(env, Announce));
  exports.Set("learnAddress", Napi::Function::New(env, LearnAddress));
  exports.Set("setNeighbour", Napi::Function::New(env, SetNeighbour));
}
