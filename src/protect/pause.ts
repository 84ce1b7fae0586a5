/**
 * The pause of an epoch: the guest stands still while its devices are saved and the last pages collected. Where the shim
 * serves it, all of that is one word to QEMU and one job off the event loop; else it goes through QEMU's monitor, which
 * takes longer to be told than to do it.
 */
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { isNativeFailure } from '../native/index.js';
import type { CollectResult, CommitResult, EpochSource } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { OutputHold } from './output-hold.js';

export interface Pause {
  /** The moment at which the guest stood still. */
  cutAtNs: bigint;
  /** The same by the host's wall clock. */
  cutAtMs: number;
  /** How long it stood. */
  pauseMs: number;
  /** What OutputHold.begin() said. */
  hold: string | null;
  pass: CollectResult;
  /** Its commit, under way since the guest runs again; it gives null when nothing was cut. null where it was not asked for. */
  committing: Promise<CommitResult | null> | null;
}

/** Asks for the commit of the epoch that the pause under way will cut. `hold` is what OutputHold.begin() said. */
export type CommitBehind = (hold: string | null) => Promise<CommitResult | null>;

/** A guest that can not be stopped, saved and let go in this time is let go: it must not stand still for an epoch's sake. */
const TIMEOUT_MS = 2000;

/**
 * @param pagesMax ends the pass when more was written than this, about; it tells whether it is complete
 * @param output holds what the guest sends after the pause; null where that leaves at once
 * @param commitBehind null when the caller commits
 * @throws EPOCH_FAILED, QMP_CLOSED; native failures of the pass
 */
export async function pauseInside(
  primary: QemuProcess,
  source: EpochSource,
  pagesMax: number | undefined,
  output: OutputHold | null,
  commitBehind: CommitBehind | null,
): Promise<Pause> {
  await output?.prepared();
  const hold = output?.begin() ?? null;
  const countOffset = output?.sentOffset;
  const pausing = source.collectPaused({
    timeoutMs: TIMEOUT_MS,
    ...(pagesMax === undefined ? {} : { pagesMax }),
    ...(hold === null ? {} : { hold: hold.number }),
    ...(countOffset === undefined ? {} : { countOffset }),
  });
  // Asked for now: whoever waits for the end of the epoch is not to wait for the event loop in the middle of it.
  const committing = commitBehind?.(hold?.id ?? null) ?? null;
  committing?.catch(() => {}); // awaited by the caller, or below
  const { cutAtNs, cutAtMs, pauseMs, count, holdFailed, ...pass } = await pausing.catch(async (error: unknown) => {
    await committing?.catch(() => {}); // it has nothing to do, but ends behind this
    if (!isNativeFailure(error) || error.code !== 'ERR_PAUSE') throw error;
    if (primary.qmp.closedBy !== undefined) throw primary.qmp.closedBy;
    const told = { attempted: 'pause the guest for an epoch', subject: primary.vm, reason: error.message };
    throw new ShadowVmError('EPOCH_FAILED', told);
  });
  output?.noteCut(count);
  if (holdFailed) output?.failed('it could not be switched on');
  return { cutAtNs, cutAtMs, pauseMs, hold: hold?.id ?? null, pass, committing };
}

/**
 * As pauseInside(), through the monitor. With `keepStopped` the guest does not run again.
 * @throws QMP_*; native failures of the pass
 */
export async function pauseByMonitor(
  primary: QemuProcess,
  collect: () => Promise<CollectResult>,
  keepStopped: boolean,
  output: OutputHold | null,
): Promise<Pause> {
  const pausedAtMs = monotonicMs();
  // Not for a hand-over: a guest that stays stopped may be running elsewhere before long.
  primary.control.setPausedForEpoch(!keepStopped);
  // Pipelined: QEMU begins to save as soon as it has stopped, while we hear of the stop and collect.
  const stopped = primary.qmp.execute('stop', undefined, { timeoutMs: TIMEOUT_MS });
  const saved = primary.saveDevices(TIMEOUT_MS);
  saved.catch(() => {}); // awaited below, after the guest has been let go
  const hold = keepStopped ? null : (output?.begin() ?? null);
  let running: Promise<unknown> = Promise.resolve();
  let cut: { cutAtNs: bigint; cutAtMs: number };
  let pass: CollectResult;
  try {
    await stopped;
    output?.noteCut();
    cut = { cutAtNs: process.hrtime.bigint(), cutAtMs: Date.now() };
    pass = await collect();
  } finally {
    // In every case; it queues behind the saving in QEMU.
    if (!keepStopped)
      running = primary.qmp
        .execute('cont', undefined, { timeoutMs: TIMEOUT_MS })
        .then(() => primary.control.setPausedForEpoch(false));
    running.catch(() => {});
  }
  await saved;
  // A VM that dies now has left an epoch that is as whole as any. But not in strict mode: what it had sent dies in its
  // QEMU, and the guest would send it again only after 200 ms; one from the epoch before answers anew at once.
  await running.catch((error: unknown) => {
    if (keepStopped || hold !== null || !isClosed(error)) throw error;
  });
  return { ...cut, pauseMs: monotonicMs() - pausedAtMs, hold: hold?.id ?? null, pass, committing: null };
}

/** The monitor of the VM is gone, as it is when its process has died. */
export const isClosed = (error: unknown): boolean => error instanceof ShadowVmError && error.code === 'QMP_CLOSED';
