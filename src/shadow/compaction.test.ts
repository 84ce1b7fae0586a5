import { expect, test } from 'vitest';
import { compactionDue } from './compaction.js';

const MIB = 1024 * 1024;

test.each([
  ['a small image', 20, 0, 1024, false],
  ['as much garbage as state', 100, 50, 1024, false],
  ['more garbage than state', 101, 50, 1024, true],
  ['a large state with some garbage', 500, 440, 1024, false],
  ['the same, nearly full', 500, 440, 700, true],
  ['a full image with nothing to give back', 700, 690, 700, false],
  ['a small bound, nearly reached', 60, 40, 64, true],
] as const)('%s', (_what, bytesOnDisk, liveBytes, maxBytes, due) =>
  expect(compactionDue({ bytesOnDisk: bytesOnDisk * MIB, liveBytes: liveBytes * MIB, maxBytes: maxBytes * MIB })).toBe(
    due,
  ),
);
