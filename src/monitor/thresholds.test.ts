import { describe, expect, it } from 'vitest';
import type { Trigger } from '../vm/spec.js';
import { stepTriggers, type TriggerStates } from './thresholds.js';

const cpu: Trigger = { metric: 'cpu', above: 60, heldMs: 5000 };
const network: Trigger = { metric: 'network', above: 1e6, heldMs: 0 };
const none = () => Number.NaN;
const usage = (cpuPercent: number, networkBytesPerSecond = 0) => ({
  cpuPercent,
  memoryPercent: 0,
  networkBytesPerSecond,
});

function firedAt(samples: [atMs: number, cpuPercent: number][]): number | null {
  let states: TriggerStates = [];
  for (const [atMs, percent] of samples) {
    const next = stepTriggers([cpu], states, usage(percent), atMs, none);
    states = next.states;
    if (next.fired !== null) return atMs;
  }
  return null;
}

describe('thresholds', () => {
  it('fires when the value was above for the whole time', () => {
    expect(
      firedAt([
        [0, 99],
        [2500, 61],
        [4999, 99],
        [5000, 99],
      ]),
    ).toBe(5000);
  });

  it('begins anew after one sample below, and on the threshold is not above it', () => {
    expect(
      firedAt([
        [0, 99],
        [4000, 10],
        [5000, 99],
        [9000, 99],
        [10_000, 99],
      ]),
    ).toBe(10_000);
    expect(
      firedAt([
        [0, 60],
        [6000, 60],
      ]),
    ).toBeNull();
  });

  it('fires at once without a time to hold, with the measured value', () => {
    expect(stepTriggers([cpu, network], [], usage(99, 2e6), 0, none).fired).toEqual({ trigger: network, value: 2e6 });
  });

  it('takes a value that is no number for not above', () => {
    expect(stepTriggers([cpu], [0], usage(Number.NaN), 6000, none)).toEqual({ states: [null], fired: null });
  });

  it('compares one that moves with what it is at the moment', () => {
    const auto: Trigger = { metric: 'cpu', above: 'auto', heldMs: 0 };
    expect(stepTriggers([auto], [], usage(50), 0, () => 60).fired).toBeNull();
    expect(stepTriggers([auto], [], usage(50), 0, () => 40).fired).toEqual({ trigger: auto, value: 50 });
  });
});
