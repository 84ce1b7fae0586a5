#include "page_states.h"

#include <time.h>
#include <unistd.h>

#include "worker.h"

// An installation is one system call; what can stand in its way is a thread that is not scheduled.
constexpr int kStuckMs = 5000;
constexpr int kSpins = 1000;

PageStates::PageStates(std::shared_ptr<ControlPage> control)
    : control_(std::move(control)), lazy_(control_->page()->lazy != 0) {}

shadowvm_page PageStates::Get(size_t page) const {
  if (!lazy_) return SHADOWVM_PAGE_PRESENT;
  const uint8_t state = __atomic_load_n(control_->states() + page, __ATOMIC_ACQUIRE);
  return state <= SHADOWVM_PAGE_PRESENT ? static_cast<shadowvm_page>(state) : SHADOWVM_PAGE_PRESENT;
}

bool PageStates::Claim(size_t page) {
  uint8_t absent = SHADOWVM_PAGE_ABSENT;
  return __atomic_compare_exchange_n(control_->states() + page, &absent, SHADOWVM_PAGE_INSTALLING, false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

void PageStates::Settle(size_t page, shadowvm_page state) {
  __atomic_store_n(control_->states() + page, static_cast<uint8_t>(state), __ATOMIC_RELEASE);
}

bool PageStates::MayRead(size_t page) const {
  shadowvm_page state = Get(page);
  for (int turn = 0; state == SHADOWVM_PAGE_INSTALLING; state = Get(page), turn++) {
    if (turn < kSpins) continue;
    if (control_->dead()) throw Failure{"ERR_VM_DEAD", "mayRead", "the VM's process died"};
    if (turn > kSpins + kStuckMs) throw Failure{"ERR_PAGE_STUCK", "mayRead", "a page is being installed for seconds"};
    usleep(1000);
  }
  return state == SHADOWVM_PAGE_PRESENT;
}
