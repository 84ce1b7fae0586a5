import { expect, it } from 'vitest';
import { chart } from './chart.js';

const options = { fromMs: 0, toMs: 4000, columns: 4, rows: 2, label: (value: number) => `${value}%` };
const point = (second: number, mean: number, max = mean) => ({ atMs: second * 1000, mean, max });

it('draws means as columns and what was higher as dots, on a scale from 0 to the highest', () => {
  expect(chart([point(0, 100), point(1, 50), point(2, 25, 100), point(3, 0)], options)).toBe('100% │█ ·\n  0% │██▄▁\n');
});

it('leaves what was not measured empty, and all zeros are a line', () => {
  expect(chart([point(0, 0), point(2, 0)], options)).toBe('0% │\n0% │▁ ▁\n');
  expect(chart([], options)).toBe('0% │\n0% │\n');
});

it('puts several points of one column together, and points outside to its ends', () => {
  const narrow = { ...options, columns: 1, rows: 1 };
  expect(chart([point(-5, 0), point(1, 100), point(99, 50)], narrow)).toBe('100% │▄\n');
});
