import { expect, test } from 'vitest';
import { Repeated } from './repeated.js';

test('the first is told at once, those after it together when the time is over, and none is lost', () => {
  const repeated = new Repeated(5000);
  const counts = [100, 200, 300, 5099, 5100, 5101, 60_000].map((nowMs) => repeated.count(nowMs));
  expect(counts).toEqual([1, 0, 0, 0, 4, 0, 2]);
});
