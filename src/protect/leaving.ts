/** What a dead primary's newest epoch has let out. Pure. */
import { HELD_MS_MAX } from './output-hold.js';

/** What leaves with an epoch. */
export interface Leaving {
  /** The holds, as QemuControl has them: a bit for each. 0: nothing leaves with it, or nobody can tell whether it has. */
  holds: number;
  /** QEMU was told to let them go when the epoch was committed. */
  told: boolean;
}

/**
 * Whether any of it has left its QEMU, or may have. An epoch of which nothing has promised nothing to anybody.
 * @param kept holds that nobody has let go for another reason
 * @param unreleased those that QEMU was told to let go, for whatever reason, and has not begun to
 * @param heldMs since they were switched on: what is older is let go by QEMU itself
 */
export function mayHaveLeft({ holds, told }: Leaving, kept: number, unreleased: number, heldMs: number): boolean {
  if (holds === 0 || heldMs > HELD_MS_MAX) return true;
  return (((told ? 0 : kept) | unreleased) & holds) !== holds;
}
