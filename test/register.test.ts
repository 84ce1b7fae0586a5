import fc from 'fast-check';
import { expect, test } from 'vitest';
import { contradiction, type Operation } from '../soak/register.js';

const write = (value: string, fromMs: number, toMs: number): Operation => ({ kind: 'write', value, fromMs, toMs });
const read = (value: string | null, fromMs: number, toMs: number): Operation => ({ kind: 'read', value, fromMs, toMs });

test('an acknowledged write that is lost is found, whatever overlaps it', () => {
  expect(contradiction([write('a', 0, 1), write('b', 2, 3), read('a', 4, 5)])).toMatch(/b was acknowledged while .* a/);
  expect(contradiction([write('a', 0, 1), read(null, 2, 3)])).toMatch(/a was acknowledged while .* null/);
  // Not acknowledged in time: it may have happened later, or never.
  expect(contradiction([write('a', 0, 1), write('b', 2, 9), read('a', 4, 5)])).toBeNull();
  expect(contradiction([write('a', 0, 1), write('b', 2, Number.POSITIVE_INFINITY), read('a', 4, 5)])).toBeNull();
});

test('what was seen stays seen', () => {
  const seen = [write('a', 0, 1), write('b', 2, 20), read('b', 3, 4), read('a', 5, 6)];
  expect(contradiction(seen)).toMatch(/back and forth|acknowledged while/);
});

test('values from nowhere and from the future are found', () => {
  expect(contradiction([read('a', 0, 1)])).toMatch(/never written/);
  expect(contradiction([read('a', 0, 1), write('a', 2, 3)])).toMatch(/before it was written/);
});

test('what a real register does is never blamed', () => {
  const step = fc.record({
    isWrite: fc.boolean(),
    before: fc.double({ min: 0.001, max: 5, noNaN: true }),
    after: fc.double({ min: 0.001, max: 5, noNaN: true }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      let value: string | null = null;
      const history = steps.map(({ isWrite, before, after }, i): Operation => {
        if (isWrite) value = `${i}`;
        // It takes effect at the moment i.
        return { kind: isWrite ? 'write' : 'read', value, fromMs: i - before, toMs: i + after };
      });
      expect(contradiction(history)).toBeNull();
    }),
  );
});
