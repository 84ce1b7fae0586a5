import fc from 'fast-check';
import { expect, it } from 'vitest';
import { firstThreshold, judgeThreshold, moveThreshold } from './threshold.js';

const policy = { floor: 20, ceiling: 95, margin: 0.1, hysteresis: 0.1 };

it('follows the upper bound and says why', () => {
  const moved = moveThreshold(policy, firstThreshold(policy), { expected: 30, upperBound: 50 });
  expect(moved.value).toBeCloseTo(55);
  expect(moved.reason).toBe('30.0 is expected and at most 50.0: 10% above that');
  expect(moveThreshold(policy, moved, { expected: 30, upperBound: 52 })).toBe(moved);
  expect(moveThreshold(policy, moved, { expected: 1, upperBound: 2 }).value).toBe(20);
});

it('fires above and ends only below the hysteresis', () => {
  const state = { value: 50, firing: false, reason: '' };
  const firing = judgeThreshold(policy, state, 51);
  expect(firing.firing).toBe(true);
  expect(judgeThreshold(policy, firing, 47).firing).toBe(true);
  expect(judgeThreshold(policy, firing, 44).firing).toBe(false);
  expect(judgeThreshold(policy, firing, Number.NaN).firing).toBe(true);
});

it('never leaves floor and ceiling, whatever the outlook', () => {
  fc.assert(
    fc.property(fc.array(fc.record({ expected: fc.double(), upperBound: fc.double() })), (outlooks) => {
      let state = firstThreshold(policy);
      for (const outlook of outlooks) state = moveThreshold(policy, state, outlook);
      expect(state.value).toBeGreaterThanOrEqual(policy.floor);
      expect(state.value).toBeLessThanOrEqual(policy.ceiling);
    }),
  );
});
