/** What each round of a soak does to the VM, and when: a pure function of the seed, so that a run can be repeated. */

export const FAULTS = ['kill', 'hang', 'panic'] as const;
/** kill: SIGKILL to QEMU. hang: SIGSTOP to QEMU. panic: the guest's kernel. */
export type Fault = (typeof FAULTS)[number];

/**
 * The moment to hit. any: a random one. ready: right after the first epoch of a new shadow, which is the first moment at
 * which a death can be survived. The others: within that phase of an epoch.
 */
export type Aim = 'any' | 'ready' | 'pre-copy' | 'pause' | 'commit';

export interface RoundPlan {
  fault: Fault;
  aim: Aim;
  /** How long to wait before taking aim. */
  delayMs: number;
  /** How far into the phase to hit, as a share of its usual length: above 1 is just after it. */
  within: number;
}

/** Several epochs long, so that every moment of one is hit. */
const DELAY_MS_MAX = 1500;
const WITHIN_MAX = 1.3;

/** @param round counted from 1; the plan of a round depends on no other round */
export function planRound(seed: number, round: number): RoundPlan {
  const random = randomOf(seed, round);
  const fault = pick(random(), { kill: 0.7, hang: 0.15, panic: 0.15 });
  const aimed = pick(random(), { any: 0.44, ready: 0.08, 'pre-copy': 0.16, pause: 0.16, commit: 0.16 });
  const delayMs = random() * DELAY_MS_MAX;
  const within = random() * WITHIN_MAX;
  // No epoch is under way when the guest panics by order: the manager holds them, see ManagedVm.injectFault.
  const aim = fault === 'panic' ? 'any' : aimed;
  return { fault, aim, delayMs: aim === 'ready' ? 0 : delayMs, within };
}

function pick<T extends string>(random: number, weights: Record<T, number>): T {
  const choices = Object.entries(weights) as [T, number][];
  let left = random;
  for (const [choice, weight] of choices) {
    left -= weight;
    if (left < 0) return choice;
  }
  return choices[0]?.[0] as T; // the weights' sum rounded to a little below 1
}

/** Numbers in [0, 1), from the 32-bit generator "mulberry32", which is enough to choose with. */
function randomOf(seed: number, stream: number): () => number {
  let state = Math.imul(seed ^ Math.imul(stream, 0x9e3779b1), 0x85ebca6b);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
