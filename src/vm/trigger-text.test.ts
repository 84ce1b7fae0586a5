import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Trigger, triggerSchema } from './spec.js';
import { formatTrigger, parseTrigger } from './trigger-text.js';

test.each<[string, Trigger]>([
  ['cpu>60%/5s', { metric: 'cpu', above: 60, heldMs: 5000 }],
  ['cpu > 60% / 5s', { metric: 'cpu', above: 60, heldMs: 5000 }],
  ['cpu>60%', { metric: 'cpu', above: 60, heldMs: 5000 }],
  ['memory>82.5%/500ms', { metric: 'memory', above: 82.5, heldMs: 500 }],
  ['network>10MB/s/3s', { metric: 'network', above: 10_000_000, heldMs: 3000 }],
  ['network>10MB/s', { metric: 'network', above: 10_000_000, heldMs: 5000 }],
  ['cpu>auto/10s', { metric: 'cpu', above: 'auto', heldMs: 10_000 }],
  ['network > auto', { metric: 'network', above: 'auto', heldMs: 5000 }],
  ['network>1MiB/s/0ms', { metric: 'network', above: 1_048_576, heldMs: 0 }],
])('%s', (text, trigger) => expect(parseTrigger(text)).toEqual(trigger));

test.each([
  ['', 'it does not have the form METRIC>VALUE/TIME'],
  ['cpu=60%', 'it does not have the form METRIC>VALUE/TIME'],
  ['disk>60%/5s', '"disk" is not a metric; there are cpu, memory and network'],
  ['cpu>60/5s', '"60" is not a percentage'],
  ['cpu>120%/5s', 'the percentage is not between 0 and 100'],
  ['cpu>0%/5s', 'the percentage is not between 0 and 100'],
  ['cpu>60%/s/5s', 'cpu is a percentage, not a rate'],
  ['cpu>60%/5', 'it has no unit'],
  ['cpu>60%/2h', 'it must be held for 2h, and at most 1h can be asked'],
  ['network>10MB/5s', 'network is a rate and has no "/s"'],
  ['network>10Mb/s/5s', '"10Mb/s" is not a rate in B, kB, MB or GB (bytes) per second'],
  ['network>0MB/s', 'the rate is below 1 B/s'],
])('%j is refused: %s', (text, reason) =>
  expect(() => parseTrigger(text)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', reason })),
);

const heldMs = fc.integer({ min: 0, max: 3_600_000 });
const arbitraryTrigger: fc.Arbitrary<Trigger> = fc.oneof(
  fc.record({
    metric: fc.constantFrom('cpu' as const, 'memory' as const),
    above: fc.integer({ min: 1, max: 9999 }).map((hundredths) => hundredths / 100),
    heldMs,
  }),
  fc.record({ metric: fc.constant('network' as const), above: fc.integer({ min: 1, max: 1e14 }), heldMs }),
);

test('what is written reads back and fits the schema', () =>
  fc.assert(
    fc.property(arbitraryTrigger, (trigger) => {
      expect(parseTrigger(formatTrigger(trigger))).toEqual(trigger);
      expect(triggerSchema.safeParse(trigger).success).toBe(true);
    }),
  ));

test('no text makes it throw anything but INVALID_ARGUMENT', () =>
  fc.assert(
    fc.property(fc.string(), (text) => {
      try {
        parseTrigger(text);
      } catch (error) {
        expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
      }
    }),
  ));
