import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Archive, thinned } from './archive.js';

const T0 = 1_700_006_400; // a whole day
let dir: string;
let archive: Archive;

beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'shadowvm-archive-'));
  archive = new Archive({
    path: path.join(dir, 'history.db'),
    forecasts: { intervalS: 300, seasonS: 86_400 },
    onOutlook: () => {},
  });
});
afterEach(() => {
  archive.close();
  rmSync(dir, { recursive: true });
});

it('puts neighbours together until there are few enough points', () => {
  const points = Array.from({ length: 600 }, (_, i) => ({ atS: T0 + i, mean: i % 10, max: i }));
  expect(thinned(points, 600)).toMatchObject({ stepS: 1 });
  const few = thinned(points, 60);
  expect(few.stepS).toBe(10);
  expect(few.points).toHaveLength(60);
  expect(few.points[1]).toEqual({ atS: T0 + 10, mean: 4.5, max: 19 });
  expect(thinned([], 10).points).toEqual([]);
});

it('finds a period of minutes in what was taken second by second, across a gap', () => {
  for (let s = 0; s < 3000; s++) {
    if (s > 1000 && s < 1300) continue;
    archive.take([{ vm: 'web', atS: T0 + s, usage: { cpu: s % 300 < 75 ? 80 : 10 } }]);
  }
  const { analysis, intervalS } = archive.analysis('web', 'cpu', T0, T0 + 3000);
  expect(intervalS).toBe(1);
  expect(analysis.class).toBe('periodic');
  expect(analysis.periods[0]!.samples).toBe(300);
  expect(analysis.words).toMatch(/^periodic: half of the time up to 10\.0%.*repeats every 5 min/);
  expect(archive.points('web', 'cpu', T0, T0 + 3000, 100).points.length).toBeLessThanOrEqual(100);
});

it('knows nothing of a VM that was removed, or never was', () => {
  archive.take([{ vm: 'web', atS: T0, usage: { cpu: 1 } }]);
  archive.remove('web');
  expect(archive.points('web', 'cpu', T0, T0 + 10, 10).points).toEqual([]);
  expect(archive.analysis('web', 'cpu', T0, T0 + 10).analysis.class).toBe('unknown');
});
