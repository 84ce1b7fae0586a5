/** One promotion under way: why, from which epoch, and when its steps happened. */
import type { EpochInfo } from '../native/image.js';
import type { CommittedEpoch } from '../protect/protector.js';
import { epochTimes } from '../shadow/epochs.js';
import type { DeathCause } from '../switchover/detector.js';
import { epochBefore, isPoisoned, type LastPromotion, rewindTarget } from '../switchover/rewind.js';
import type { PromotionView } from '../vm/view.js';

export interface PromotionRun {
  reason: string;
  /** Asked for by hand: the primary's guest stood still before its last epoch was cut. */
  planned: boolean;
  /** Of the death that asks for it; null when it is planned. */
  cause: DeathCause | null;
  killedFromOutside: boolean;
  /** When its probes last found the guest well, wall clock of the host, ms; null where they have nothing to do with it. */
  wellAtMs: number | null;
  /** The epoch that was asked for by hand; null for the one that is right. */
  wanted: number | null;
  decidedAtNs: bigint;
  decidedAtMs: number;
  fencedAtNs: bigint;
  resumedAtNs: bigint;
  from: CommittedEpoch | null;
  /** How many times in a row this VM has been taken further back. */
  rewinds: number;
}

export function beginPromotion(
  why: Pick<PromotionRun, 'reason' | 'planned' | 'cause' | 'killedFromOutside' | 'wellAtMs' | 'wanted' | 'decidedAtNs'>,
): PromotionRun {
  return { ...why, decidedAtMs: Date.now(), fencedAtNs: 0n, resumedAtNs: 0n, from: null, rewinds: 0 };
}

export interface EpochChoice {
  epoch: number;
  rewinds: number;
  /** Why it is not the newest one; null when it is. */
  because: string | null;
}

/** What can be promoted from. */
export interface EpochsToChoose {
  /** Of the image. */
  newest: number;
  /** The newest one that a heartbeat came after; null when there is none. */
  newestConfirmed: number | null;
  /** The newest one whose output has left, or may have; null when there is none. */
  newestSent: number | null;
  /** Oldest first. Called only for a VM that is taken further back: it costs a moment of the outage. */
  all: () => readonly EpochInfo[];
}

/**
 * The epoch to promote from. Pure.
 * @returns null when a guest that dies of its own state has been tried from every epoch
 */
export function chooseEpoch(
  run: Pick<PromotionRun, 'cause' | 'killedFromOutside' | 'wellAtMs' | 'wanted' | 'decidedAtMs'>,
  { newest, newestConfirmed, newestSent, all }: EpochsToChoose,
  last: LastPromotion | null,
): EpochChoice | null {
  if (run.wanted !== null)
    return { epoch: run.wanted, rewinds: 0, because: run.wanted === newest ? null : 'it was asked for' };
  if (run.cause !== null && last !== null && isPoisoned(run.cause, run.killedFromOutside, run.decidedAtMs, last)) {
    const target = rewindTarget(epochTimes(all()), last);
    if (target === null) return null;
    const ageMs = last.from.cutAtMs - target.cutAtMs;
    return {
      epoch: target.epoch,
      rewinds: last.rewinds + 1,
      because: `the guest died again ${Math.round(run.decidedAtMs - last.resumedAtMs)} ms after it woke up from epoch ${last.from.epoch}: its state may be what kills it, and this one is ${Math.round(ageMs)} ms older`,
    };
  }
  // Every epoch since its probes last found it well may hold what they found.
  if (run.cause === 'probe-failed' && run.wellAtMs !== null) {
    const epochs = epochTimes(all());
    const target = epochBefore(epochs, run.wellAtMs) ?? epochs[0];
    if (target !== undefined && target.epoch < newest)
      return {
        epoch: target.epoch,
        rewinds: 0,
        because: `its probes last found it well ${Math.round(run.decidedAtMs - run.wellAtMs)} ms before they gave it up`,
      };
  }
  // Epochs that were cut while a guest hung or panicked show it doing that.
  if ((run.cause === 'guest-reset' || run.cause === 'guest-hung') && newestConfirmed !== null)
    return {
      epoch: newestConfirmed,
      rewinds: 0,
      because:
        newestConfirmed === newest
          ? null
          : 'the epochs after it were cut after the last heartbeat and may show a dead guest',
    };
  if (run.cause !== null && newestSent !== null && newestSent < newest)
    return {
      epoch: newestSent,
      rewinds: 0,
      because:
        'what its guest sent in the epoch after it died with its QEMU, and is answered anew at once from this one',
    };
  return { epoch: newest, rewinds: 0, because: null };
}

/** What is told of a promotion that went well. */
export function promotionView(run: PromotionRun, vm: string, generation: number): PromotionView {
  const { from } = run;
  if (from === null) throw new Error('a promotion without epoch can not be over');
  const ms = (a: bigint, b: bigint) => Number(b - a) / 1e6;
  return {
    vm,
    reason: run.reason,
    planned: run.planned,
    generation,
    epoch: from.epoch,
    cutAtNs: from.cutAtNs.toString(),
    decidedAtNs: run.decidedAtNs.toString(),
    fencedAtNs: run.fencedAtNs.toString(),
    resumedAtNs: run.resumedAtNs.toString(),
    resumeMs: ms(run.decidedAtNs, run.resumedAtNs),
    lagMs: Math.max(0, ms(from.cutAtNs, run.decidedAtNs)),
  };
}
