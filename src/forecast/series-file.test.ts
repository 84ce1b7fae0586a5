import { expect, it } from 'vitest';
import { parseSeries } from './series-file.js';

const parse = (text: string, column = 'cpu') => parseSeries(text, 'vm.csv', column, 300);

it('reads a column, and gaps and clock jumps from the times', () => {
  const times = [0, 300, 1200, 1200, 600, 1500, 1800, 2100, 2400, 2700];
  const { rows, remarks } = parse(`t_seconds,cpu\n${times.map((t, i) => `${t},${i}\n`).join('')}`);
  expect(rows.map((row) => row.gap)).toEqual([0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
  expect(rows.map((row) => row.stale).indexOf(true)).toBe(3);
  expect(rows.filter((row) => row.stale)).toHaveLength(2);
  expect(remarks).toEqual([
    'line 4: 2 samples are missing before it',
    'line 5: its time is not after that of the line before: not learnt from',
    'line 6: its time is not after that of the line before: not learnt from',
  ]);
});

it('reads dates, and does not use times of another interval', () => {
  const dates = parse('timestamp,cpu\n2014-02-14 14:30:00,1\n2014-02-14 14:35:00,2\n2014-02-14 14:45:00,3\n');
  expect(dates.rows.map((row) => row.gap)).toEqual([0, 0, 1]);
  expect(parse('t,cpu\n0,1\n1,2\n2,3\n').rows.every((row) => row.gap === 0 && !row.stale)).toBe(true);
});

it('takes what can not be a usage as a gap and names the line', () => {
  const { rows, remarks } = parse('cpu,x\n1,a\n,a\nNaN,a\n-3,a\n1e300,a\n');
  expect(rows.map((row) => row.value)).toEqual([1, Number.NaN, Number.NaN, Number.NaN, Number.NaN]);
  expect(remarks[2]).toBe('line 5: -3 can not be a usage: taken as a gap');
});

it('refuses, naming the line, a missing column, text, and a line cut off', () => {
  expect(() => parse('t,mem\n0,1\n')).toThrow(/vm.csv line 1.*no column "cpu".*t, mem/);
  expect(() => parse('')).toThrow(/line 1/);
  expect(() => parse('t,cpu\n0,1\n300,high\n')).toThrow(/line 3.*"high" is not a number/);
  expect(() => parse('t,cpu\n0,1\n300\n')).toThrow(/line 3.*1 cells/);
});
