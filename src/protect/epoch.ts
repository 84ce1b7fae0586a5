/**
 * One epoch: pre-copy while the guest runs, a short pause for the rest, commit.
 *
 *   guest runs   │ collect, collect                      (pages written so far; a second pass for those of the first)
 *   guest stands │ stop ─▶ collect the last few          ║ device state saved in parallel, in QEMU
 *                │ cont
 *   guest runs   │ checksums, apply to the shadow        (the epoch is whole from here on)
 */
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { isNativeFailure } from '../native/index.js';
import type { EpochSource } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';

/** A consistent cut of a VM, ready to be committed: the pages are staged in the EpochSource. */
export interface CutEpoch {
  /** The moment at which the guest stood still. */
  cutAtNs: bigint;
  deviceState: Buffer;
  /** How long it stood. */
  pauseMs: number;
  scannedPages: number;
  copiedPages: number;
  /** CPU time spent on scanning and copying. */
  cpuMs: number;
}

/** More than this left to copy is worth a second pass while the guest still runs. */
const SECOND_PASS_PAGES = 256;
/** A `stop` or device state that takes longer is given up: the guest must not stand still for an epoch's sake. */
const PAUSE_TIMEOUT_MS = 2000;

/**
 * Cuts an epoch. With `keepStopped` the guest does not run again (the hand-over of a planned switchover).
 * On failure the guest is let go and the staged pages go into the next epoch. `onPause` is told when the guest is about to
 * stand still, and when it runs again or nothing more can be done for it.
 * @throws EPOCH_FAILED, QMP_*; the cause tells whether the VM is dead
 */
export async function cutEpoch(
  primary: QemuProcess,
  source: EpochSource,
  keepStopped = false,
  onPause: (paused: boolean) => void = () => {},
): Promise<CutEpoch> {
  let scannedPages = 0;
  let copiedPages = 0;
  let cpuMs = 0;
  const collect = async () => {
    const pass = await source.collect();
    scannedPages += pass.scannedPages;
    copiedPages += pass.copiedPages;
    cpuMs += pass.cpuMs;
    return pass;
  };
  try {
    const first = await collect();
    if (first.copiedPages > SECOND_PASS_PAGES) await collect();

    const pausedAtMs = monotonicMs();
    onPause(true);
    // Not for a hand-over: a guest that stays stopped may be running elsewhere before long.
    primary.control.setPausedForEpoch(!keepStopped);
    // Pipelined: QEMU begins to save as soon as it has stopped, while we hear of the stop and collect.
    const stopped = primary.qmp.execute('stop', undefined, { timeoutMs: PAUSE_TIMEOUT_MS });
    const saved = primary.saveDevices(PAUSE_TIMEOUT_MS);
    saved.catch(() => {}); // awaited below, after the guest has been let go
    let running: Promise<unknown> = Promise.resolve();
    let cutAtNs: bigint;
    try {
      await stopped;
      cutAtNs = process.hrtime.bigint();
      await collect();
    } finally {
      // In every case; it queues behind the saving in QEMU.
      if (!keepStopped)
        running = primary.qmp
          .execute('cont', undefined, { timeoutMs: PAUSE_TIMEOUT_MS })
          .then(() => primary.control.setPausedForEpoch(false));
      running.catch(() => {});
    }
    await saved;
    await running;
    const pauseMs = monotonicMs() - pausedAtMs;
    if (!keepStopped) onPause(false);
    return { cutAtNs, deviceState: primary.readDevices(), pauseMs, scannedPages, copiedPages, cpuMs };
  } catch (error) {
    onPause(false);
    await source.abort().catch(() => {}); // ERR_CLOSED at the most: then nothing is left to abort
    if (keepStopped) primary.qmp.execute('cont').catch(() => {});
    throw error instanceof ShadowVmError
      ? error
      : new ShadowVmError('EPOCH_FAILED', {
          attempted: 'cut an epoch',
          subject: primary.vm,
          reason: error instanceof Error ? error.message : String(error),
          cause: error,
        });
  }
}

/** True when an epoch failed because the VM is dead or unreachable: more of them would be pointless. */
export function endsProtection(error: unknown): boolean {
  if (error instanceof ShadowVmError && error.code === 'QMP_CLOSED') return true;
  const cause = error instanceof ShadowVmError ? error.cause : error;
  return isNativeFailure(cause) && (cause.code === 'ERR_VM_DEAD' || cause.code === 'ERR_CLOSED');
}

/** True when the source has lost track of what changed: only a new full copy, into a new shadow, helps. */
export function needsResync(error: unknown): boolean {
  const cause = error instanceof ShadowVmError ? error.cause : error;
  return isNativeFailure(cause) && cause.code !== 'ERR_VM_DEAD' && cause.code !== 'ERR_CLOSED';
}
