// What the parts of the addon that command the kernel's network share: their arguments, checked, and the conversation with
// the kernel, by ioctl and rtnetlink.
#pragma once
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "addon.h"

constexpr size_t kMacBytes = 6;

struct Mac {
  uint8_t bytes[kMacBytes];
};

// An IPv4 or IPv6 address in network order.
struct IpAddress {
  uint8_t family;  // AF_INET, AF_INET6
  uint8_t bytes[sizeof(in6_addr)];
  size_t Bytes() const { return family == AF_INET ? sizeof(in_addr) : sizeof(in6_addr); }
};

// ---- Arguments: everything is checked here, so that nothing else sees a name that is too long or not a name. ----

std::string TextArgument(const Napi::CallbackInfo& info, size_t index, const char* usage);
std::string NameArgument(const Napi::CallbackInfo& info, size_t index, const char* usage);
uint32_t NumberArgument(const Napi::CallbackInfo& info, size_t index, const char* usage, double min, double max);
bool BooleanArgument(const Napi::CallbackInfo& info, size_t index, const char* usage);
IpAddress AddressArgument(const Napi::CallbackInfo& info, size_t index, const char* usage);
Mac MacArgument(const Napi::CallbackInfo& info, size_t index, const char* usage);

// ---- Sockets. Opened once and kept: closing a packet socket waits for an RCU grace period (tens of ms). ----

int KeptSocket(Napi::Env env, int* kept, int domain, int type, int protocol);
int ControlSocket(Napi::Env env);
ifreq RequestFor(const std::string& name);
void Control(Napi::Env env, unsigned long command, void* argument, const char* what, const std::string& subject);
int IndexOf(Napi::Env env, const std::string& name);

// One rtnetlink request and its acknowledgement. The buffer holds header, family header and attributes in order.
class NetlinkRequest {
 public:
  NetlinkRequest(uint16_t type, uint16_t flags, const void* family, size_t familyBytes);
  void Attribute(uint16_t type, const void* data, size_t bytes);
  // What is added between the two is nested in an attribute of the type. @returns what EndNested wants
  size_t BeginNested(uint16_t type);
  void EndNested(size_t begin);
  // Returns 0 or the errno that the kernel answered. @throws where the conversation itself fails
  int Send(Napi::Env env);
  void SendOrThrow(Napi::Env env, const char* what, const std::string& subject);

 private:
  nlmsghdr* Header() { return reinterpret_cast<nlmsghdr*>(buffer_); }
  alignas(nlmsghdr) char buffer_[512] = {};
};
