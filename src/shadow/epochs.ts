/** The epochs of a shadow image, as promotions and people look at them. */
import { ShadowVmError } from '../errors.js';
import type { EpochInfo, ShadowImage } from '../native/image.js';
import type { CommittedEpoch } from '../protect/protector.js';
import { type EpochTime, epochBefore } from '../switchover/rewind.js';
import type { EpochView, WantedEpoch } from '../vm/view.js';

/** What a promotion from this epoch starts from. @throws EPOCH_NOT_FOUND */
export async function readEpoch(image: ShadowImage, epoch: number, vm: string): Promise<CommittedEpoch> {
  const { cutAtMonotonicNs, cutAtWallMs: cutAtMs } = findEpoch(image.epochs(), epoch, vm);
  const cutAtNs = sinceThisBoot(cutAtMonotonicNs, cutAtMs);
  return { epoch, cutAtNs, cutAtMs, deviceState: await image.deviceState(epoch) };
}

/** Both clocks may have been set since, but not by so much at a time at which neither was read. */
const CLOCKS_APART_MS_MAX = 60_000;

/** The moment of a cut on this boot's monotonic clock: one of another boot, or another host, began elsewhere. */
function sinceThisBoot(cutAtMonotonicNs: bigint, cutAtWallMs: number): bigint {
  const nowNs = process.hrtime.bigint();
  const ageMs = Date.now() - cutAtWallMs;
  const agree = Math.abs(Number(nowNs - cutAtMonotonicNs) / 1e6 - ageMs) < CLOCKS_APART_MS_MAX;
  return agree ? cutAtMonotonicNs : nowNs - BigInt(Math.round(Math.max(0, ageMs) * 1e6));
}

/** As people are shown it. */
export function viewEpoch(info: EpochInfo): EpochView {
  const { epoch, generation, cutAtWallMs, changedPages, storedBytes, durable } = info;
  return { epoch, generation, cutAt: new Date(cutAtWallMs).toISOString(), changedPages, storedBytes, durable };
}

/**
 * The number of the epoch that is wanted.
 * @param resizedAtMs when a disk was resized, which ended all epochs from before; null when none was
 * @throws EPOCH_NOT_FOUND that tells which there are
 */
export function resolveEpoch(
  epochs: readonly EpochInfo[],
  wanted: WantedEpoch,
  vm: string,
  resizedAtMs: number | null,
): number {
  if ('epoch' in wanted) return findEpoch(epochs, wanted.epoch, vm).epoch;
  const { beforeMs } = wanted;
  const found = epochBefore(epochTimes(epochs), beforeMs);
  if (found !== null) return found.epoch;
  const resized =
    resizedAtMs === null || beforeMs > resizedAtMs
      ? ''
      : `; those before ${new Date(resizedAtMs).toISOString()} ended when a disk was resized`;
  throw new ShadowVmError('EPOCH_NOT_FOUND', {
    attempted: 'go back to an epoch',
    subject: vm,
    reason: `none of its ${epochs.length} epochs was cut before ${new Date(beforeMs).toISOString()}${resized}`,
    remedy: seeWhichThereAre(vm),
  });
}

const seeWhichThereAre = (vm: string) => `See which there are: shadowvm shadow epochs ${vm}`;

/** What rewinds choose by. */
export function epochTimes(epochs: readonly EpochInfo[]): EpochTime[] {
  return epochs.map(({ epoch, cutAtWallMs: cutAtMs }) => ({ epoch, cutAtMs }));
}

/** @throws EPOCH_NOT_FOUND that tells which there are */
export function findEpoch(epochs: readonly EpochInfo[], epoch: number, vm: string): EpochInfo {
  const found = epochs.find((each) => each.epoch === epoch);
  if (found !== undefined) return found;
  const [oldest, newest] = [epochs[0], epochs.at(-1)];
  throw new ShadowVmError('EPOCH_NOT_FOUND', {
    attempted: 'go back to an epoch',
    subject: vm,
    reason:
      oldest === undefined || newest === undefined
        ? 'its shadow image holds no epoch'
        : `epoch ${epoch} is not in its shadow image, which holds ${epochs.length} of ${oldest.epoch} to ${newest.epoch}`,
    remedy: seeWhichThereAre(vm),
  });
}
