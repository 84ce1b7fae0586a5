import { expect, test } from 'vitest';
import { formatStandby, parseStandby } from './standby-text.js';

test.each([
  ['image', { level: 'image' }],
  ['process', { level: 'process' }],
  ['resident', { level: 'resident', percent: 100 }],
  ['resident=1', { level: 'resident', percent: 1 }],
  ['resident=50', { level: 'resident', percent: 50 }],
] as const)('%s is read, and written the same', (text, standby) => {
  expect(parseStandby(text)).toEqual(standby);
  expect(formatStandby(standby)).toBe(text);
});

test('a percent sign may follow, and all of the RAM is said without number', () => {
  expect(parseStandby('resident=75%')).toEqual({ level: 'resident', percent: 75 });
  expect(formatStandby(parseStandby('resident=100'))).toBe('resident');
});

test.each(['', 'Image', 'resident=', 'resident=0', 'resident=101', 'resident=5.5', 'resident=-1', 'processes'])(
  '"%s" is refused, and told what is allowed',
  (text) => expect(() => parseStandby(text)).toThrow(/resident=PERCENT/),
);
