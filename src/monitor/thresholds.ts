/** Triggers held for a time: pure, one step per usage sample. */
import type { Trigger } from '../vm/spec.js';

/** What a VM used in the last sampling interval. */
export interface Usage {
  /** Percent of the VM's vCPUs. */
  cpuPercent: number;
  /** Percent of the guest's RAM that it can not do without: what a balloon has taken is not used. */
  memoryPercent: number;
  /** Both directions together. */
  networkBytesPerSecond: number;
}

/** Per trigger, since when its metric has been above the threshold; null while it is not. */
export type TriggerStates = readonly (number | null)[];

export interface TriggerStep {
  states: TriggerStates;
  /** The first trigger that has been above for its whole time, with the measured value. */
  fired: { trigger: Trigger; value: number } | null;
}

export function stepTriggers(
  triggers: readonly Trigger[],
  states: TriggerStates,
  usage: Usage,
  nowMs: number,
  /** The present value of those that move. */
  moving: (metric: Trigger['metric']) => number,
): TriggerStep {
  let fired: TriggerStep['fired'] = null;
  const next = triggers.map((trigger, i) => {
    const value = measured(trigger.metric, usage);
    if (!(value > (trigger.above === 'auto' ? moving(trigger.metric) : trigger.above))) return null;
    const sinceMs = states[i] ?? nowMs;
    if (fired === null && nowMs - sinceMs >= trigger.heldMs) fired = { trigger, value };
    return sinceMs;
  });
  return { states: next, fired };
}

export function measured(metric: Trigger['metric'], usage: Usage): number {
  switch (metric) {
    case 'cpu':
      return usage.cpuPercent;
    case 'memory':
      return usage.memoryPercent;
    case 'network':
      return usage.networkBytesPerSecond;
  }
}
