/** When the next epoch should begin. Pure: of what the last epochs cost and what the user allows. */
import type { PacingLimits } from '../vm/spec.js';

export interface EpochCost {
  /** Smoothed pause of an epoch. */
  pauseMs: number;
  /** Smoothed CPU time that the manager spends on one. */
  cpuMs: number;
  /** Smoothed time from the begin of an epoch to its commit. */
  epochMs: number;
  /** Smoothed rate at which the guest changes pages. */
  dirtyPagesPerSecond: number;
}

const INTERVAL_MS_MIN = 10;
/** However short a lag the user wants, the guest runs at least half of the time. */
const PAUSED_SHARE_MAX = 0.5;
/**
 * An epoch is worth its pause once about 1 MiB has changed: below that rate epochs get rarer, so that an idle VM
 * costs almost nothing.
 */
const PAGES_PER_EPOCH = 256;

/**
 * ms from the end of one epoch to the begin of the next.
 *
 * Three floors hold it up: the share of time paused, the CPU budget, and the pages that make an epoch worth while.
 * The wish for a maximum lag pulls it down below all of these, but never below half of the time paused: a promise to
 * the data outranks thrift, but a guest that stands still more than it runs is no use to anybody.
 */
export function nextIntervalMs(cost: EpochCost, limits: PacingLimits): number {
  const forPause = cost.pauseMs / limits.maxPausedShare - cost.pauseMs;
  const forCpu = cost.cpuMs / limits.cpuBudget - cost.epochMs;
  const forWorth = (PAGES_PER_EPOCH / Math.max(cost.dirtyPagesPerSecond, 0.001)) * 1000;
  const wanted = Math.max(INTERVAL_MS_MIN, forPause, forCpu, forWorth);
  // Just before a commit the newest epoch is one interval and two epochs old: it was cut early in its own.
  const forLag = limits.maxLagMs - 2 * cost.epochMs;
  const hardFloor = Math.max(INTERVAL_MS_MIN, cost.pauseMs / PAUSED_SHARE_MAX - cost.pauseMs);
  return Math.max(hardFloor, Math.min(wanted, forLag));
}

/** What a guest in strict mode has sent since the last cut, and nobody has got yet. */
export interface Waiting {
  /** How long the oldest of it has been waiting, ms. */
  oldestMs: number;
  /** How long ago the newest came, ms. */
  newestMs: number;
  /** As many answers as were let go last have come: whoever asks again after an answer has got all of them. */
  complete: boolean;
  /** Its vCPUs sleep: it has dealt with all that reached it. null: that can not be seen. */
  idle: boolean | null;
}

/** However little happens: what comes must find a hold that is young enough. */
const STRICT_INTERVAL_MS_MAX = 500;
/** A guest that has sent nothing more for so long has answered what it was asked, unless it is still at work on it. */
const SETTLED_MS = 1.8;
const BUSY_SETTLED_MS = 4;
/** One that goes on sending is cut all the same: so long an epoch of a busy guest gathers answers … */
const GATHER_MS_MIN = 8;
/** … and so many times as long as an epoch costs, or the guest would be held up by epochs of a few answers each. */
const GATHER_EPOCHS = 3;
const GATHER_MS_MAX = 25;
/** A guest that woke up and has sent nothing is protected all the same. */
const FIRST_MS_MAX = 80;
/** It is slow at first, and its first word is seldom its last. */
const AWAKE_SETTLED_MS = 6;
/** A guest that has been silent for longer is looked at less often. */
const SILENT_MS = 200;

/**
 * Whether the next epoch of a guest in strict mode is to be cut now. Somebody waits for what it has sent, and that
 * outranks the thrift of nextIntervalMs(), but not the half of the time that a guest runs at least.
 * @param sinceEpochMs from the end of the last epoch
 * @param waiting null when nothing waits
 */
export function isDueStrict(
  sinceEpochMs: number,
  waiting: Waiting | null,
  cost: EpochCost | null,
  limits: PacingLimits,
): boolean {
  // A guest that has just woken up.
  if (cost === null) return sinceEpochMs >= FIRST_MS_MAX || (waiting !== null && waiting.newestMs >= AWAKE_SETTLED_MS);
  if (waiting === null) return sinceEpochMs >= Math.min(STRICT_INTERVAL_MS_MAX, nextIntervalMs(cost, limits));
  // It ran during the rest of the last epoch as well.
  const ranMs = sinceEpochMs + cost.epochMs - cost.pauseMs;
  if (ranMs < cost.pauseMs) return false;
  const gatherMs = Math.min(GATHER_MS_MAX, Math.max(GATHER_MS_MIN, GATHER_EPOCHS * cost.epochMs));
  return waiting.oldestMs >= gatherMs || waiting.newestMs >= settledMs(waiting);
}

/**
 * How long a guest that has sent something is given to send more. One at work is about to: cut now, half of its clients
 * would get their answers, the other half those of the next epoch, and so on with twice as many epochs as there need be.
 */
function settledMs({ complete, idle }: Waiting): number {
  if (idle === false) return complete ? BUSY_SETTLED_MS : Infinity;
  return complete ? 0 : SETTLED_MS;
}

/** How soon to look again whether an epoch is due, ms. @param silentMs how long the guest has sent nothing */
export function lookAgainMs(silentMs: number): number {
  return silentMs < SILENT_MS ? 1 : 4;
}

/** Weight of the newest sample: reacts within about four epochs. */
const SMOOTHING = 0.3;

export function smoothCost(previous: EpochCost | null, sample: EpochCost): EpochCost {
  if (previous === null) return sample;
  const mix = (a: number, b: number) => a + SMOOTHING * (b - a);
  return {
    pauseMs: mix(previous.pauseMs, sample.pauseMs),
    cpuMs: mix(previous.cpuMs, sample.cpuMs),
    epochMs: mix(previous.epochMs, sample.epochMs),
    dirtyPagesPerSecond: mix(previous.dirtyPagesPerSecond, sample.dirtyPagesPerSecond),
  };
}
