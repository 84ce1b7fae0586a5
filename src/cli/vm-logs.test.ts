import fc from 'fast-check';
import { expect, test } from 'vitest';
import { overlap } from './vm-logs.js';

test.each([
  ['boot\nlog', 'login:', 3],
  ['abc', 'xyz', 0],
  ['', 'x', 0],
  ['same', 'same', 4],
])('%j and %j overlap by %d', (first, second, length) => expect(overlap(first, second)).toBe(length));

test('what was read and then heard joins to what was written, whatever part of it was heard twice', () =>
  fc.assert(
    fc.property(fc.uniqueArray(fc.string({ minLength: 1 })), fc.nat(), fc.nat(), (lines, a, b) => {
      // Unique lines: where a guest repeats itself exactly, no one can tell once from twice.
      const all = lines.map((line, i) => `${i} ${line}\n`).join('');
      const [heardFrom, readTo] = [a % (all.length + 1), b % (all.length + 1)].sort((x, y) => x - y) as [
        number,
        number,
      ];
      const [past, heard] = [all.slice(0, readTo), all.slice(heardFrom)];
      const joined = past + heard.slice(overlap(past, heard));
      expect(joined.length).toBeLessThanOrEqual(all.length);
      if (readTo - heardFrom > 8) expect(joined).toBe(all);
    }),
  ));
