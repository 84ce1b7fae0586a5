import { expect, it } from 'vitest';
import { Limits, SAMPLES_PER_DECISION } from './limit.js';
import { scoreLimits } from './score.js';
import { syntheticLoad } from './train/synthetic.js';

const SAFETY = [0.9, 0.99];

function run(values: number[], forecast: (t: number) => number = (t) => values[t]!) {
  const limits = new Limits(SAFETY);
  const inForce: number[][] = SAFETY.map(() => []);
  values.forEach((value, t) => {
    inForce.forEach((limit, i) => {
      limit.push(limits.limits[i]!);
    });
    limits.observe(value, () => forecast(t));
  });
  return inForce;
}

it('covers about what it is asked for, with few changes where a day has many ups and downs', () => {
  const means = SAFETY.map(() => ({ coverage: 0, changesPerDay: 0 }));
  const seeds = [201, 202, 203, 204];
  for (const seed of seeds) {
    const values = syntheticLoad(seed);
    run(values).forEach((limit, i) => {
      const score = scoreLimits(values, limit, 4032, 288, SAMPLES_PER_DECISION);
      means[i]!.coverage += score.coverage / seeds.length;
      means[i]!.changesPerDay += score.changesPerDay / seeds.length;
    });
  }
  SAFETY.forEach((safety, i) => {
    expect(Math.abs(means[i]!.coverage - safety)).toBeLessThan(0.03);
    expect(means[i]!.changesPerDay).toBeLessThan(4);
  });
});

it('does not lower a limit because samples did not come', () => {
  const values = [...syntheticLoad(3).slice(0, 2000), ...Array<number>(300).fill(Number.NaN)];
  const [, limit] = run(values, () => Number.NaN);
  expect(limit!.at(-1)).toBe(limit![2004]);
});

it('has room above what was seen in the first day', () => {
  const [low, high] = run(syntheticLoad(5).slice(0, 200));
  const seen = Math.max(...syntheticLoad(5).slice(0, 192));
  expect(high!.at(-1)).toBeGreaterThanOrEqual(seen);
  expect(low!.at(-1)).toBeGreaterThanOrEqual(seen);
});
