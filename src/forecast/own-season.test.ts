import { expect, it } from 'vitest';
import { Forecaster } from './forecaster.js';
import { OwnSeasonForecaster } from './own-season.js';
import { randomFrom } from './train/boost.js';

const DAY = 288;

/** A load that repeats every `period` samples, with a shape that the newest samples do not tell. */
function load(period: number, samples: number): number[] {
  const random = randomFrom(period);
  const shape = Array.from({ length: period }, () => (random() < 0.1 ? 60 + 30 * random() : 10));
  return Array.from({ length: samples }, (_, t) => shape[t % period]! + 2 * random());
}

function errorOfNewest(values: number[], model: Pick<Forecaster, 'observe' | 'forecast'>, newest: number): number {
  const due: number[] = [];
  let sum = 0;
  values.forEach((value, t) => {
    if (t >= values.length - newest) sum += Math.abs(value - due[t]!);
    model.observe(value);
    due[t + 12] = model.forecast(12);
  });
  return sum / newest;
}

it('finds that a load repeats every 70 samples and not every day, and forecasts it better for it', () => {
  const values = load(70, 1200);
  const own = new OwnSeasonForecaster(DAY);
  const [ours, daily] = [errorOfNewest(values, own, 300), errorOfNewest(values, new Forecaster({ season: DAY }), 300)];
  expect(own.season % 70).toBe(0);
  expect(ours).toBeLessThan(0.7 * daily);
});

it('keeps the season that it was given for what repeats with it, and for what does not repeat', () => {
  const random = randomFrom(1);
  for (const values of [load(144, 1000), Array.from({ length: 1000 }, () => 100 * random())]) {
    const own = new OwnSeasonForecaster(DAY);
    for (const value of values) own.observe(value);
    expect(own.season).toBe(DAY);
  }
});

it('learns no season from what can not be a usage, and forecasts on', () => {
  const bad = [Number.NaN, -1, Number.POSITIVE_INFINITY, 1e300];
  const own = new OwnSeasonForecaster(DAY);
  load(70, 600).forEach((value, t) => {
    own.observe(t % 9 === 8 ? bad[t % 4]! : value);
  });
  for (const steps of [1, 12, DAY]) {
    expect(own.forecast(steps)).toBeLessThan(150);
    expect(own.upperBound(steps, 0.99)).toBeLessThan(300);
  }
});
