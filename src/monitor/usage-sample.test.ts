import { expect, it } from 'vitest';
import { sampleBetween, usageOf, type VmReading, workingSet } from './usage-sample.js';

const MIB = 2 ** 20;
const reading = (more: Partial<VmReading> = {}): VmReading => ({
  atMs: 0,
  pid: 7,
  cpuMs: 0,
  waitedMs: 0,
  throttledMs: 0,
  networkBytes: 0,
  networkPackets: 0,
  diskBytes: null,
  diskOperations: null,
  memTotalBytes: 230 * MIB,
  memAvailableBytes: 200 * MIB,
  balloonBytes: 256 * MIB,
  residentBytes: 90 * MIB,
  epochs: null,
  ...more,
});

it('relates counters to the time between the readings, in percent of one CPU', () => {
  const to = { atMs: 500, cpuMs: 150, waitedMs: 200, throttledMs: 150, networkBytes: 1000, networkPackets: 10 };
  expect(sampleBetween(reading(), reading(to), 2)).toEqual({
    cpu: 30,
    throttled: 30,
    stolen: 10,
    demand: 60,
    memory: 30 * MIB,
    balloon: 256 * MIB,
    'guest-memory': 90 * MIB,
    'network-bytes': 2000,
    'network-packets': 20,
  });
});

it('takes no more for demand than a VM can use, and no less than it used', () => {
  const demand = (cpuMs: number, throttledMs: number) =>
    sampleBetween(reading(), reading({ atMs: 1000, cpuMs, throttledMs }), 1)?.demand;
  expect(demand(300, 5000)).toBe(200);
  expect(demand(2500, 0)).toBe(250);
});

it('leaves out what was not measured, and everything of another process', () => {
  const nothing = { waitedMs: null, throttledMs: null, networkBytes: null, networkPackets: null, memTotalBytes: null };
  const sample = sampleBetween(reading(nothing), reading({ ...nothing, atMs: 1000, cpuMs: 500 }), 1);
  expect(sample).toEqual({ cpu: 50, demand: 50, balloon: 256 * MIB, 'guest-memory': 90 * MIB });
  expect(sampleBetween(reading(), reading({ atMs: 1000, pid: 8 }), 1)).toBeNull();
  expect(sampleBetween(reading(), reading({ atMs: 0 }), 1)).toBeNull();
  expect(sampleBetween(reading({ cpuMs: 5 }), reading({ atMs: 9 }), 1)).toBeNull();
  expect(sampleBetween(reading({ networkBytes: 9 }), reading({ atMs: 1 }), 1)).not.toHaveProperty('network-bytes');
});

it('counts what the disks did where there are any', () => {
  const from = reading({ diskBytes: 4096, diskOperations: 1 });
  expect(sampleBetween(from, reading({ atMs: 500, diskBytes: 12_288, diskOperations: 3 }), 1)).toMatchObject({
    'disk-bytes': 16_384,
    'disk-operations': 4,
  });
});

it('tells triggers percent of what the VM has, and nothing of what its balloon took', () => {
  const judged = (from: VmReading, to: VmReading, before: Parameters<typeof usageOf>[3] = null) =>
    usageOf(sampleBetween(from, to, 2)!, to, 2, before);
  const later = { atMs: 500, cpuMs: 500, networkBytes: 1000 };
  const usage = judged(reading(), reading({ ...later, memAvailableBytes: 57.5 * MIB }));
  expect(usage).toEqual({ cpuPercent: 50, memoryPercent: 75, networkBytesPerSecond: 2000 });
  // 172.5 MiB are not available, of which a balloon has 156.
  const ballooned = { balloonBytes: 100 * MIB, memAvailableBytes: 57.5 * MIB };
  expect(judged(reading(ballooned), reading({ ...later, ...ballooned })).memoryPercent).toBeCloseTo(18.5, 1);
  // While it moves nothing is known, and what was known holds: a trigger's time does not begin anew.
  expect(judged(reading(), reading({ ...later, ...ballooned }), usage).memoryPercent).toBe(75);
  expect(judged(reading(), reading({ ...later, memTotalBytes: null })).memoryPercent).toBe(0);
});

it('tells pause and dirty rate of the epochs in between', () => {
  const epochs = { count: 10, changedPages: 100, pausedMs: 20, lagMs: 40 };
  const later = { count: 14, changedPages: 350, pausedMs: 30, lagMs: 55 };
  expect(sampleBetween(reading({ epochs }), reading({ atMs: 1000, epochs: later }), 1)).toMatchObject({
    pause: 2.5,
    lag: 55,
    'dirty-rate': 250 * 4096,
  });
  // A new protection begins to count anew.
  expect(sampleBetween(reading({ epochs: later }), reading({ atMs: 1000, epochs }), 1)).not.toHaveProperty('pause');
});

it('does not take for used what a balloon has taken', () => {
  // With deflate-on-oom the guest's total stays: 100 MiB in the balloon are neither available nor used.
  const ballooned = { memTotalBytes: 230 * MIB, memAvailableBytes: 100 * MIB, balloonBytes: 156 * MIB };
  expect(workingSet(ballooned)).toBe(56 * MIB);
  expect(workingSet({ memTotalBytes: 130 * MIB, memAvailableBytes: 100 * MIB, balloonBytes: 156 * MIB })).toBe(
    30 * MIB,
  );
});

it('does not know what is used while a balloon moves', () => {
  const moved = sampleBetween(reading(), reading({ atMs: 1000, balloonBytes: 200 * MIB }), 1);
  expect(moved).not.toHaveProperty('memory');
  expect(moved).toMatchObject({ balloon: 200 * MIB });
});
