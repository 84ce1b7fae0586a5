/** Whether the host will have enough for all its VMs: pure. */
import { type Ahead, COVERAGES } from '../forecast/outlook.js';

/** What one VM will use of one resource. */
export interface Load {
  /** Of each step; empty where nothing is known yet. */
  ahead: readonly Ahead[];
  /** Taken for every step where nothing is known. */
  otherwise: number;
  /** More than that it can not use. */
  max: number;
}

export interface Outlay {
  /** The highest sum of what is expected in one step. */
  expected: number;
  /** Sum of the VMs' own peaks, as they will not be exceeded 95 % of the time: all at once, which is the worst. */
  peaks: number;
  /** The chance that the sum is above the capacity in any of the steps, 0–1. */
  shortChance: number;
}

const DRAWS = 400;
const STEPS_DRAWN = 3;
/** How far the VMs' surprises come together: a busy day is busy for several of them. */
const CORRELATION = 0.2;
const COVERAGE_95 = COVERAGES.indexOf(0.95);

/** @param stepsMax how far ahead is looked, in intervals */
export function outlay(loads: readonly Load[], capacity: number, stepsMax: number): Outlay {
  const all = Array.from({ length: stepsMax }, (_, i) => i);
  const at = (load: Load, step: number) => load.ahead[Math.min(step, load.ahead.length - 1)];
  const capped = (load: Load, value: number) => Math.max(0, Math.min(load.max, value));
  const sums = all.map((step) =>
    loads.reduce((sum, load) => sum + capped(load, at(load, step)?.expected ?? load.otherwise), 0),
  );
  const peaks = loads.reduce((sum, load) => {
    const known = load.ahead.slice(0, stepsMax).map((ahead) => ahead.bounds[COVERAGE_95]!);
    return sum + capped(load, known.length === 0 ? load.otherwise : Math.max(...known));
  }, 0);

  // Of the steps, those in which most is expected: the others would not be short before them.
  const steps = all.toSorted((a, b) => sums[b]! - sums[a]!).slice(0, STEPS_DRAWN);
  const random = mulberry32(1);
  let short = 0;
  for (let draw = 0; draw < DRAWS; draw++) {
    // One surprise per VM for all steps: who needs more than expected now mostly still does a step later.
    const common = gaussian(random);
    const shares = loads.map(() =>
      normalShare(Math.sqrt(CORRELATION) * common + Math.sqrt(1 - CORRELATION) * gaussian(random)),
    );
    const exceeded = steps.some((step) => {
      let sum = 0;
      loads.forEach((load, i) => {
        const ahead = at(load, step);
        sum += capped(load, ahead === undefined ? load.otherwise : quantileOf(ahead, shares[i]!));
      });
      return sum > capacity;
    });
    if (exceeded) short++;
  }
  return { expected: Math.max(0, ...sums), peaks, shortChance: short / DRAWS };
}

/** The value that is not exceeded with this probability: between the bounds, and mirrored below the middle. */
function quantileOf({ expected, bounds }: Ahead, share: number): number {
  if (share < 0.5) return 2 * expected - quantileOf({ steps: 0, expected, bounds }, 1 - share);
  let [lowShare, low] = [0.5, expected];
  for (const [i, coverage] of COVERAGES.entries()) {
    const high = bounds[i]!;
    if (share <= coverage) return low + ((share - lowShare) / (coverage - lowShare)) * (high - low);
    [lowShare, low] = [coverage, high];
  }
  return low;
}

/** Always the same numbers: a question that is asked twice has one answer. */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function gaussian(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Share of a normal distribution below `z`, to 1e-7 (Abramowitz and Stegun 26.2.17). */
function normalShare(z: number): number {
  const t = 1 / (1 + 0.2316419 * Math.abs(z));
  const tail =
    (Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)) *
    t *
    (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  return z < 0 ? tail : 1 - tail;
}
