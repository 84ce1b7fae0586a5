import { expect, it } from 'vitest';
import { dumpCsv, replay, scoreReplay } from './backtest.js';
import type { Row } from './series-file.js';
import { syntheticLoad } from './train/synthetic.js';

const options = { intervalS: 300, train: 576, season: 288, safety: [0.9, 0.99] };
const rowsOf = (values: number[]): Row[] => values.map((value) => ({ value, gap: 0, stale: false }));
const VALUES = syntheticLoad(7).slice(0, 900);

it('does not look ahead: another future changes nothing before it', () => {
  const from = 700;
  const other = VALUES.map((value, t) => (t < from ? value : 100 - value));
  const [a, b] = [replay(rowsOf(VALUES), options), replay(rowsOf(other), options)];
  // The forecasts of sample `from` were made before it; limits are decided before it is seen.
  expect(a.short.slice(0, from + 1)).toEqual(b.short.slice(0, from + 1));
  expect(a.long.slice(0, from + 12)).toEqual(b.long.slice(0, from + 12));
  expect(a.limits[1]!.slice(0, from + 1)).toEqual(b.limits[1]!.slice(0, from + 1));
  expect(a.short.slice(from + 1, from + 5)).not.toEqual(b.short.slice(from + 1, from + 5));
});

it('decides limits at most once in 12 samples', () => {
  const { limits } = replay(rowsOf(VALUES), options);
  for (const limit of limits)
    for (let t = 13, changedAt = 12; t < limit.length; t++) {
      if (limit[t] === limit[t - 1]) continue;
      expect(t - changedAt).toBeGreaterThanOrEqual(12);
      changedAt = t;
    }
});

it('goes on over gaps and stale rows', () => {
  const rows = rowsOf(VALUES);
  rows[600]!.gap = 30;
  rows[650]!.value = Number.NaN;
  rows[660]!.stale = true;
  const score = scoreReplay(replay(rows, options), options);
  expect(score.mase['1']).toBeGreaterThan(0);
  expect(score.limits['0.99']!.coverage).toBeGreaterThan(0.9);
});

it('dumps one line per row under the header that was agreed', () => {
  const lines = dumpCsv(replay(rowsOf(VALUES.slice(0, 30)), options), options.safety).split('\n');
  expect(lines[0]).toBe('t,y,f1,f12,limit@0.9,limit@0.99');
  expect(lines[1]).toBe(`0,${VALUES[0]},NaN,NaN,NaN,NaN`);
  expect(lines[30]!.split(',').map(Number).every(Number.isFinite)).toBe(true);
  expect(lines).toHaveLength(32);
});
