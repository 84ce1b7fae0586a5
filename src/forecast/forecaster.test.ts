import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Ewma, HoltWinters, LastValue, SeasonalNaive } from './classics.js';
import { Forecaster } from './forecaster.js';
import { syntheticLoad } from './train/synthetic.js';

const SEASON = 288;
/** Loads that the trees were not trained on. */
const UNSEEN = [101, 102];
const DAYS_14 = 14 * SEASON;

function meanError(
  values: number[],
  model: { observe(value: number): void; forecast(steps: number): number },
  steps: number,
): number {
  const due: number[] = [];
  let [sum, count] = [0, 0];
  values.forEach((value, t) => {
    if (t >= DAYS_14) {
      sum += Math.abs(value - due[t]!);
      count++;
    }
    model.observe(value);
    due[t + steps] = model.forecast(steps);
  });
  return sum / count;
}

it('beats each of the classics on loads it has not seen, for the next sample and the next hour', () => {
  for (const seed of UNSEEN) {
    const values = syntheticLoad(seed).slice(0, 18 * SEASON);
    for (const steps of [1, 12]) {
      const ours = meanError(values, new Forecaster({ season: SEASON }), steps);
      const classics = [
        new LastValue(),
        new SeasonalNaive(SEASON),
        new Ewma(0.2),
        new HoltWinters(SEASON, { level: 0.3, trend: 0, season: 0.1, damping: 0.98, residual: 0 }),
      ];
      for (const classic of classics) expect(ours).toBeLessThan(meanError(values, classic, steps));
    }
  }
});

it('covers what upper bounds are asked for', () => {
  const values = syntheticLoad(UNSEEN[0]!).slice(0, 20 * SEASON);
  const forecaster = new Forecaster({ season: SEASON });
  const due: number[] = [];
  let [covered, count] = [0, 0];
  values.forEach((value, t) => {
    if (t >= DAYS_14) {
      covered += value <= due[t]! ? 1 : 0;
      count++;
    }
    forecaster.observe(value);
    due[t + 12] = forecaster.upperBound(12, 0.95);
  });
  expect(covered / count).toBeGreaterThan(0.93);
  expect(covered / count).toBeLessThan(0.97);
});

it('is sane from the first sample on, up to a day ahead', () => {
  const forecaster = new Forecaster({ season: SEASON });
  expect(forecaster.forecast(1)).toBeNaN();
  forecaster.observe(Number.NaN);
  expect(forecaster.forecast(1)).toBeNaN();
  for (let t = 0; t < 20; t++) forecaster.observe(40);
  for (const steps of [1, 2, 12, 100, 288]) {
    expect(forecaster.forecast(steps)).toBeGreaterThan(30);
    expect(forecaster.upperBound(steps, 0.99)).toBeLessThan(80);
  }
});

it('learns nothing from what can not be a usage', () => {
  const bad = fc.constantFrom(Number.NaN, -1, Number.POSITIVE_INFINITY, 1e300, Number.NEGATIVE_INFINITY);
  fc.assert(
    fc.property(
      fc.array(
        fc.oneof({ weight: 4, arbitrary: fc.double({ min: 0, max: 100, noNaN: true }) }, { weight: 1, arbitrary: bad }),
        { maxLength: 300 },
      ),
      (values) => {
        const forecaster = new Forecaster({ season: 24 });
        forecaster.observe(50);
        for (const value of values) forecaster.observe(value);
        for (const steps of [1, 12, 50, 288]) {
          const [point, bound] = [forecaster.forecast(steps), forecaster.upperBound(steps, 0.99)];
          expect(point).toBeGreaterThanOrEqual(0);
          expect(point).toBeLessThanOrEqual(150);
          expect(bound).toBeGreaterThanOrEqual(point);
          expect(Number.isFinite(bound)).toBe(true);
        }
      },
    ),
    { numRuns: 30 },
  );
});
