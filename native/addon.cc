// The addon's table of contents: each source file registers its own functions.
#include "addon.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  RegisterClock(env, exports);
  RegisterDisk(env, exports);
  RegisterEpoch(env, exports);
  RegisterFile(env, exports);
  RegisterImage(env, exports);
  RegisterMemory(env, exports);
  RegisterProbe(env, exports);
  RegisterProcess(env, exports);
  RegisterNetwork(env, exports);
  RegisterAnnounce(env, exports);
  RegisterShaper(env, exports);
  RegisterThreadWatch(env, exports);
  RegisterPacketTrail(env, exports);
  RegisterPager(env, exports);
  return exports;
}

NODE_API_MODULE(shadowvm, Init)
