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
