import { expect, it } from 'vitest';
import { FORECAST_METRICS, type Metric } from '../history/metrics.js';
import { VmForecasts } from './outlook.js';

const settings = { intervalS: 10, seasonS: 240 };
const T0 = 1_700_006_400;
/** A peak in the first quarter of each season. */
const load = (s: number) => (s % 240 < 60 ? 90 : 10);

function feed(forecasts: VmForecasts, from: number, to: number, value: (s: number) => number = load): number {
  let ended = 0;
  for (let s = from; s < to; s++) if (forecasts.take(T0 + s, () => value(s))) ended++;
  return ended;
}

it('takes the highest second of each interval, and tells what comes after it', () => {
  const forecasts = new VmForecasts(settings);
  expect(forecasts.outlooks()).toEqual([]);
  expect(feed(forecasts, 0, 10 * 240 + 1)).toBe(240);
  const outlooks = forecasts.outlooks();
  expect(outlooks.map((each) => each.metric)).toEqual([...FORECAST_METRICS]);
  const [demand] = outlooks;
  expect(demand).toMatchObject({ samples: 240, last: 10, intervalS: 10, atS: T0 + 2400 });
  const expected = demand!.ahead.map((ahead) => ahead.expected);
  // The season begins anew: six intervals of the peak, then not.
  expect(Math.min(...expected.slice(0, 5))).toBeGreaterThan(70);
  expect(Math.max(...expected.slice(7, 12))).toBeLessThan(30);
  for (const ahead of demand!.ahead) expect(ahead.bounds.toSorted((a, b) => a - b)).toEqual(ahead.bounds);
});

it('keeps its place in the season over a gap and a clock that jumps ahead by a year', () => {
  const gap = new VmForecasts(settings);
  feed(gap, 0, 10 * 240);
  feed(gap, 10 * 240 + 35, 12 * 240 + 1);
  expect(gap.outlooks()[0]!.ahead[1]!.expected).toBeGreaterThan(60);
  const jump = new VmForecasts(settings);
  feed(jump, 0, 10 * 240 + 1);
  const year = 365 * 86_400; // whole seasons
  jump.take(T0 + year + 10 * 240, () => 90);
  jump.take(T0 + year + 10 * 240 + 10, () => 90);
  expect(jump.outlooks()[0]!.ahead[1]!.expected).toBeGreaterThan(60);
});

it('neither learns nor lowers anything from what can not be a usage, nor from a clock that goes back', () => {
  const bad = new VmForecasts(settings);
  feed(bad, 0, 2400, () => 50);
  feed(bad, 2400, 3600, (s) => [Number.NaN, -5, Number.POSITIVE_INFINITY, 1e300][s % 4]!);
  feed(bad, 0, 600, () => 0);
  const [outlook] = bad.outlooks();
  expect(outlook!.last).toBe(50);
  expect(outlook!.ahead[0]!.expected).toBeGreaterThan(45);
  expect(outlook!.ahead[0]!.expected).toBeLessThan(55);
});

it('knows nothing of a metric that was never measured', () => {
  const forecasts = new VmForecasts(settings);
  for (let s = 0; s < 100; s++) forecasts.take(T0 + s, (metric: Metric) => (metric === 'demand' ? 5 : Number.NaN));
  expect(forecasts.outlooks().map((each) => each.metric)).toEqual(['demand']);
});
