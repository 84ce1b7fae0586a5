import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { initialProbeState, type ProbeEvent, type ProbeState, stepProbe } from './probe.js';

const limits = { periodMs: 2000, timeoutMs: 1000, failures: 3 };

/** Runs events and writes down what came of each: the state's health and the effects. */
function transcript(events: ProbeEvent[], begin: ProbeState = initialProbeState(0)): string[] {
  let state = begin;
  return events.map((event) => {
    const { state: after, effects } = stepProbe(state, event, limits);
    state = after;
    const told = effects.map((effect) => (effect.type === 'tell' ? `tell ${effect.health}` : effect.type));
    return `${event.nowMs} ${event.type}: ${[state.health, ...told].join(', ')}`;
  });
}
const tick = (nowMs: number, excusedMs = 0): ProbeEvent => ({ type: 'tick', nowMs, excusedMs });
const succeeded = (nowMs: number): ProbeEvent => ({ type: 'succeeded', nowMs });
const refused = (nowMs: number): ProbeEvent => ({ type: 'failed', nowMs, reason: 'refused' });

describe('a probe', () => {
  test('that succeeds, fails and succeeds again', () => {
    const events = [
      ...[tick(0), succeeded(5), tick(1999), tick(2000), refused(2005), tick(4000), tick(4999), tick(5000)],
      ...[succeeded(5001), tick(6000), refused(6001), tick(8000), refused(8001), tick(10_000), succeeded(10_001)],
    ];
    expect(transcript(events)).toEqual([
      '0 tick: unproven, start',
      '5 succeeded: well, tell well',
      '1999 tick: well',
      '2000 tick: well, start',
      '2005 failed: failing, tell failing',
      '4000 tick: failing, start',
      '4999 tick: failing',
      '5000 tick: failing, abandon',
      // Of the one that was abandoned.
      '5001 succeeded: failing',
      '6000 tick: failing, start',
      '6001 failed: failed, tell failed',
      '8000 tick: failed, start',
      '8001 failed: failed',
      '10000 tick: failed, start',
      '10001 succeeded: well, tell well',
    ]);
  });

  test('says nothing before it succeeded once', () => {
    const failures = Array.from({ length: 20 }, (_, i) => [tick(i * 2000), refused(i * 2000 + 1)]).flat();
    expect(transcript(failures).filter((line) => line.includes('tell'))).toEqual([]);
  });

  test('is not over while what explains its silence goes on', () => {
    expect(
      transcript([tick(0), succeeded(1), tick(2000), tick(5000, 2500), tick(5500, 2501), tick(5501, 2501)]),
    ).toEqual([
      '0 tick: unproven, start',
      '1 succeeded: well, tell well',
      '2000 tick: well, start',
      '5000 tick: well',
      '5500 tick: well',
      '5501 tick: failing, abandon, tell failing',
    ]);
  });

  test('one that could not be made neither fails nor heals', () => {
    const begin = { ...initialProbeState(0), health: 'failing' as const, failuresInRow: 2 };
    expect(transcript([tick(0), { type: 'unknown', nowMs: 1 }, tick(2000), refused(2001)], begin)).toEqual([
      '0 tick: failing, start',
      '1 unknown: failing',
      '2000 tick: failing, start',
      '2001 failed: failed, tell failed',
    ]);
  });

  test('whatever happens: failed only after a success and so many failures in a row, one probe at a time', () => {
    const step = fc.record({
      afterMs: fc.integer({ min: 1, max: 3000 }),
      type: fc.constantFrom<ProbeEvent['type']>('tick', 'tick', 'succeeded', 'failed', 'unknown'),
      excusedMs: fc.integer({ min: 0, max: 3000 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        let state = initialProbeState(0);
        let nowMs = 0;
        let inRow = 0;
        let proven = false;
        for (const { afterMs, type, excusedMs } of steps) {
          nowMs += afterMs;
          const event = { type, nowMs, excusedMs: Math.min(excusedMs, afterMs), reason: 'refused' } as ProbeEvent;
          const wasUnderWay = state.startedAtMs !== null;
          const { state: after, effects } = stepProbe(state, event, limits);
          const kinds = effects.map((effect) => effect.type);
          expect(kinds.includes('start') && wasUnderWay).toBe(false);
          if (wasUnderWay && type === 'succeeded') [inRow, proven] = [0, true];
          else if (proven && wasUnderWay && (type === 'failed' || kinds.includes('abandon'))) inRow++;
          expect(after.health === 'failed').toBe(proven && inRow >= limits.failures);
          expect(after.nextAtMs).toBeGreaterThanOrEqual(state.nextAtMs);
          state = after;
        }
      }),
    );
  });
});
