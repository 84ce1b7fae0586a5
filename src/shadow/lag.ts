/** Is a shadow still close enough? Pure. */
import type { PacingLimits } from '../vm/spec.js';

/** Slack before a lag counts: one slow epoch on a busy host is no news. */
const BEHIND_FACTOR = 3;
const BEHIND_MS_MIN = 1000;
/** So long behind means that something stands in its way which a fresh comparison may clear. */
const REMAKE_AFTER_MS = 15_000;

/** @param behindForMs how long the shadow has been behind already, 0 when it was not */
export function assessLag(lagMs: number, behindForMs: number, limits: PacingLimits): 'ok' | 'behind' | 'remake' {
  if (lagMs <= Math.max(BEHIND_MS_MIN, BEHIND_FACTOR * limits.maxLagMs)) return 'ok';
  return behindForMs >= REMAKE_AFTER_MS ? 'remake' : 'behind';
}
