/**
 * How far back a promotion goes. Pure: of the epochs that there are and of what came before.
 *
 * A guest that dies again right after its promotion may carry the cause of its death in its memory. It is then promoted
 * from an older epoch, and further back with each death: half a second, one, two, four, up to the oldest epoch.
 */
import type { DeathCause } from './detector.js';

/** A promoted VM that dies within this time died of what it woke up with. */
export const POISON_AFTER_MS = 5000;
const FIRST_STEP_MS = 500;

export interface EpochTime {
  epoch: number;
  /** When it was cut, wall clock of the host, ms. */
  cutAtMs: number;
}

export interface LastPromotion {
  /** The epoch that the VM woke up from. */
  from: EpochTime;
  resumedAtMs: number;
  /** How many times in a row it has been taken further back already. */
  rewinds: number;
}

/** Whether a death asks for an older epoch: not one that came from outside, which no state of the guest can cause. */
export function isPoisoned(
  cause: DeathCause,
  killedFromOutside: boolean,
  diedAtMs: number,
  last: LastPromotion | null,
): boolean {
  if (last === null || diedAtMs - last.resumedAtMs > POISON_AFTER_MS) return false;
  return cause !== 'process-stopped' && !killedFromOutside;
}

/**
 * The epoch for the next try: the newest that is one step older than what was tried last, else the oldest one. null when
 * nothing older than the last try is left.
 * @param epochs oldest first
 */
export function rewindTarget(epochs: readonly EpochTime[], last: LastPromotion): EpochTime | null {
  const stepMs = FIRST_STEP_MS * 2 ** last.rewinds;
  const older = epochs.filter(({ epoch }) => epoch < last.from.epoch);
  return older.findLast(({ cutAtMs }) => cutAtMs <= last.from.cutAtMs - stepMs) ?? older[0] ?? null;
}

/** The newest epoch that was cut before a moment; null when all are younger. @param epochs oldest first */
export function epochBefore(epochs: readonly EpochTime[], atMs: number): EpochTime | null {
  return epochs.findLast(({ cutAtMs }) => cutAtMs < atMs) ?? null;
}
