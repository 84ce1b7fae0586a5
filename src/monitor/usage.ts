/** What a VM uses, from counters that the kernel and the guest keep. */
import { cpuSeconds } from '../host/process-stat.js';
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

export function readCounters(pid: number, networkBytes: number, beat: Beat | null, atMs: number): UsageCounters | null {
  const seconds = cpuSeconds(pid);
  if (seconds === null) return null; // it ended; the failure watch tells
  return {
    atMs,
    cpuMs: seconds * 1000,
    networkBytes,
    memTotalKiB: beat?.memTotalKiB ?? 0,
    memAvailableKiB: beat?.memAvailableKiB ?? 0,
  };
}
