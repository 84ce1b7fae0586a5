import fc from 'fast-check';
import { expect, it } from 'vitest';
import { divide } from './share.js';

const claim = (least: number, wanted: number, weight = 5) => ({ least, wanted, weight });

it('gives all what they want where there is enough', () => {
  expect(divide([claim(5, 50), claim(5, 30)], 100)).toEqual([50, 30]);
});

it('divides what is short by weight, above what each gets in any case', () => {
  expect(divide([claim(10, 100), claim(10, 100)], 100)).toEqual([50, 50]);
  expect(divide([claim(10, 100, 10), claim(10, 100, 5)], 110)).toEqual([70, 40]);
  // Who wants little leaves the rest to the other.
  expect(divide([claim(0, 20), claim(0, 100)], 100)).toEqual([20, 80]);
});

it('never gives more than is wanted or less than is due, and wastes nothing', () => {
  const claims = fc.array(
    fc.record({ least: fc.nat(100), more: fc.nat(100), weight: fc.integer({ min: 1, max: 10 }) }),
    { minLength: 1, maxLength: 20 },
  );
  fc.assert(
    fc.property(claims, fc.nat(3000), (list, whole) => {
      const all = list.map(({ least, more, weight }) => claim(least, least + more, weight));
      const given = divide(all, whole);
      const sum = given.reduce((total, value) => total + value, 0);
      const due = all.reduce((total, { least }) => total + least, 0);
      const wanted = all.reduce((total, each) => total + each.wanted, 0);
      given.forEach((value, i) => {
        expect(value).toBeGreaterThanOrEqual(all[i]!.least - 1e-6);
        expect(value).toBeLessThanOrEqual(all[i]!.wanted + 1e-6);
      });
      expect(sum).toBeCloseTo(Math.min(wanted, Math.max(whole, due)), 3);
    }),
  );
});
