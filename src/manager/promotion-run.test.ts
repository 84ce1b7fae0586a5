import { expect, test } from 'vitest';
import type { EpochInfo } from '../native/image.js';
import { beginPromotion, chooseEpoch } from './promotion-run.js';

/** One each 100 ms, the newest cut at 1000 ms. */
const epochs = [...Array(10).keys()].map(
  (i) => ({ epoch: i + 1, cutAtWallMs: 100 * (i + 1), cutAtMonotonicNs: 0n }) as EpochInfo,
);
const found = { newest: 10, newestConfirmed: 9, newestSent: 10, all: () => epochs };
const run = (wellAtMs: number | null) => ({
  ...beginPromotion({
    ...{ reason: 'probe', planned: false, cause: 'probe-failed' as const, killedFromOutside: false },
    ...{ wellAtMs, wanted: null, decidedAtNs: 0n },
  }),
  decidedAtMs: 1050,
});

test('a guest that its probes gave up wakes up from the newest epoch in which they found it well', () => {
  expect(chooseEpoch(run(650), found, null)).toMatchObject({
    epoch: 6,
    because: expect.stringContaining('400 ms before'),
  });
});

test('the oldest epoch does where all are younger than that', () => {
  expect(chooseEpoch(run(50), found, null)?.epoch).toBe(1);
});

test('the newest is taken where no probe ever found it well, or all found it well until after the last cut', () => {
  for (const wellAtMs of [null, 1010])
    expect(chooseEpoch(run(wellAtMs), found, null)).toMatchObject({ epoch: 10, because: null });
});

test('an epoch whose output died with its QEMU is not the one to wake up from; with a stop before the last one nothing died', () => {
  const killed = { ...run(null), cause: 'process-died' as const };
  expect(chooseEpoch(killed, { ...found, newestSent: 9 }, null)).toMatchObject({
    epoch: 9,
    because: expect.stringContaining('died with its QEMU'),
  });
  for (const newestSent of [10, null])
    expect(chooseEpoch(killed, { ...found, newestSent }, null)).toMatchObject({ epoch: 10, because: null });
  expect(chooseEpoch({ ...killed, cause: null }, { ...found, newestSent: 9 }, null)?.epoch).toBe(10);
});
