import { expect, test } from 'vitest';
import { bytes, bytesPerSecond, details, ms, percent, printable, span, table, time } from './table.js';

test('columns are as wide as their widest cell, numbers end below each other, lines have no trailing blanks', () => {
  const rows = [
    { name: 'web', n: '7', note: '' },
    { name: 'database', n: '1234', note: 'x' },
  ];
  expect(
    table(
      [
        { title: 'NAME', value: (row) => row.name },
        { title: 'N', align: 'right', value: (row) => row.n },
        { title: 'NOTE', value: (row) => row.note },
      ],
      rows,
    ),
  ).toBe('NAME         N  NOTE\nweb          7\ndatabase  1234  x\n');
});

test('details leave out what is not known', () =>
  expect(
    details([
      ['name', 'web'],
      ['failure', null],
      ['booted in', '1 s'],
    ]),
  ).toBe('name:       web\nbooted in:  1 s\n'));

test('what a guest says can not command the terminal', () => {
  expect(printable('a\u001b[2Jb\u009b31mc\nd\u0000')).toBe('a?[2Jb?31mc?d?');
  expect(table([{ title: 'X', value: (row: string) => row }], ['\u001b]0;pwned\u0007'])).toBe('X\n?]0;pwned?\n');
});

test.each([
  [null, '-'],
  [0, '0.0 ms'],
  [0.44, '0.4 ms'],
  [9.96, '10 ms'],
  [37.25, '37 ms'],
  [999.6, '1.0 s'],
  [1234, '1.2 s'],
  [59_960, '1 min'],
  [61_000, '1 min'],
  [7_300_000, '2 h'],
  [300_000_000, '3 d'],
])('%s ms is shown as %s', (value, text) => expect(ms(value)).toBe(text));

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1 KiB'],
  [1536, '1.5 KiB'],
  [268_435_456, '256 MiB'],
  [1_048_575, '1.0 MiB'],
])('%d bytes are shown as %s', (value, text) => expect(bytes(value)).toBe(text));

test.each([
  [0, '0 s'],
  [45_900, '45 s'],
  [60_000, '1 min'],
  [312_000, '5 min 12 s'],
  [12_000_000, '3 h 20 min'],
  [86_400_000 * 12 + 3600_000 * 4, '12 d 4 h'],
])('%d ms last %s', (value, text) => expect(span(value)).toBe(text));

test('rates, percentages and times', () => {
  expect(bytesPerSecond(999)).toBe('999 B/s');
  expect(bytesPerSecond(10_000_000)).toBe('10.0 MB/s');
  expect(percent(12.34)).toBe('12.3%');
  expect(percent(null)).toBe('-');
  expect(time('2026-01-02T03:04:05.678Z', 3)).toMatch(/^2026-01-0\d \d\d:\d\d:05\.678$/);
  expect(time('not a time')).toBe('not a time');
});
