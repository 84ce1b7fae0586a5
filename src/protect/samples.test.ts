import fc from 'fast-check';
import { expect, test } from 'vitest';
import { quantile, Samples } from './samples.js';

test('of nothing there are no quantiles', () =>
  expect(new Samples().quantiles()).toEqual({ count: 0, p50: null, p99: null, max: null }));

test('they are values that were really measured, by nearest rank', () => {
  const samples = new Samples();
  for (let ms = 100; ms >= 1; ms--) samples.add(ms);
  expect(samples.quantiles()).toEqual({ count: 100, p50: 50, p99: 99, max: 100 });
  expect([quantile([1, 2, 3], 0), quantile([1, 2, 3], 1), quantile([7], 0.5), quantile([], 0.5)]).toEqual([
    1,
    3,
    7,
    null,
  ]);
});

test('only the last 4096 count, and the number of all is told', () => {
  const samples = new Samples();
  for (let i = 0; i < 4096; i++) samples.add(1000);
  for (let i = 0; i < 4096; i++) samples.add(1);
  expect(samples.quantiles()).toEqual({ count: 8192, p50: 1, p99: 1, max: 1 });
});

test('half of the values are at or below the median, and 99 % below the 99th', () =>
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 300 }), (values) => {
      const samples = new Samples();
      for (const value of values) samples.add(value);
      const { p50, p99, max } = samples.quantiles();
      expect(max).toBe(Math.max(...values));
      for (const [q, at] of [
        [0.5, p50],
        [0.99, p99],
      ] as const) {
        expect(values).toContain(at);
        expect(values.filter((v) => v <= at!).length).toBeGreaterThanOrEqual(q * values.length);
        expect(values.filter((v) => v < at!).length).toBeLessThan(q * values.length);
      }
    }),
  ));
