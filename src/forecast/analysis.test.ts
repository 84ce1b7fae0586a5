import { expect, it } from 'vitest';
import { analyze } from './analysis.js';

const options = { intervalS: 300, idleBelow: 2 };
const series = (samples: number, value: (t: number) => number) => Array.from({ length: samples }, (_, t) => value(t));
/** Not random and not periodic. */
const noise = (t: number) => ((Math.sin(t * t * 0.731) * 43758.5453) % 1) / 2;

it('finds a day, a job every hour, and says so', () => {
  const daily = analyze(
    series(2016, (t) => 30 + 20 * Math.sin((2 * Math.PI * t) / 288) + noise(t)),
    options,
  );
  expect(daily.class).toBe('periodic');
  expect(daily.periods[0]!.samples).toBe(288);
  expect(daily.words).toContain('repeats every 24.0 h');
  expect(
    analyze(
      series(2016, (t) => (t % 12 === 0 ? 40 : 5) + noise(t)),
      options,
    ).periods[0]!.samples,
  ).toBe(12);
});

it('tells idle, steady and bursty apart', () => {
  expect(
    analyze(
      series(1000, (t) => 0.5 + noise(t)),
      options,
    ).class,
  ).toBe('idle');
  expect(
    analyze(
      series(1000, (t) => 40 + noise(t)),
      options,
    ).class,
  ).toBe('steady');
  expect(
    analyze(
      series(1000, (t) => (Math.abs(noise(t * 3 + 1)) > 0.45 ? 80 : 4 + noise(t))),
      options,
    ).class,
  ).toBe('bursty');
  expect(analyze([], options).class).toBe('unknown');
});

it('finds a change of level and a trend', () => {
  const changed = analyze(
    series(2016, (t) => (t < 1200 ? 10 : 40) + noise(t)),
    options,
  );
  expect(changed.changePoints).toHaveLength(1);
  expect(Math.abs(changed.changePoints[0]!.at - 1200)).toBeLessThan(72);
  expect(
    analyze(
      series(2016, (t) => 10 + t / 288 + noise(t)),
      options,
    ).trendPerDay,
  ).toBeCloseTo(1, 1);
});
