import fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import { epochBefore, isPoisoned, type LastPromotion, POISON_AFTER_MS, rewindTarget } from './rewind.js';

const every100Ms = Array.from({ length: 100 }, (_, i) => ({ epoch: i + 1, cutAtMs: 100_000 + 100 * i }));
const last: LastPromotion = { from: every100Ms[99]!, resumedAtMs: 110_000, rewinds: 0 };

test.each([
  ['guest-reset', false, 1000, true],
  ['guest-hung', false, POISON_AFTER_MS, true],
  ['process-died', false, 1000, true], // QEMU crashed over what it was given
  ['process-died', true, 1000, false], // SIGKILL: the OOM killer, an operator
  ['process-stopped', false, 1000, false],
  ['guest-reset', false, POISON_AFTER_MS + 1, false],
] as const)('%s, from outside: %s, after %d ms: poisoned %s', (cause, outside, afterMs, poisoned) =>
  expect(isPoisoned(cause, outside, last.resumedAtMs + afterMs, last)).toBe(poisoned),
);

test('a first death is never a poisoned one', () => expect(isPoisoned('guest-reset', false, 0, null)).toBe(false));

describe('the epoch of the next try', () => {
  it('is half a second older, then one, two and four seconds more', () => {
    const tried: number[] = [];
    let state = last;
    for (;;) {
      const next = rewindTarget(every100Ms, state);
      if (next === null) break;
      tried.push(next.epoch);
      state = { from: next, resumedAtMs: 0, rewinds: state.rewinds + 1 };
    }
    expect(tried).toEqual([95, 85, 65, 25, 1]);
  });

  it('is always older than the last one, and one that there is', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(100_000), { minLength: 1, maxLength: 50 }),
        fc.nat(10),
        fc.nat(49),
        (times, rewinds, at) => {
          const epochs = times.sort((a, b) => a - b).map((cutAtMs, i) => ({ epoch: 3 * i + 1, cutAtMs }));
          const from = epochs[at % epochs.length]!;
          const next = rewindTarget(epochs, { from, resumedAtMs: 0, rewinds });
          if (next === null) expect(from).toBe(epochs[0]);
          else expect(epochs.indexOf(next)).toBeLessThan(epochs.indexOf(from));
        },
      ),
    );
  });
});

test('the newest epoch before a moment', () => {
  expect(epochBefore(every100Ms, 100_050)).toEqual(every100Ms[0]);
  expect(epochBefore(every100Ms, 100_000)).toBeNull();
  expect(epochBefore(every100Ms, 1e9)).toEqual(every100Ms[99]);
});
