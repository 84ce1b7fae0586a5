// Bridges, taps and announcements, by ioctl and netlink instead of a spawned `ip`: severing a dead VM and connecting its
// shadow happens inside a failover, where a fork and exec of a helper would cost more than everything else together.
//
// All functions are synchronous: each is a few system calls. Those that take an interface out of a bridge, or delete
// one, wait for the kernel's RCU grace periods and so take up to some milliseconds; src/network/ keeps them off the
// failover's path.
#include <arpa/inet.h>
#include <fcntl.h>
#include "netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

// linux/if_bridge.h pulls in linux/in6.h, which clashes with netinet/in.h of the C library, so nothing of it is used.

namespace {

void DeleteLink(Napi::Env env, const std::string& name) {
  ifinfomsg link{};
  link.ifi_family = AF_UNSPEC;
  link.ifi_index = IndexOf(env, name);
  NetlinkRequest request(RTM_DELLINK, 0, &link, sizeof link);
  request.SendOrThrow(env, "RTM_DELLINK", name);
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

// setAddress(ifname, address, prefixLength): void. By netlink and not SIOCSIFADDR: that one first installs the address with
// its class's mask (10.0.0.0/8), which on a running interface takes the whole class's traffic for a moment. An IPv6
// address is there at once, without asking whether another host has it: the interface is ours, and its addresses too.
Napi::Value SetAddress(const Napi::CallbackInfo& info) {
  const char* usage = "setAddress(ifname, address, prefixLength)";
  const std::string name = NameArgument(info, 0, usage);
  const IpAddress address = AddressArgument(info, 1, usage);
  const uint32_t prefixLength = NumberArgument(info, 2, usage, 1, static_cast<double>(8 * address.Bytes()));
  ifaddrmsg message{};
  message.ifa_family = address.family;
  message.ifa_prefixlen = static_cast<uint8_t>(prefixLength);
  message.ifa_flags = address.family == AF_INET6 ? IFA_F_NODAD : 0;
  message.ifa_scope = RT_SCOPE_UNIVERSE;
  message.ifa_index = static_cast<uint32_t>(IndexOf(info.Env(), name));
  NetlinkRequest request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message, sizeof message);
  request.Attribute(IFA_LOCAL, address.bytes, address.Bytes());
  request.Attribute(IFA_ADDRESS, address.bytes, address.Bytes());
  if (address.family == AF_INET && prefixLength < 31) {
    in_addr broadcast{};
    memcpy(&broadcast, address.bytes, sizeof broadcast);
    broadcast.s_addr |= htonl(0xffffffffu >> prefixLength);
    request.Attribute(IFA_BROADCAST, &broadcast, sizeof broadcast);
  }
  request.SendOrThrow(info.Env(), "RTM_NEWADDR", name);
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

// Returns 0 or an errno. By sysfs, which takes one write.
int WriteAlias(const std::string& name, const std::string& alias) {
  const std::string path = "/sys/class/net/" + name + "/ifalias";
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int number = write(fd, alias.data(), alias.size()) < 0 ? errno : 0;
  close(fd);
  return number;
}

// createTap(ifname, ownerUid, alias): void. Persistent, so that it outlives this call and the manager; owned by ownerUid,
// so that an unprivileged QEMU may attach to it by name. It has its alias before it is persistent: a manager that is
// killed in here leaves no tap that nobody knows. @throws EEXIST when an interface of the name exists
Napi::Value CreateTap(const Napi::CallbackInfo& info) {
  const char* usage = "createTap(ifname, ownerUid, alias)";
  const std::string name = NameArgument(info, 0, usage);
  // -1 (0xffffffff) means "no owner" to the kernel: anybody with CAP_NET_ADMIN only. Not offered.
  const uint32_t ownerUid = NumberArgument(info, 1, usage, 0, 4294967294.0);
  const std::string alias = TextArgument(info, 2, usage);
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
    step = "write the alias";
    number = WriteAlias(name, alias);
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
}
