import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  formatBitsPerSecond,
  formatBytesExact,
  formatDurationExact,
  parseBitsPerSecond,
  parseBytes,
  parseDurationMs,
  parseShare,
} from './quantity-text.js';

describe('sizes', () => {
  test.each([
    ['64K', 65_536],
    ['256M', 268_435_456],
    ['256MiB', 268_435_456],
    ['1G', 1_073_741_824],
    ['1.5G', 1_610_612_736],
  ])('%s is %d bytes', (text, bytes) => expect(parseBytes(text, 'the RAM')).toBe(bytes));

  test.each([
    ['', 'it is not a size'],
    ['lots', 'it is not a size'],
    ['-1G', 'it is not a size'],
    ['1e9K', 'it is not a size'],
    ['256', 'it has no unit'],
    ['256MB', '"MB" is not a unit of size'],
    ['256m', '"m" is not a unit of size'],
    ['0.0001K', 'it is not a whole number of bytes'],
    ['999999999999999G', 'it is not a whole number of bytes'],
  ])('%j is refused: %s', (text, reason) =>
    expect(() => parseBytes(text, 'the RAM')).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', reason, attempted: 'read the RAM' }),
    ),
  );

  test('a bare number counts bytes only where that is allowed', () =>
    expect(parseBytes('100', 'the bytes', { bare: true })).toBe(100));

  test('what is written reads back', () =>
    fc.assert(
      fc.property(fc.maxSafeNat(), (bytes) => {
        fc.pre(bytes < 1e15);
        expect(parseBytes(formatBytesExact(bytes), 'it', { bare: true })).toBe(bytes);
      }),
    ));
});

describe('durations', () => {
  test.each([
    ['0ms', 0],
    ['500ms', 500],
    ['1.1s', 1100],
    ['2m', 120_000],
    ['1h', 3_600_000],
  ])('%s is %d ms', (text, ms) => expect(parseDurationMs(text, 'the timeout')).toBe(ms));

  test.each([
    ['soon', 'it is not a duration'],
    ['10', 'it has no unit'],
    ['10sec', '"sec" is not a unit of time'],
    ['0.5ms', 'it is not a whole number of milliseconds'],
    ['999999999999999h', 'it is too long'],
  ])('%j is refused: %s', (text, reason) =>
    expect(() => parseDurationMs(text, 'the timeout')).toThrow(expect.objectContaining({ reason })),
  );

  test('what is written reads back', () =>
    fc.assert(
      fc.property(fc.nat(), (ms) => {
        expect(parseDurationMs(formatDurationExact(ms), 'it')).toBe(ms);
      }),
    ));
});

describe('shares', () => {
  test('a percentage becomes a share', () => expect(parseShare('3%', 'it')).toBeCloseTo(0.03, 12));
  test.each([
    ['3', 'it does not end in %'],
    ['101%', 'it is above 100%'],
    ['x%', 'it is not a percentage'],
  ])('%j is refused: %s', (text, reason) =>
    expect(() => parseShare(text, 'it')).toThrow(expect.objectContaining({ reason })),
  );
});

describe('bandwidths', () => {
  test.each([
    ['100M', 100_000_000],
    ['100Mbit', 100_000_000],
    ['1.5G', 1_500_000_000],
    ['64K', 64_000],
  ])('%s', (text, bits) => {
    expect(parseBitsPerSecond(text, 'the bandwidth')).toBe(bits);
    expect(parseBitsPerSecond(formatBitsPerSecond(bits), 'the bandwidth')).toBe(bits);
  });

  test.each(['', '100', '100MB', '100m', '-1M', '1e3M'])('%j is refused', (text) =>
    expect(() => parseBitsPerSecond(text, 'the bandwidth')).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    ),
  );
});
