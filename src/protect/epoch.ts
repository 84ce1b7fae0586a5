/**
 * One epoch: pre-copy while the guest runs, a short pause for the rest, commit.
 *
 *   guest runs   │ collect, collect                      (pages written so far; a second pass for those of the first)
 *   guest stands │ stop ─▶ collect the last few          ║ device state saved in parallel, in QEMU
 *                │ cont
 *   guest runs   │ checksums, apply to the shadow        (the epoch is whole from here on)
 *
 * The passes before the pause are left out when the VM was quiet in the last epoch: a pass costs its scan of all the page
 * tables, however little was written.
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
  /** So little was written that the next epoch may well do without its pre-copy. */
  quiet: boolean;
}

/** More than this left to copy is worth a second pass while the guest still runs. */
const SECOND_PASS_PAGES = 256;
/** An idle guest writes about 150 between two epochs; these take 0.1 ms to copy, while QEMU saves its devices. */
const QUIET_PAGES_MAX = 256;
/** A VM that was quiet and is no more: so many are copied in the pause (1 ms), then the guest runs on for a pre-copy. */
const SURPRISE_PAGES_MAX = 1024;
/** A `stop` or device state that takes longer is given up: the guest must not stand still for an epoch's sake. */
const PAUSE_TIMEOUT_MS = 2000;

/**
 * Cuts an epoch. With `keepStopped` the guest does not run again (the hand-over of a planned switchover). `quiet` is what
 * the last epoch said.
 * On failure the guest is let go and the staged pages go into the next epoch. `onPause` is told when the guest is about to
 * stand still, and when it runs again or nothing more can be done for it.
 * @throws EPOCH_FAILED, QMP_*; the cause tells whether the VM is dead
 */
export async function cutEpoch(
  primary: QemuProcess,
  source: EpochSource,
  keepStopped = false,
  onPause: (paused: boolean) => void = () => {},
  quiet = false,
): Promise<CutEpoch> {
  let scannedPages = 0;
  let copiedPages = 0;
  let cpuMs = 0;
  let pauseMs = 0;
  const collect = async (options: { urgent?: boolean; pagesMax?: number }) => {
    const pass = await source.collect(options);
    scannedPages += pass.scannedPages;
    copiedPages += pass.copiedPages;
    cpuMs += pass.cpuMs;
    return pass;
  };
  const preCopy = async () => {
    const first = await collect({});
    if (first.copiedPages > SECOND_PASS_PAGES) await collect({});
  };
  /** Stops the guest for the last pass. @returns null when more than `pagesMax` was left: the guest runs again */
  const pause = async (pagesMax?: number) => {
    const pausedAtMs = monotonicMs();
    onPause(true);
    // Pipelined: QEMU begins to save as soon as it has stopped, while we hear of the stop and collect.
    const stopped = primary.qmp.execute('stop', undefined, { timeoutMs: PAUSE_TIMEOUT_MS });
    const saved = primary.saveDevices(PAUSE_TIMEOUT_MS);
    saved.catch(() => {}); // awaited below, after the guest has been let go
    let running: Promise<unknown> = Promise.resolve();
    let cutAtNs: bigint;
    let complete: boolean;
    try {
      await stopped;
      cutAtNs = process.hrtime.bigint();
      ({ complete } = await collect(pagesMax === undefined ? { urgent: true } : { urgent: true, pagesMax }));
    } finally {
      // In every case; it queues behind the saving in QEMU.
      if (!keepStopped) running = primary.qmp.execute('cont', undefined, { timeoutMs: PAUSE_TIMEOUT_MS });
      running.catch(() => {});
    }
    await saved;
    await running;
    pauseMs += monotonicMs() - pausedAtMs;
    if (!keepStopped) onPause(false);
    return complete ? cutAtNs : null;
  };
  try {
    let cutAtNs = quiet && !keepStopped ? await pause(SURPRISE_PAGES_MAX) : null;
    if (cutAtNs === null) {
      await preCopy();
      cutAtNs = (await pause()) as bigint; // without a limit it is complete
    }
    const deviceState = primary.readDevices();
    return { cutAtNs, deviceState, pauseMs, scannedPages, copiedPages, cpuMs, quiet: copiedPages <= QUIET_PAGES_MAX };
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
