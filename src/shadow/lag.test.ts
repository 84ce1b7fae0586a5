import { expect, test } from 'vitest';
import { pacingSchema } from '../vm/spec.js';
import { assessLag } from './lag.js';

const limits = pacingSchema.parse({ maxLagMs: 500 });
const strict = pacingSchema.parse({ maxLagMs: 20 });

test.each([
  // A shadow is behind from three times the wished lag on, and never for a single slow second.
  [0, 0, limits, 'ok'],
  [1500, 0, limits, 'ok'],
  [1501, 0, limits, 'behind'],
  [1000, 0, strict, 'ok'],
  [1001, 0, strict, 'behind'],
  // Behind for long it is made anew; one that has caught up is not, however long it took.
  [1501, 14_999, limits, 'behind'],
  [1501, 15_000, limits, 'remake'],
  [900, 60_000, limits, 'ok'],
] as const)('a lag of %d ms, behind for %d ms already', (lagMs, behindForMs, pacing, health) =>
  expect(assessLag(lagMs, behindForMs, pacing)).toBe(health),
);
