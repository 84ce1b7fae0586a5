/**
 * One epoch: pre-copy while the guest runs, a short pause for the rest, commit.
 *
 *   guest runs   │ collect, collect                      (pages written so far; a second pass for those of the first)
 *   guest stands │ stop ─▶ collect the last few          ║ device state saved in parallel, in QEMU
 *                │ cont
 *   guest runs   │ checksums, into the shadow image      (the epoch is whole from here on)
 *
 * Disks are collected with the memory: what was written to them is read from their files.
 *
 * The passes before the pause are left out when the VM was quiet in the last epoch: a pass costs its scan of all the page
 * tables, however little was written.
 */
import { messageOf, ShadowVmError } from '../errors.js';
import { isNativeFailure } from '../native/index.js';
import type { CollectResult, CommitResult, EpochSource } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { OutputHold } from './output-hold.js';
import { type CommitBehind, isClosed, pauseByMonitor, pauseInside } from './pause.js';

/** A consistent cut of a VM, ready to be committed: the pages are staged in the EpochSource. */
export interface CutEpoch {
  /** The moment at which the guest stood still. */
  cutAtNs: bigint;
  /** The same by the host's wall clock. */
  cutAtMs: number;
  deviceState: Buffer;
  /** How long it stood. */
  pauseMs: number;
  scannedPages: number;
  copiedPages: number;
  /** Pages that a scrub found to differ, and no write had been reported of. */
  repairedPages: number;
  /** CPU time spent on scanning and copying. */
  cpuMs: number;
  /** Pages of disks that were copied. */
  diskPages: number;
  /** What OutputHold.begin() made in the pause. */
  hold: string | null;
  /** So little was written that the next epoch may well do without its pre-copy. */
  quiet: boolean;
  /** Its commit, where that is under way already; when it gives null it has committed nothing, and the caller is to. */
  committing: Promise<CommitResult | null> | null;
}

export interface CutOptions {
  /** Told when the guest is about to stand still, and when it runs again or nothing more can be done for it. */
  onPause?: (paused: boolean) => void;
  /** What the last epoch said. */
  quiet?: boolean;
  /** Holds what the guest sends after the cut; null where that leaves at once. */
  output?: OutputHold | null;
  flushDisks?: () => Promise<number>;
  /** Has the epoch committed as soon as the guest runs again, where the pause can do that. */
  commitBehind?: CommitBehind | null;
}

/** More than this left to copy is worth a second pass while the guest still runs. */
const SECOND_PASS_PAGES = 256;
/**
 * Of disks, the same: and what takes longer than this to flush. While a disk is written as fast as it can be, each pass has
 * about half of the one before.
 */
const DISK_PASS_PAGES = 128;
const QUICK_FLUSH_MS = 4;
const DISK_PASSES_MAX = 6;
/** Of disks: these take 0.1 ms to read. */
const QUIET_DISK_PAGES_MAX = 64;
/** An idle guest writes about 150 between two epochs; these take 0.1 ms to copy, while QEMU saves its devices. */
const QUIET_PAGES_MAX = 256;
/** In strict mode somebody waits for the end of the epoch: a pass costs more of that than copying this in the pause. */
const QUIET_PAGES_STRICT = 768;
/** A VM that was quiet and is no more: so many are copied in the pause (1 ms), then the guest runs on for a pre-copy. */
const SURPRISE_PAGES_MAX = 1024;
/**
 * Cuts an epoch. With `keepStopped` the guest does not run again (the hand-over of a planned switchover).
 * On failure the guest is let go and the staged pages go into the next epoch.
 * @throws EPOCH_FAILED, QMP_*; the cause tells whether the VM is dead
 */
export async function cutEpoch(
  primary: QemuProcess,
  source: EpochSource,
  keepStopped = false,
  options: CutOptions = {},
): Promise<CutEpoch> {
  const { onPause = () => {}, quiet = false, output = null, flushDisks = async () => 0, commitBehind = null } = options;
  let committing = null as CutEpoch['committing'];
  const total = { scannedPages: 0, copiedPages: 0, diskPages: 0, repairedPages: 0, cpuMs: 0, pauseMs: 0 };
  const add = (pass: CollectResult) => {
    total.scannedPages += pass.scannedPages;
    total.copiedPages += pass.copiedPages;
    total.diskPages += pass.diskPages;
    total.repairedPages += pass.repairedPages;
    total.cpuMs += pass.cpuMs;
    return pass;
  };
  const collect = async () => add(await source.collect({}));
  const preCopy = async () => {
    for (let pass = 1; pass <= DISK_PASSES_MAX; pass++) {
      const [{ copiedPages, diskPages }, flushMs] = await Promise.all([collect(), flushDisks()]);
      const memoryIsLeft = pass === 1 && copiedPages > SECOND_PASS_PAGES;
      if (!memoryIsLeft && diskPages <= DISK_PASS_PAGES && flushMs <= QUICK_FLUSH_MS) break;
    }
  };
  /** Stops the guest for the last pass. @returns null when more than `pagesMax` was left: the guest runs again */
  const pause = async (pagesMax?: number) => {
    onPause(true);
    const { pass, pauseMs, ...cut } =
      primary.servesPauses && !keepStopped
        ? await pauseInside(primary, source, pagesMax, output, commitBehind)
        : await pauseByMonitor(
            primary,
            () => source.collect({ urgent: true, ...(pagesMax === undefined ? {} : { pagesMax }) }),
            keepStopped,
            output,
          );
    total.pauseMs += pauseMs;
    if (!keepStopped) onPause(false);
    committing = cut.committing;
    if (add(pass).complete) return cut;
    await committing; // it finds that nothing is to be done
    return null;
  };
  try {
    if (quiet) await flushDisks();
    let cut = quiet && !keepStopped ? await pause(SURPRISE_PAGES_MAX) : null;
    if (cut === null) {
      await preCopy();
      cut = (await pause()) as NonNullable<typeof cut>; // without a limit it is complete
    }
    return {
      ...cut,
      ...total,
      deviceState: primary.readDevices(),
      quiet:
        total.copiedPages <= (output === null ? QUIET_PAGES_MAX : QUIET_PAGES_STRICT) &&
        total.diskPages <= QUIET_DISK_PAGES_MAX,
    };
  } catch (error) {
    onPause(false);
    await committing?.catch(() => {});
    await source.abort().catch(() => {}); // ERR_CLOSED at the most: then nothing is left to abort
    if (keepStopped) primary.qmp.execute('cont').catch(() => {});
    throw error instanceof ShadowVmError
      ? error
      : new ShadowVmError('EPOCH_FAILED', {
          attempted: 'cut an epoch',
          subject: primary.vm,
          reason: messageOf(error),
          cause: error,
        });
  }
}

/** True when an epoch failed because the VM is dead or unreachable: more of them would be pointless. */
export function endsProtection(error: unknown): boolean {
  if (isClosed(error)) return true;
  const cause = error instanceof ShadowVmError ? error.cause : error;
  return isNativeFailure(cause) && (cause.code === 'ERR_VM_DEAD' || cause.code === 'ERR_CLOSED');
}

/** What the image says when there is no room for an epoch: there may be some again for the next one. */
const NO_ROOM = ['ENOSPC', 'EDQUOT', 'ERR_IMAGE_FULL'];

/** True when an epoch could not be stored for want of room: no failure of the protection, and a retry may go well. */
export function lacksRoom(error: unknown): boolean {
  // Of a commit, or of a pass that had more to store than it may keep in memory.
  const cause = error instanceof ShadowVmError ? error.cause : error;
  return isNativeFailure(cause) && NO_ROOM.includes(cause.code);
}

/** True when the source has lost track of what changed: only a new comparison of everything helps. */
export function needsResync(error: unknown): boolean {
  const cause = error instanceof ShadowVmError ? error.cause : error;
  return isNativeFailure(cause) && !['ERR_VM_DEAD', 'ERR_CLOSED', ...NO_ROOM].includes(cause.code);
}
