import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { pacingSchema } from '../vm/spec.js';
import { type EpochCost, nextIntervalMs, smoothCost } from './pacing.js';

const limits = pacingSchema.parse({});
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

  it('follows a change within a few epochs', () => {
    let cost = smoothCost(null, busy);
    for (let i = 0; i < 10; i++) cost = smoothCost(cost, { ...busy, pauseMs: 13 });
    expect(cost.pauseMs).toBeGreaterThan(12.5);
  });
});
