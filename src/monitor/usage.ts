/** What a VM uses, from counters that the kernel and the guest keep. */
import fs from 'node:fs';
import type { Beat } from '../qemu/agent.js';
import type { Usage } from './thresholds.js';

/** Counters at one moment; differences of two make a Usage. */
export interface UsageCounters {
  atMs: number;
  /** CPU time of the QEMU process, all threads. */
  cpuMs: number;
  networkBytes: number;
  memTotalKiB: number;
  memAvailableKiB: number;
}

/** Usage between two readings; null when no time has passed or a counter went back (another process, a new tap). */
export function usageBetween(from: UsageCounters, to: UsageCounters, vcpus: number): Usage | null {
  const ms = to.atMs - from.atMs;
  if (!(ms > 0) || to.cpuMs < from.cpuMs || to.networkBytes < from.networkBytes) return null;
  return {
    cpuPercent: ((to.cpuMs - from.cpuMs) / ms / vcpus) * 100,
    memoryPercent: to.memTotalKiB > 0 ? (1 - to.memAvailableKiB / to.memTotalKiB) * 100 : 0,
    networkBytesPerSecond: ((to.networkBytes - from.networkBytes) / ms) * 1000,
  };
}

/** USER_HZ: fixed at 100 for every architecture that ShadowVM runs on. */
const TICK_MS = 10;

/** Fields 14 and 15 of /proc/PID/stat, in ms; null when the process is gone. */
export function parseCpuMs(stat: string): number | null {
  // The second field is the command in parentheses, and may itself contain both of them and blanks.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticks = Number(fields[11]) + Number(fields[12]);
  return Number.isFinite(ticks) ? ticks * TICK_MS : null;
}

export function readCounters(pid: number, networkBytes: number, beat: Beat | null, atMs: number): UsageCounters | null {
  let cpuMs: number | null;
  try {
    cpuMs = parseCpuMs(fs.readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return null; // it ended; the failure watch tells
  }
  if (cpuMs === null) return null;
  return {
    atMs,
    cpuMs,
    networkBytes,
    memTotalKiB: beat?.memTotalKiB ?? 0,
    memAvailableKiB: beat?.memAvailableKiB ?? 0,
  };
}
