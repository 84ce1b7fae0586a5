import { expect, it } from 'vitest';
import { type Load, outlay } from './capacity.js';

const load = (expected: number, spread: number, more: Partial<Load> = {}): Load => ({
  ahead: [1, 2, 3].map((steps) => ({ steps, expected, bounds: [0.84, 1.645, 2.33].map((z) => expected + z * spread) })),
  ...{ otherwise: 0, max: 1000 },
  ...more,
});

it('tells the chance of the sum, which is less than that of all peaks at once', () => {
  const loads = Array.from({ length: 10 }, () => load(50, 10));
  const { expected, peaks, shortChance } = outlay(loads, 600, 3);
  expect(expected).toBeCloseTo(500);
  expect(peaks).toBeCloseTo(664.5);
  // Ten of variance 100, correlated by a fifth: a deviation of 53.
  expect(shortChance).toBeGreaterThan(0.01);
  expect(shortChance).toBeLessThan(0.08);
  expect(outlay(loads, 500, 3).shortChance).toBeGreaterThan(0.35);
  expect(outlay(loads, 900, 3).shortChance).toBe(0);
  expect(outlay(loads, 600, 3)).toEqual(outlay(loads, 600, 3));
});

it('looks at the step that is worst, and only so far ahead', () => {
  const rising = load(10, 0);
  rising.ahead[2]!.expected = 90;
  rising.ahead[2]!.bounds = [90, 90, 90];
  expect(outlay([rising], 50, 3)).toEqual({ expected: 90, peaks: 90, shortChance: 1 });
  expect(outlay([rising], 50, 2)).toEqual({ expected: 10, peaks: 10, shortChance: 0 });
});

it('takes what is used where nothing is known, and no more than a VM can use', () => {
  expect(outlay([load(0, 0, { ahead: [], otherwise: 70 })], 60, 3)).toEqual({
    expected: 70,
    peaks: 70,
    shortChance: 1,
  });
  expect(outlay([load(500, 100, { max: 100 })], 100, 3)).toEqual({ expected: 100, peaks: 100, shortChance: 0 });
  expect(outlay([], 100, 3)).toEqual({ expected: 0, peaks: 0, shortChance: 0 });
});
