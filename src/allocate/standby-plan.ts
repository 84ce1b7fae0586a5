/**
 * How ready a VM's shadow should be: pure. What waits beside the image is raised ahead of a predicted peak and when a
 * failure is likelier than usual, and goes back to what was declared when that is over.
 */
import { MIB, type StandbyLevel } from '../vm/spec.js';

export interface Readiness {
  level: StandbyLevel;
  /** What its waiting QEMU may use. */
  cpuPercent: number;
  memoryBytes: number;
}

/** What is known of how a VM does. Times are ago, in ms; null: never. */
export interface Signs {
  /** A failure, or the suspicion of one. */
  failedAgoMs: number | null;
  /** Its kernel ended a program for want of memory. */
  ranOutAgoMs: number | null;
  /** Epochs were given up, or the shadow fell behind. */
  behindAgoMs: number | null;
  /** It uses more than is usual for it. */
  alarmed: boolean;
  /** Share of its RAM that is available to its programs, 0–1; null: not told. */
  availableShare: number | null;
  /** The chance that the host is short of memory in the next hour, 0–1. */
  hostShort: number;
}

export interface Risk {
  /** 0–1. */
  score: number;
  reasons: string[];
}

const RECENT_MS = 10 * 60_000;
const LOW_SHARE = 0.05;
const HOST_SHORT = 0.1;

export function riskOf(signs: Signs): Risk {
  const recent = (agoMs: number | null) => agoMs !== null && agoMs < RECENT_MS;
  const weighed: [boolean, number, string][] = [
    [recent(signs.failedAgoMs), 0.5, 'it failed, or seemed to, in the last 10 min'],
    [recent(signs.ranOutAgoMs), 0.5, 'it ran out of memory in the last 10 min'],
    [recent(signs.behindAgoMs), 0.2, 'its shadow was behind in the last 10 min'],
    [signs.alarmed, 0.3, 'it uses more than is usual for it'],
    [signs.availableShare !== null && signs.availableShare < LOW_SHARE, 0.3, 'it has hardly any memory left'],
    [signs.hostShort > HOST_SHORT, 0.3, 'the host may be short of memory'],
  ];
  const holding = weighed.filter(([holds]) => holds);
  return {
    score: Math.min(
      1,
      holding.reduce((sum, [, weight]) => sum + weight, 0),
    ),
    reasons: holding.map(([, , reason]) => reason),
  };
}

export interface StandbyNeed {
  ramBytes: number;
  declared: StandbyLevel;
  now: Readiness;
  risk: Risk;
  /** A peak of its load is expected within the look-ahead. */
  peak: boolean;
  changedAtMs: number | null;
  /** What the host can still give to standbys. */
  freeBytes: number;
}

export interface StandbyDecision {
  to: Readiness;
  why: string;
}

/** What a waiting QEMU needs for itself. */
export const WAITING_CPU_PERCENT = 1;
export const WAITING_MEMORY_BYTES = 192 * MIB;
/** Of that it really takes so much, without any RAM of its guest. */
export const WAITING_PRIVATE_BYTES = 40 * MIB;
const ALERT_CPU_PERCENT = 10;
const ALERT_RESIDENT_PERCENT = 25;
const ALARM_RESIDENT_PERCENT = 100;
/** From these scores on it is raised; it goes back below {@link CALM_SHARE} of them. */
const ALERT_SCORE = 0.3;
const ALARM_SCORE = 0.7;
const CALM_SHARE = 0.7;

/** null: it stays as it is. */
export function planStandby(need: StandbyNeed, coolDownMs: number, nowMs: number): StandbyDecision | null {
  const { declared, now, risk, peak, changedAtMs, ramBytes, freeBytes } = need;
  const residentNow = residentPercent(now.level);
  // On the way down the thresholds are lower, so that a score beside one does not make it swing.
  const raised = (score: number, percent: number) =>
    risk.score >= (residentNow >= Math.max(percent, residentPercent(declared) + 1) ? score * CALM_SHARE : score);
  const wanted = raised(ALARM_SCORE, ALARM_RESIDENT_PERCENT)
    ? ALARM_RESIDENT_PERCENT
    : peak || raised(ALERT_SCORE, ALERT_RESIDENT_PERCENT)
      ? ALERT_RESIDENT_PERCENT
      : 0;
  const affordable = Math.floor((100 * Math.max(0, freeBytes)) / ramBytes) + residentNow;
  const percent = Math.max(residentPercent(declared), Math.min(wanted, affordable));
  const level: StandbyLevel = percent > residentPercent(declared) ? { level: 'resident', percent } : declared;
  const to: Readiness = {
    level,
    cpuPercent: wanted > 0 ? ALERT_CPU_PERCENT : WAITING_CPU_PERCENT,
    memoryBytes: WAITING_MEMORY_BYTES + Math.round((residentPercent(level) / 100) * ramBytes),
  };
  if (sameLevel(to.level, now.level) && to.cpuPercent === now.cpuPercent && to.memoryBytes === now.memoryBytes)
    return null;
  // Up is for a danger, and does not wait; down waits.
  const up = residentPercent(to.level) > residentNow || to.cpuPercent > now.cpuPercent;
  if (!up && changedAtMs !== null && nowMs - changedAtMs < coolDownMs) return null;
  const reasons = [...risk.reasons, ...(peak ? ['a peak of its load is expected'] : [])];
  const why = reasons.length === 0 ? 'nothing threatens it any more' : reasons.join(', ');
  return { to, why: wanted > percent ? `${why}; the host has no more memory for it` : why };
}

export function sameLevel(a: StandbyLevel, b: StandbyLevel): boolean {
  return a.level === b.level && residentPercent(a) === residentPercent(b);
}

function residentPercent(level: StandbyLevel): number {
  return level.level === 'resident' ? level.percent : 0;
}

/** What of a standby can be paid for: all of it, a QEMU without RAM, or nothing but the image. */
export function affordableStandby(level: StandbyLevel, ramBytes: number, freeBytes: number): StandbyLevel {
  const needed = (residentPercent(level) / 100) * ramBytes + WAITING_PRIVATE_BYTES;
  if (level.level === 'image' || needed <= freeBytes) return level;
  return WAITING_PRIVATE_BYTES <= freeBytes ? { level: 'process' } : { level: 'image' };
}
