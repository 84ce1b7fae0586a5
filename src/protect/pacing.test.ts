import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { pacingSchema } from '../vm/spec.js';
import { type EpochCost, isDueStrict, lookAgainMs, nextIntervalMs, smoothCost, type Waiting } from './pacing.js';

const limits = pacingSchema.parse({});
const silent: Waiting = { oldestMs: 0, newestMs: 0, complete: false, idle: null };
const busy: EpochCost = { pauseMs: 3, cpuMs: 4, epochMs: 6, dirtyPagesPerSecond: 50_000 };

describe('epoch pacing', () => {
  it('keeps the guest running 97 % of the time by default', () => {
    const intervalMs = nextIntervalMs(busy, limits);
    expect(busy.pauseMs / (busy.pauseMs + intervalMs)).toBeCloseTo(0.03, 3);
  });

  it('keeps to the CPU budget when epochs are dear', () => {
    const intervalMs = nextIntervalMs({ ...busy, cpuMs: 30, epochMs: 30 }, { ...limits, maxLagMs: 10_000 });
    expect(30 / (30 + intervalMs)).toBeCloseTo(0.15, 3);
  });

  it('waits for work when the guest idles, but no longer than the lag allows', () => {
    const idle = { ...busy, dirtyPagesPerSecond: 800 };
    expect(nextIntervalMs(idle, limits)).toBeCloseTo(320, 0);
    expect(nextIntervalMs({ ...busy, dirtyPagesPerSecond: 0 }, limits)).toBe(limits.maxLagMs - 2 * busy.epochMs);
  });

  it('lets the lag outrank thrift, and half of the time running outrank the lag', () => {
    expect(nextIntervalMs(busy, { ...limits, maxLagMs: 40 })).toBe(28);
    expect(nextIntervalMs({ ...busy, pauseMs: 60, epochMs: 70 }, { ...limits, maxLagMs: 40 })).toBe(60);
  });

  it('never lets the guest stand more than it runs, nor the lag grow beyond the wish without need', () => {
    const positive = (max: number) => fc.double({ min: 0, max, noNaN: true });
    fc.assert(
      fc.property(
        positive(500),
        positive(500),
        positive(1000),
        positive(1e6),
        fc.integer({ min: 20, max: 5000 }),
        (pauseMs, cpuMs, more, dirtyPagesPerSecond, maxLagMs) => {
          const epochMs = pauseMs + more;
          const intervalMs = nextIntervalMs({ pauseMs, cpuMs, epochMs, dirtyPagesPerSecond }, { ...limits, maxLagMs });
          expect(intervalMs).toBeGreaterThanOrEqual(Math.max(10, pauseMs - 1e-6));
          expect(intervalMs).toBeLessThanOrEqual(Math.max(maxLagMs, pauseMs, 10));
        },
      ),
    );
  });

  it('cuts in strict mode when the guest has answered, and not before', () => {
    const cost = { pauseMs: 2, cpuMs: 3, epochMs: 6, dirtyPagesPerSecond: 20_000 };
    const due = (sinceEpochMs: number, waiting: Partial<Waiting> | null) =>
      isDueStrict(sinceEpochMs, waiting && { ...silent, ...waiting }, cost, limits);
    expect(due(1, { oldestMs: 3, newestMs: 2 })).toBe(true);
    // It goes on sending: gathered, but not without end.
    expect(due(1, { oldestMs: 3, newestMs: 0 })).toBe(false);
    expect(due(9, { oldestMs: 9, newestMs: 0 })).toBe(false);
    expect(due(18, { oldestMs: 18, newestMs: 0 })).toBe(true);
    const dear = { ...cost, epochMs: 50 };
    expect(isDueStrict(25, { ...silent, oldestMs: 25 }, dear, limits)).toBe(true);
    // Everybody who was answered last has asked again and got his answer.
    expect(due(1, { oldestMs: 1, newestMs: 0, complete: true })).toBe(true);
    // Nothing waits: as rarely as an idle VM in async mode, but never so rarely that a hold grows old.
    expect(due(20, null)).toBe(false);
    expect(due(500, null)).toBe(true);
    expect(isDueStrict(500, null, { ...cost, dirtyPagesPerSecond: 0 }, { ...limits, maxLagMs: 60_000 })).toBe(true);
    // It has to run as long as it stands.
    expect(
      isDueStrict(
        1,
        { oldestMs: 9, newestMs: 9, complete: true, idle: true },
        { ...cost, pauseMs: 20, epochMs: 22 },
        limits,
      ),
    ).toBe(false);
  });

  it('lets a guest that is still at work in strict mode come to its end, but not for ever', () => {
    const cost = { pauseMs: 2, cpuMs: 3, epochMs: 6, dirtyPagesPerSecond: 20_000 };
    const due = (waiting: Partial<Waiting>) => isDueStrict(5, { ...silent, ...waiting }, cost, limits);
    for (const idle of [true, null]) {
      expect(due({ complete: true, idle })).toBe(true);
      expect([1, 2].map((newestMs) => due({ newestMs, idle }))).toEqual([false, true]);
    }
    // Others' answers are on their way: theirs would be those of another epoch.
    expect([0, 3, 5].map((newestMs) => due({ complete: true, newestMs, idle: false }))).toEqual([false, false, true]);
    expect([10, 17, 18].map((oldestMs) => due({ oldestMs, newestMs: 10, idle: false }))).toEqual([false, false, true]);
  });

  it('lets a guest that woke up speak its first words to their end', () => {
    expect(isDueStrict(20, { ...silent, oldestMs: 5, newestMs: 5 }, null, limits)).toBe(false);
    expect(isDueStrict(20, { ...silent, oldestMs: 8, newestMs: 6 }, null, limits)).toBe(true);
    expect(isDueStrict(80, null, null, limits)).toBe(true);
  });

  it('looks less often at a guest that is silent', () => {
    expect(lookAgainMs(0)).toBe(1);
    expect(lookAgainMs(1000)).toBeGreaterThan(1);
  });

  it('follows a change within a few epochs', () => {
    let cost = smoothCost(null, busy);
    for (let i = 0; i < 10; i++) cost = smoothCost(cost, { ...busy, pauseMs: 13 });
    expect(cost.pauseMs).toBeGreaterThan(12.5);
  });
});
