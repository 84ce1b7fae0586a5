/** Looks for failures of a VM's primary, tells of them, and has its shadow take over. */
import type { QemuProcess } from '../qemu/process.js';
import { ProbeCaller } from '../switchover/probe-call.js';
import { probeTarget } from '../switchover/probe-target.js';
import { type Death, FailureWatch, type FailureWatchOptions } from '../switchover/watch.js';
import type { ShadowKeeper } from './shadow-keeper.js';
import type { Takeover } from './takeover.js';
import type { VmCore } from './vm-core.js';
import { PROBE_WORDS } from './vm-words.js';

export interface PrimaryWatchOptions {
  core: VmCore;
  keeper: ShadowKeeper;
  takeover: Takeover;
  /** It woke up as a shadow or from an image: the guest has run before. */
  promoted: boolean;
  onShutdown: (how: 'poweroff' | 'reboot') => void;
}

/** Closed with the primary, or when its end is wanted. */
export function watchPrimary({ core, keeper, takeover, promoted, onShutdown }: PrimaryWatchOptions): FailureWatch {
  const primary = core.primary as QemuProcess;
  core.watchDisks();
  return new FailureWatch({
    primary,
    promoted,
    // Epochs of a guest that hangs show it hanging: one from before is needed. QEMU's own hang is in no epoch.
    canTakeOver: (cause) =>
      takeover.switchover.canTakeOver &&
      (!['guest-hung', 'probe-failed'].includes(cause) || keeper.shadow?.newestConfirmed() !== null),
    onHang: (evidence) =>
      core.event('error', 'failure.no-shadow', `it hangs, and no shadow could take over: ${evidence}`, {}),
    pausedTotalMs: () => (keeper.shadow?.pausedTotalMs() ?? 0) + core.stalledMs(),
    onDeath: (death) => primaryDied(core, takeover, death),
    onShutdown,
    onSuspicion: (silentMs) =>
      silentMs > 0
        ? core.event('warn', 'failure.suspected', `no heartbeat for ${Math.round(silentMs)} ms, looking closer`, {
            silentMs,
          })
        : core.event('info', 'failure.cleared', 'heartbeats are back, it was no failure', {}),
    probes: probesOf(core, primary),
  });
}

function primaryDied(core: VmCore, takeover: Takeover, death: Death): void {
  const { primary, endedForItsImage } = core;
  const outside = primary !== endedForItsImage && primary?.killedFromOutside === true;
  takeover.primaryDied(death, outside);
}

function probesOf(core: VmCore, primary: QemuProcess): FailureWatchOptions['probes'] {
  const caller = new ProbeCaller(probeTarget(core.spec, core.address), primary.agent);
  return {
    declared: core.spec.probes,
    call: (check, signal) => caller.call(check, signal),
    onHealth: (probe, health, reason) =>
      core.event(
        health === 'well' ? 'info' : 'warn',
        `probe.${health}`,
        `the probe ${probe} ${PROBE_WORDS[health]}${reason === null ? '' : `: ${reason}`}`,
        { probe, reason },
      ),
  };
}
