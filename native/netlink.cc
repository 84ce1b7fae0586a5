// See netlink.h.
#include "netlink.h"

#include <arpa/inet.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

// ---- Arguments ----

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

IpAddress AddressArgument(const Napi::CallbackInfo& info, size_t index, const char* usage) {
  const std::string text = TextArgument(info, index, usage);
  IpAddress address{};
  address.family = text.find(':') == std::string::npos ? AF_INET : AF_INET6;
  // size() against strlen(): inet_pton stops at a NUL inside the string.
  if (text.size() != strlen(text.c_str()) || inet_pton(address.family, text.c_str(), address.bytes) != 1)
    throw MakeError(info.Env(), "EINVAL", "inet_pton", std::string(usage) + ": not an IP address: '" + text + "'");
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

// ---- Sockets ----

// A process has one network namespace for its life (Node never calls setns), so a kept socket stays the right one.
int KeptSocket(Napi::Env env, int* kept, int domain, int type, int protocol) {
  if (*kept < 0) {
    const int fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    if (fd < 0) throw ErrnoError(env, errno, "socket", "for network control");
    *kept = fd;
  }
  return *kept;
}

int ControlSocket(Napi::Env env) {
  static thread_local int kept = -1;
  return KeptSocket(env, &kept, AF_INET, SOCK_DGRAM, 0);
}

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

NetlinkRequest::NetlinkRequest(uint16_t type, uint16_t flags, const void* family, size_t familyBytes) {
  nlmsghdr* header = Header();
  header->nlmsg_type = type;
  header->nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  header->nlmsg_len = NLMSG_LENGTH(familyBytes);
  memcpy(NLMSG_DATA(header), family, familyBytes);
}

void NetlinkRequest::Attribute(uint16_t type, const void* data, size_t bytes) {
  nlmsghdr* header = Header();
  const size_t offset = NLMSG_ALIGN(header->nlmsg_len);
  // No caller comes near: addresses, and the few parameters of a queue. Asserted because the buffer is fixed.
  if (offset + RTA_SPACE(bytes) > sizeof buffer_) abort();
  auto* attribute = reinterpret_cast<rtattr*>(buffer_ + offset);
  attribute->rta_type = type;
  attribute->rta_len = static_cast<uint16_t>(RTA_LENGTH(bytes));
  if (bytes > 0) memcpy(RTA_DATA(attribute), data, bytes);
  header->nlmsg_len = static_cast<uint32_t>(offset + RTA_SPACE(bytes));
}

size_t NetlinkRequest::BeginNested(uint16_t type) {
  const size_t begin = NLMSG_ALIGN(Header()->nlmsg_len);
  Attribute(type, nullptr, 0);
  return begin;
}

void NetlinkRequest::EndNested(size_t begin) {
  reinterpret_cast<rtattr*>(buffer_ + begin)->rta_len = static_cast<uint16_t>(Header()->nlmsg_len - begin);
}

int NetlinkRequest::Send(Napi::Env env) {
  // Thread-local: a worker thread that loads the addon too must not read the answers to this thread's requests.
  static thread_local int kept = -1;
  static thread_local uint32_t lastSequence = 0;
  const int fd = KeptSocket(env, &kept, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
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

void NetlinkRequest::SendOrThrow(Napi::Env env, const char* what, const std::string& subject) {
  const int number = Send(env);
  if (number != 0) throw ErrnoError(env, number, what, subject);
}
