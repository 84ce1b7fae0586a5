import { expect, it } from 'vitest';
import type { Outlook } from '../forecast/outlook.js';
import { alarmWords, MovingThresholds } from './moving-thresholds.js';

const outlook = (metric: Outlook['metric'], expected: number, bound: number): Outlook => ({
  ...{ metric, atS: 0, intervalS: 300, samples: 100, last: expected, limit: null },
  ahead: Array.from({ length: 12 }, (_, i) => ({ steps: i + 1, expected, bounds: [bound, bound, bound] })),
});
const usage = (cpuPercent: number, memoryPercent = 10) => ({ cpuPercent, memoryPercent, networkBytesPerSecond: 0 });

it('moves with the bound, in percent of what the VM has, and says why', () => {
  const thresholds = new MovingThresholds(2, 0);
  expect(thresholds.value('cpu')).toBe(95);
  thresholds.move([outlook('demand', 100, 120), outlook('memory', 600, 700)], 1000, 1000);
  expect(thresholds.value('cpu')).toBeCloseTo(66);
  expect(thresholds.value('memory')).toBeCloseTo(77);
  expect(thresholds.value('network')).toBe(1.25e9);
  const [cpu] = thresholds.view(5000);
  expect(cpu).toMatchObject({ unchangedForMs: 4000, reason: '50.0% is expected and at most 60.0%: 10% above that' });
  // An idle VM is not alarmed by a little, nor is a busy one never.
  thresholds.move([outlook('demand', 1, 2)], 1000, 2000);
  expect(thresholds.value('cpu')).toBe(50);
  thresholds.move([outlook('demand', 190, 200)], 1000, 3000);
  expect(thresholds.value('cpu')).toBe(95);
});

it('raises an alarm once when the value was above for its time, and ends it below the hysteresis', () => {
  const thresholds = new MovingThresholds(2, 0);
  const at = (ms: number, cpu: number) => thresholds.judge(usage(cpu), ms).map(alarmWords);
  expect(at(0, 97)).toEqual([]);
  expect(at(9000, 90)).toEqual([]);
  expect(at(10_000, 97)).toEqual([
    'cpu at 97.0% is more than usual: above 95.0% (nothing is known of this VM yet: the ceiling) for 10 s',
  ]);
  expect(thresholds.alarmed).toBe(true);
  expect(at(11_000, 97)).toEqual([]);
  expect(at(12_000, 90)).toEqual([]);
  expect(at(13_000, Number.NaN)).toEqual([]);
  expect(at(14_000, 60)).toEqual(['cpu is back at 60.0%']);
  expect(thresholds.alarmed).toBe(false);
});
