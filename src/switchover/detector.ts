/**
 * Is the VM dead? A pure function of what was observed and when; whoever observes passes the time in.
 *
 * Certain signs (the kernel's word that the process died, a reset that the guest did not announce) decide at once, and so
 * do the user's own probes, which have counted their failures themselves (probe.ts).
 * Silence only decides when it can not be explained: time in which the guest stood still for an epoch, in which QEMU
 * waited for a CPU, or in which the manager itself did not run, is no silence of the guest's. Unknown is not dead: a
 * promotion that was not needed rolls the guest back for nothing.
 */

export interface Observation {
  nowMs: number;
  /** The robust futex's word: QEMU has died. */
  processDied: boolean;
  /** QEMU's monitor connection ended by itself. */
  monitorEnded: boolean;
  /** The guest reset or ended without having said so: a kernel panic, a triple fault. */
  unannouncedReset: boolean;
  /** When the last heartbeat came; null before the first, when nothing can be concluded from silence. */
  lastBeatMs: number | null;
  /** Since when a QMP question is unanswered; null when none is. */
  qmpUnansweredSinceMs: number | null;
  /** QEMU's state letter in /proc; null when it is not known. */
  processState: string | null;
  /** Of the time since the last heartbeat: how much is explained (see above). */
  excusedMs: number;
  /** What the user's probes of a guest that had been well say, when they say that it is not; else null. */
  probeFailure: string | null;
}

export type DeathCause =
  | 'process-died'
  | 'monitor-ended'
  | 'guest-reset'
  | 'process-stopped'
  | 'qemu-hung'
  | 'guest-hung'
  | 'probe-failed';

export type Verdict =
  | { kind: 'alive' }
  /** Look closer: ask QMP, read the process's state. */
  | { kind: 'suspect'; silentMs: number }
  | { kind: 'dead'; cause: DeathCause; evidence: string };

export interface DetectorLimits {
  /** Unexplained silence after which to look closer: four missed beats. */
  suspectAfterMs: number;
  /** Silence of guest and QMP both after which QEMU counts as hung. */
  qemuHungAfterMs: number;
  /** Of that, how long QMP must have been asked in vain. */
  qmpUnansweredMs: number;
  /**
   * Silence of the guest alone, under a QEMU that answers, after which its kernel counts as hung. Longer than the
   * others: a kernel can be busy with itself for some hundred ms and recover, a stopped process can not.
   */
  guestHungAfterMs: number;
}

export const DETECTOR_LIMITS: DetectorLimits = {
  suspectAfterMs: 200,
  qemuHungAfterMs: 400,
  qmpUnansweredMs: 150,
  guestHungAfterMs: 1500,
};

export function judge(seen: Observation, limits: DetectorLimits = DETECTOR_LIMITS): Verdict {
  if (seen.processDied) return { kind: 'dead', cause: 'process-died', evidence: 'the kernel reported its death' };
  if (seen.unannouncedReset)
    return { kind: 'dead', cause: 'guest-reset', evidence: 'the guest reset itself without announcing it (a panic)' };
  if (seen.monitorEnded)
    return { kind: 'dead', cause: 'monitor-ended', evidence: 'the monitor connection ended, QEMU is exiting' };
  // The last word, after what is seen of the process and its heartbeats: those tell more of what is wrong.
  const probed: Verdict | null =
    seen.probeFailure === null ? null : { kind: 'dead', cause: 'probe-failed', evidence: seen.probeFailure };
  if (seen.lastBeatMs === null) return probed ?? { kind: 'alive' };
  const silentMs = seen.nowMs - seen.lastBeatMs - seen.excusedMs;
  if (silentMs < limits.suspectAfterMs) return probed ?? { kind: 'alive' };
  const silence = `no heartbeat for ${Math.round(silentMs)} ms`;
  if (seen.processState === 'T' || seen.processState === 't')
    return { kind: 'dead', cause: 'process-stopped', evidence: `${silence}, and QEMU's process is stopped` };
  const unansweredMs = seen.qmpUnansweredSinceMs === null ? 0 : seen.nowMs - seen.qmpUnansweredSinceMs;
  if (silentMs >= limits.qemuHungAfterMs && unansweredMs - seen.excusedMs >= limits.qmpUnansweredMs)
    return {
      kind: 'dead',
      cause: 'qemu-hung',
      evidence: `${silence}, and QEMU's monitor has not answered for ${Math.round(unansweredMs)} ms`,
    };
  if (silentMs >= limits.guestHungAfterMs && seen.qmpUnansweredSinceMs === null)
    return {
      kind: 'dead',
      cause: 'guest-hung',
      evidence: `${silence} from a guest that had its CPU, and QEMU answers`,
    };
  return probed ?? { kind: 'suspect', silentMs };
}
