/** Makes a VM's shadows, and tells of what becomes of them. */
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import type { ShadowImage } from '../native/image.js';
import type { QemuProcess } from '../qemu/process.js';
import { Shadow } from '../shadow/shadow.js';
import type { StandbyLevel } from '../vm/spec.js';
import { Repeated } from './repeated.js';
import { other } from './sides.js';
import type { Takeover } from './takeover.js';
import type { VmCore } from './vm-core.js';
import { SHADOW_WORDS } from './vm-words.js';

/** Aborted epochs come in rows; their number is what tells how bad it is. */
const ABORTS_TOLD_EVERY_MS = 5000;

export interface ShadowMakerOptions {
  core: VmCore;
  takeover: Takeover;
  /** What is to wait beside the image now. */
  level: () => StandbyLevel;
  /** A shadow has failed that no promotion needs. */
  onFailed: () => void;
}

export class ShadowMaker {
  private readonly aborts = new Repeated(ABORTS_TOLD_EVERY_MS);

  constructor(private readonly options: ShadowMakerOptions) {}

  /** Begins to make one, of the primary that runs. */
  make(because: string): Shadow {
    const { core, takeover, level, onFailed } = this.options;
    const { spec } = core;
    const primary = core.primary as QemuProcess;
    const { usable, reason } = primary.writeTracking;
    const from = core.wokeFrom;
    const { followed } = core;
    // Whoever makes a shadow after this one finds that this one has used the reports up.
    core.wokeFrom = null;
    core.followed = false;
    core.event('info', 'shadow.starting', `making a shadow (${because})`, { because });
    if (spec.tracking !== 'checksum' && !usable) {
      const told = `changes are found by checksums alone, pauses are longer: ${reason}`;
      core.event('warn', 'shadow.no-write-tracking', told, {});
    }
    return Shadow.create({
      spec,
      generation: takeover.switchover.generation,
      primary,
      level: level(),
      from,
      followed,
      after: core.awake,
      output: () => core.strict.hold,
      tracking: spec.tracking === 'checksum' || !usable ? 'checksum' : 'write',
      createdBecause: because,
      imageStats: () => core.shadowImage.stats,
      openImage: () => this.openImage(primary),
      disks: core.protectedDisks(),
      launch: async () => {
        await core.otherSideFree;
        return core.launch(other(core.side), true);
      },
      onWaiting: () => core.sides.limit(other(core.side), 'waiting'),
      onChange: (state, why) => {
        const severity = state === 'failed' || state === 'behind' ? 'warn' : 'info';
        core.event(severity, `shadow.${state}`, `${SHADOW_WORDS[state]}: ${why}`, {});
        if (state === 'ready') takeover.switchover.dispatch({ type: 'shadow-ready' });
      },
      onFailed: () => {
        takeover.switchover.dispatch({ type: 'shadow-lost' });
        if (!takeover.switchover.underWay) onFailed();
      },
      onEpochAborted: (why) => this.epochAborted(why),
      onRepaired: (pages) =>
        core.event('warn', 'shadow.repaired', `the scrub found ${pages} pages that differed, and repaired them`, {
          pages,
        }),
      onStandbyLost: (why, retryMs) =>
        core.event('warn', 'standby.lost', `nothing waits to take over, a promotion would take longer: ${why}`, {
          retryMs,
        }),
    });
  }

  /** @throws TRACKING_UNAVAILABLE when it was asked for and nothing else */
  private openImage(primary: QemuProcess): Promise<ShadowImage> {
    const { spec, shadowImage } = this.options.core;
    const { usable, reason } = primary.writeTracking;
    if (spec.tracking !== 'write' || usable) return shadowImage.open();
    throw new ShadowVmError('TRACKING_UNAVAILABLE', {
      attempted: 'track the writes of the VM',
      subject: spec.name,
      reason,
      remedy: 'Use --tracking auto, or a kernel of 6.7 or newer',
    });
  }

  private epochAborted(why: string): void {
    const count = this.aborts.count(monotonicMs());
    if (count === 0) return;
    const what = count === 1 ? 'an epoch was given up' : `${count} epochs were given up, the last one`;
    this.options.core.event('warn', 'epoch.aborted', `${what}: ${why}; the next one tries again`, { count });
  }
}
