import { expect, test } from 'vitest';
import { areMarksWhole } from './marked-epoch.js';

const OWN = 'a'.repeat(32);
const BASE = 'b'.repeat(32);
const image = (headEpoch: number, baseId = BASE) => ({ id: OWN, baseId, headEpoch });

test.each([
  ['the head', { imageId: OWN, epoch: 7 }, image(7), true],
  ['an older epoch: more is marked', { imageId: OWN, epoch: 5 }, image(7), true],
  ['an epoch that the image has lost', { imageId: OWN, epoch: 8 }, image(7), false],
  ['the base', { imageId: BASE, epoch: 9 }, image(0), true],
  ['another image', { imageId: 'c'.repeat(32), epoch: 2 }, image(7), false],
  ['nobody knows what', null, image(7), false],
  ['an epoch of an image without base', { imageId: OWN, epoch: 7 }, image(7, ''), true],
] as const)('marked since %s', (_what, since, description, whole) =>
  expect(areMarksWhole(since, description)).toBe(whole),
);
