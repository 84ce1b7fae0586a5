#include "fault_point.h"

#include <signal.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
struct Fault {
  char operation[16] = {};
  int step = 0;
  int passage = 1;
  char end[8] = {};
};

Fault ReadFault() {
  Fault fault;
  const char* text = getenv("SHADOWVM_FAULT");
  if (text == nullptr || sscanf(text, "%15[^:]:%d:%d:%7s", fault.operation, &fault.step, &fault.passage, fault.end) < 2)
    fault.step = 0;
  return fault;
}
}  // namespace

void FaultPoint(const char* operation, int step) {
  static const Fault fault = ReadFault();
  if (fault.step != step || strcmp(fault.operation, operation) != 0) return;
  static std::atomic<int> passages{0};
  if (++passages != fault.passage) return;
  raise(strcmp(fault.end, "stop") == 0 ? SIGSTOP : SIGKILL);  // as abruptly as a power loss that spares the page cache
}
