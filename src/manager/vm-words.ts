/** How a VM's events are told to people. */
import type { ProbeHealth } from '../switchover/probe.js';
import type { Death } from '../switchover/watch.js';
import type { PromotionView, ShadowState } from '../vm/view.js';

export const DEATH_WORDS: Record<Death['cause'], string> = {
  'process-died': 'QEMU died',
  'monitor-ended': 'QEMU died',
  'process-stopped': 'QEMU hangs',
  'qemu-hung': 'QEMU hangs',
  'guest-reset': 'the guest crashed',
  'guest-hung': 'the guest hangs',
  'probe-failed': 'the guest is not well',
};

export const FAULT_WORDS = {
  kill: 'QEMU is killed',
  hang: 'QEMU is stopped in the middle of what it does',
  panic: "the guest's kernel is told to panic",
};

export const SHADOW_WORDS: Record<ShadowState, string> = {
  starting: 'the shadow starts',
  syncing: 'the shadow can not take over yet',
  ready: 'the shadow can take over',
  behind: 'the shadow can take over but is behind',
  promoting: 'the shadow takes over',
  failed: 'the shadow failed, nothing protects the VM now',
};

export const PROBE_WORDS: Record<ProbeHealth, string> = {
  unproven: 'has not been answered yet',
  well: 'is answered',
  failing: 'is not answered',
  failed: 'is not answered, and the guest counts as failed',
};

export function promotionWords({ planned, resumeMs, lagMs, epoch, generation }: PromotionView): string {
  const rolledBack = planned ? 'by hand, nothing is rolled back' : `the last ${Math.round(lagMs)} ms are rolled back`;
  return `the shadow took over in ${resumeMs.toFixed(1)} ms from epoch ${epoch}, ${rolledBack}; generation ${generation}`;
}
