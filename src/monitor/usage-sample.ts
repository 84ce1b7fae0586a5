/** What a VM used in a second or a part of it, from two readings of its counters: pure. What was not measured is left out. */
import type { UsageSample } from '../history/metrics.js';
import type { Usage } from './thresholds.js';
import { isUsage } from './usage-value.js';

/** Readings at one moment. Those that only grow are compared; the others are taken as they are. null: not measured. */
export interface VmReading {
  atMs: number;
  /** Another process has other counters. */
  pid: number;
  cpuMs: number;
  /** Time that its threads waited for a CPU, the quota's included. */
  waitedMs: number | null;
  /** Time that the quota held them back. */
  throttledMs: number | null;
  networkBytes: number | null;
  networkPackets: number | null;
  /** Of all the guest's disks, reads and writes together. */
  diskBytes: number | null;
  diskOperations: number | null;
  /** Of the guest. */
  memTotalBytes: number | null;
  memAvailableBytes: number | null;
  /** What the balloon leaves to the guest. */
  balloonBytes: number;
  residentBytes: number;
  /** Of the present protection; null without one. */
  epochs: { count: number; changedPages: number; pausedMs: number; lagMs: number | null } | null;
}

const PAGE_BYTES = 4096;

/** null when no time has passed or the process is another one. @param vcpus of the VM */
export function sampleBetween(from: VmReading, to: VmReading, vcpus: number): UsageSample | null {
  const ms = to.atMs - from.atMs;
  if (!(ms > 0) || from.pid !== to.pid || to.cpuMs < from.cpuMs) return null;
  const grown = (pick: (reading: VmReading) => number | null): number => {
    const [before, after] = [pick(from), pick(to)];
    return before === null || after === null || after < before ? Number.NaN : after - before;
  };
  const cpu = (100 * (to.cpuMs - from.cpuMs)) / ms;
  const throttled = (100 * grown((reading) => reading.throttledMs)) / ms;
  const waited = (100 * grown((reading) => reading.waitedMs)) / ms;
  const perS = (amount: number) => (1000 * amount) / ms;
  return measured({
    cpu,
    throttled,
    stolen: Number.isNaN(throttled) ? waited : Math.max(0, waited - throttled),
    // QEMU's main loop beside the vCPUs: more than that no VM can use, whatever its threads waited for.
    demand: Math.max(cpu, Math.min(cpu + (throttled || 0), 100 * (vcpus + 1))),
    // While a balloon moves, the guest's figures and the balloon's are of different moments: their difference is nobody's.
    memory: from.balloonBytes === to.balloonBytes ? (workingSet(to) ?? Number.NaN) : Number.NaN,
    balloon: to.balloonBytes,
    'guest-memory': to.residentBytes,
    'network-bytes': perS(grown((reading) => reading.networkBytes)),
    'network-packets': perS(grown((reading) => reading.networkPackets)),
    'disk-bytes': perS(grown((reading) => reading.diskBytes)),
    'disk-operations': perS(grown((reading) => reading.diskOperations)),
    ...protection(from, to, ms),
  });
}

/** What triggers and alarms are judged by. @param before what is not measured this time is taken to be as it was */
export function usageOf(sample: UsageSample, { memTotalBytes }: VmReading, vcpus: number, before: Usage | null): Usage {
  const { cpu = 0, memory, 'network-bytes': networkBytesPerSecond = 0 } = sample;
  const isKnown = memory !== undefined && memTotalBytes !== null && memTotalBytes > 0;
  return {
    cpuPercent: cpu / vcpus,
    memoryPercent: isKnown ? (100 * memory) / memTotalBytes : (before?.memoryPercent ?? 0),
    networkBytesPerSecond,
  };
}

/**
 * What the guest can not do without. A balloon that would shrink for programs in need (deflate-on-oom) leaves the
 * guest's total as it is, and what it took counts as used: that is told from a total above what the balloon leaves.
 */
export function workingSet(
  reading: Pick<VmReading, 'memTotalBytes' | 'memAvailableBytes' | 'balloonBytes'>,
): number | null {
  const { memTotalBytes, memAvailableBytes, balloonBytes } = reading;
  if (memTotalBytes === null || memAvailableBytes === null) return null;
  return Math.max(0, Math.min(memTotalBytes, balloonBytes) - memAvailableBytes);
}

function protection(from: VmReading, to: VmReading, ms: number): UsageSample {
  const [before, after] = [from.epochs, to.epochs];
  if (after === null) return {};
  const lag = after.lagMs === null ? {} : { lag: after.lagMs };
  if (before === null || after.count <= before.count || after.changedPages < before.changedPages) return lag;
  return {
    ...lag,
    pause: (after.pausedMs - before.pausedMs) / (after.count - before.count),
    'dirty-rate': (1000 * PAGE_BYTES * (after.changedPages - before.changedPages)) / ms,
  };
}

function measured(usage: UsageSample): UsageSample {
  return Object.fromEntries(Object.entries(usage).filter(([, value]) => isUsage(value)));
}
