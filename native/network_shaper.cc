// Bandwidth towards a guest: a token bucket (tc-tbf) as the queue of its tap, set by rtnetlink and not by a spawned `tc`.
#include "netlink.h"

#include <linux/pkt_sched.h>

#include <algorithm>

namespace {

// The kernel counts a bucket's depth in ticks of 64 ns, as user space has since the psched clock of old.
constexpr double kTickNs = 64;

uint32_t TicksOf(double bytes, double bytesPerSecond) {
  return static_cast<uint32_t>(std::min(bytes / bytesPerSecond * 1e9 / kTickNs, 4294967295.0));
}

// shapeEgress(ifname, bytesPerSecond, burstBytes, queueBytes): void. Replaces the queue of the interface. What is sent to
// the guest leaves at the rate, after a burst; what waits beyond queueBytes is dropped.
Napi::Value ShapeEgress(const Napi::CallbackInfo& info) {
  const char* usage = "shapeEgress(ifname, bytesPerSecond, burstBytes, queueBytes)";
  const std::string name = NameArgument(info, 0, usage);
  // Above 4 GB/s the rate has another attribute; nobody needs it, and the two would have to be kept in step.
  const uint32_t bytesPerSecond = NumberArgument(info, 1, usage, 1, 4294967295.0);
  const uint32_t burstBytes = NumberArgument(info, 2, usage, 1, 4294967295.0);
  const uint32_t queueBytes = NumberArgument(info, 3, usage, 1, 4294967295.0);
  Napi::Env env = info.Env();

  tcmsg message{};
  message.tcm_family = AF_UNSPEC;
  message.tcm_ifindex = IndexOf(env, name);
  message.tcm_parent = TC_H_ROOT;
  NetlinkRequest request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &message, sizeof message);
  request.Attribute(TCA_KIND, "tbf", sizeof "tbf");

  tc_tbf_qopt parameters{};
  parameters.rate.rate = bytesPerSecond;
  // With it the kernel asks for no table of transmission times, which older ones were given.
  parameters.rate.linklayer = TC_LINKLAYER_ETHERNET;
  parameters.limit = queueBytes;
  parameters.buffer = TicksOf(burstBytes, bytesPerSecond);
  const size_t options = request.BeginNested(TCA_OPTIONS);
  request.Attribute(TCA_TBF_PARMS, &parameters, sizeof parameters);
  request.Attribute(TCA_TBF_BURST, &burstBytes, sizeof burstBytes);
  request.EndNested(options);
  request.SendOrThrow(env, "RTM_NEWQDISC", name);
  return env.Undefined();
}

}  // namespace

void RegisterShaper(Napi::Env env, Napi::Object exports) {
  exports.Set("shapeEgress", Napi::Function::New(env, ShapeEgress));
}
