import { expect, it } from 'vitest';
import { MIB } from '../vm/spec.js';
import {
  affordableStandby,
  planStandby,
  type Readiness,
  riskOf,
  type Signs,
  type StandbyNeed,
  WAITING_MEMORY_BYTES,
} from './standby-plan.js';

const calm: Signs = {
  ...{ failedAgoMs: null, ranOutAgoMs: null, behindAgoMs: null, alarmed: false },
  ...{ availableShare: 0.5, hostShort: 0 },
};
const waiting: Readiness = { level: { level: 'process' }, cpuPercent: 1, memoryBytes: WAITING_MEMORY_BYTES };
const alert: Readiness = {
  level: { level: 'resident', percent: 25 },
  ...{ cpuPercent: 10, memoryBytes: WAITING_MEMORY_BYTES + 64 * MIB },
};
const need = (more: Partial<StandbyNeed> = {}): StandbyNeed => ({
  ...{ ramBytes: 256 * MIB, declared: { level: 'process' }, now: waiting, risk: riskOf(calm) },
  ...{ peak: false, changedAtMs: null, freeBytes: 1024 * MIB },
  ...more,
});
const decide = (more: Partial<StandbyNeed>) => planStandby(need(more), 10_000, 100_000);

it('adds up what threatens a VM, and forgets what is long ago', () => {
  expect(riskOf(calm)).toEqual({ score: 0, reasons: [] });
  expect(riskOf({ ...calm, failedAgoMs: 11 * 60_000 }).score).toBe(0);
  expect(riskOf({ ...calm, failedAgoMs: 1000, ranOutAgoMs: 1000, alarmed: true }).score).toBe(1);
  expect(riskOf({ ...calm, alarmed: true }).reasons).toEqual(['it uses more than is usual for it']);
});

it('is raised ahead of a peak and at a risk, at once, and goes back when it is calm and has cooled down', () => {
  expect(decide({})).toBeNull();
  expect(decide({ peak: true, changedAtMs: 99_999 })).toEqual({ to: alert, why: 'a peak of its load is expected' });
  expect(decide({ risk: { score: 0.8, reasons: ['x'] } })?.to.level).toEqual({ level: 'resident', percent: 100 });
  expect(decide({ now: alert, changedAtMs: 95_000 })).toBeNull();
  expect(decide({ now: alert, changedAtMs: 80_000 })).toEqual({ to: waiting, why: 'nothing threatens it any more' });
});

it('does not swing with a score beside a threshold', () => {
  expect(decide({ risk: { score: 0.25, reasons: [] } })).toBeNull();
  expect(decide({ now: alert, risk: { score: 0.25, reasons: [] }, changedAtMs: 0 })).toBeNull();
});

it('never goes below what was declared, nor beyond what the host has', () => {
  const declared = { level: 'resident', percent: 50 } as const;
  const now = { level: declared, cpuPercent: 1, memoryBytes: WAITING_MEMORY_BYTES + 128 * MIB };
  expect(decide({ declared, now, peak: true })?.to).toEqual({ ...now, cpuPercent: 10 });
  expect(decide({ peak: true, freeBytes: 0 })).toEqual({
    to: { ...waiting, cpuPercent: 10 },
    why: 'a peak of its load is expected; the host has no more memory for it',
  });
});

it('makes a smaller standby where the host is short, rather than no shadow', () => {
  const half = { level: 'resident', percent: 50 } as const;
  expect(affordableStandby(half, 256 * MIB, 200 * MIB)).toBe(half);
  expect(affordableStandby(half, 256 * MIB, 100 * MIB)).toEqual({ level: 'process' });
  expect(affordableStandby(half, 256 * MIB, -1)).toEqual({ level: 'image' });
});
