/** A sample of `npm run soak`, and the judges it relies on: what they let pass, and what not. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Acknowledged } from '../harness/writer.js';
import { type FailoverOptions, soakFailover } from '../soak/failover.js';
import { parseMemcheck } from '../soak/memcheck.js';
import { planRound } from '../soak/plan.js';
import { RING_SLOTS, RingAccount } from '../soak/ring.js';
import { MIB } from '../src/vm/spec.js';

describe('soak', () => {
  // The eight rounds of this seed have every fault and every aim, and one right after the shadow is ready.
  const SEED = 41;
  const options: Omit<FailoverOptions, 'rounds'> = {
    seed: SEED,
    vm: { ramBytes: 256 * MIB },
    bridge: 'svsoakt0',
    subnet: '10.216.0.0/24',
    onProgress: console.log,
  };

  test('a VM that is killed, hung and panicked comes back whole each time', async () => {
    const result = await soakFailover({ ...options, rounds: 8 });
    expect(result.failures).toEqual([]);
    expect(result).toMatchObject({ rounds: 8, promotionsFailed: 0, memcheckBad: 0, writesLostOlderThanLag: 0 });
    expect(Math.min(...Object.values(result.faults))).toBeGreaterThan(0);
    expect(result.writesAcknowledged).toBeGreaterThan(1000);
  });

  test('ends cleanly in the middle', async () => {
    const abort = new AbortController();
    const onProgress = (line: string) => {
      if (/^ +1\//.test(line)) abort.abort();
    };
    const result = await soakFailover({ ...options, rounds: 8, signal: abort.signal, onProgress });
    expect(result).toMatchObject({ rounds: 1, interrupted: true, failures: [] });
  });
});

describe('plan', () => {
  test('is the same for the same seed, and another for another', () => {
    const plans = (seed: number) => Array.from({ length: 50 }, (_, i) => planRound(seed, i + 1));
    expect(plans(7)).toEqual(plans(7));
    expect(plans(7)).not.toEqual(plans(8));
  });

  test('aims only what can be hit', () => {
    fc.assert(
      fc.property(fc.nat(2 ** 31 - 1), fc.integer({ min: 1, max: 100_000 }), (seed, round) => {
        const { fault, aim, delayMs, within } = planRound(seed, round);
        if (fault === 'panic') expect(aim).toBe('any');
        if (aim === 'ready') expect(delayMs).toBe(0);
        expect(delayMs).toBeGreaterThanOrEqual(0);
        expect(within).toBeGreaterThanOrEqual(0);
      }),
    );
  });
});

describe('ring account', () => {
  const CUT_MS = 1000;
  const RESUMED_MS = 1500;
  /** Writes at these times over the connection that the rollback ends, and after it over the next. */
  function account(timesMs: number[], afterMs: number[] = []): RingAccount {
    const ring = new RingAccount();
    const add = (connection: number) => (atMs: number) =>
      ring.add({ number: ring.acknowledgedTotal + 1, atMs, connection } satisfies Acknowledged);
    timesMs.forEach(add(1));
    ring.rolledBack({ cutMs: CUT_MS, resumedMs: RESUMED_MS, connections: 1 });
    afterMs.forEach(add(2));
    return ring;
  }
  /** What is read when these numbers are there. */
  function slotsWith(numbers: number[]): (number | null)[] {
    const slots: (number | null)[] = new Array(RING_SLOTS).fill(null);
    for (const number of numbers) slots[number % RING_SLOTS] = number;
    return slots;
  }

  test('lets a rollback take what is younger than the cut', () => {
    const findings = account([800, 900, 1100, 1200]).check(slotsWith([1, 2]), 5);
    expect(findings).toEqual({ lostWithinLag: 2, lostOlder: 0, wrong: [] });
  });

  test('misses what is older than the cut', () => {
    const findings = account([800, 900, 1100]).check(slotsWith([1]), 4);
    expect(findings).toMatchObject({ lostWithinLag: 1, lostOlder: 1 });
    expect(findings.wrong).toHaveLength(1);
  });

  test('misses what the new primary acknowledged', () => {
    const findings = account([800], [1600, 1700]).check(slotsWith([1, 3]), 4);
    expect(findings).toMatchObject({ lostWithinLag: 0, lostOlder: 1 });
  });

  test('sees a hole: of what was sent in order, only a tail can be rolled back', () => {
    const findings = account([800, 1100, 1200]).check(slotsWith([1, 3]), 4);
    expect(findings.lostOlder).toBe(0);
    expect(findings.wrong).toEqual(['3 is there, 2, written before it on the same connection, is not']);
  });

  test('takes a newer number for an overwritten one, and one that was never sent for damage', () => {
    const overwritten = account([800, 900]).check(slotsWith([1 + RING_SLOTS, 2]), RING_SLOTS + 2);
    expect(overwritten.wrong).toEqual([]);
    const damaged = account([800, 900]).check(slotsWith([1, 2, 3]), 3);
    expect(damaged.wrong).toHaveLength(1);
    const garbled = slotsWith([1, 2]);
    garbled[7] = Number.NaN;
    expect(account([800, 900]).check(garbled, 3).wrong).toHaveLength(1);
  });

  test('lets the next rollback take what was read back since its cut, and nothing else', () => {
    const ring = account([800], [1600, 1700]);
    expect(ring.check(slotsWith([1, 2, 3]), 4).wrong).toEqual([]);
    ring.rolledBack({ cutMs: 1650, resumedMs: 1800, connections: 2 });
    expect(ring.check(slotsWith([1, 2]), 4)).toEqual({ lostWithinLag: 1, lostOlder: 0, wrong: [] });
    ring.rolledBack({ cutMs: 1900, resumedMs: 2000, connections: 2 });
    expect(ring.check(slotsWith([1]), 4)).toMatchObject({ lostWithinLag: 0, lostOlder: 1 });
  });
});

test('memcheck speaks in lines of one form', () => {
  const line = 'memcheck i=00000000000001389444 rounds=0000000113 bad=0000000000';
  expect(parseMemcheck(line, 5n)).toEqual({ i: 1_389_444, rounds: 113, bad: 0, atNs: 5n });
  expect(parseMemcheck('-', 5n)).toBeNull();
});
