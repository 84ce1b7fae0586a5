/** The thresholds of one VM that move with what is usual for it, and the alarms that they raise. Pure but for its state. */
import { COVERAGES, type Outlook } from '../forecast/outlook.js';
import {
  firstThreshold,
  judgeThreshold,
  moveThreshold,
  type ThresholdPolicy,
  type ThresholdState,
} from '../forecast/threshold.js';
import type { ForecastMetric } from '../history/metrics.js';
import { bytesPerSecond, percent } from '../vm/amount-text.js';
import type { Trigger } from '../vm/spec.js';
import type { ThresholdView } from '../vm/usage-view.js';
import { measured, type Usage } from './thresholds.js';

type ThresholdMetric = Trigger['metric'];

export interface Alarm {
  metric: ThresholdMetric;
  raised: boolean;
  /** Measured; what it is compared with. */
  value: number;
  threshold: number;
  reason: string;
}

/** One burst is no alarm. */
const ALARM_HELD_MS = 10_000;
const MARGIN = 0.1;
const HYSTERESIS = 0.1;
const COVERAGE = COVERAGES.indexOf(0.99);
/** A threshold is for the coming interval, and for the one in which the next is made. */
const INTERVALS_AHEAD = 2;

const POLICIES: Record<ThresholdMetric, ThresholdPolicy & { unit: '%' | 'B/s' }> = {
  cpu: { floor: 50, ceiling: 95, margin: MARGIN, hysteresis: HYSTERESIS, unit: '%', label: percent },
  memory: { floor: 70, ceiling: 95, margin: MARGIN, hysteresis: HYSTERESIS, unit: '%', label: percent },
  network: { floor: 1e6, ceiling: 1.25e9, margin: MARGIN, hysteresis: HYSTERESIS, unit: 'B/s', label: bytesPerSecond },
};
const METRICS = Object.keys(POLICIES) as ThresholdMetric[];
const SOURCE: Record<ForecastMetric, ThresholdMetric> = {
  demand: 'cpu',
  memory: 'memory',
  'network-bytes': 'network',
};

interface Moving {
  state: ThresholdState;
  sinceMs: number;
  /** Since when the value has been above; null while it is not. */
  aboveSinceMs: number | null;
  alarmed: boolean;
  measured: number | null;
}

export class MovingThresholds {
  private readonly moving: Record<ThresholdMetric, Moving>;

  constructor(
    private readonly vcpus: number,
    nowMs: number,
  ) {
    const begin = (metric: ThresholdMetric): Moving => ({
      state: firstThreshold(POLICIES[metric]),
      sinceMs: nowMs,
      aboveSinceMs: null,
      alarmed: false,
      measured: null,
    });
    this.moving = { cpu: begin('cpu'), memory: begin('memory'), network: begin('network') };
  }

  value(metric: ThresholdMetric): number {
    return this.moving[metric].state.value;
  }

  /** @param memoryBytes what the guest's memory is in percent of */
  move(outlooks: readonly Outlook[], memoryBytes: number, nowMs: number): void {
    for (const { metric, ahead } of outlooks) {
      const moving = this.moving[SOURCE[metric]];
      const next = ahead.slice(0, INTERVALS_AHEAD);
      const scale = this.scaleOf(metric, memoryBytes);
      const state = moveThreshold(POLICIES[SOURCE[metric]], moving.state, {
        expected: scale * Math.max(...next.map((each) => each.expected)),
        upperBound: scale * Math.max(...next.map((each) => each.bounds[COVERAGE]!)),
      });
      if (state.value !== moving.state.value) moving.sinceMs = nowMs;
      moving.state = state;
    }
  }

  /** Compares what was measured, and tells alarms that begin or end with it. */
  judge(usage: Usage, nowMs: number): Alarm[] {
    return METRICS.flatMap((metric) => {
      const moving = this.moving[metric];
      const value = measured(metric, usage);
      moving.measured = value;
      moving.state = judgeThreshold(POLICIES[metric], moving.state, value);
      moving.aboveSinceMs = moving.state.firing ? (moving.aboveSinceMs ?? nowMs) : null;
      const raised = moving.aboveSinceMs !== null && nowMs - moving.aboveSinceMs >= ALARM_HELD_MS;
      // An alarm ends with the first value that is clearly below; until then it is one.
      if (raised === moving.alarmed || (moving.alarmed && moving.state.firing)) return [];
      moving.alarmed = raised;
      return [{ metric, raised, value, threshold: moving.state.value, reason: moving.state.reason }];
    });
  }

  get alarmed(): boolean {
    return METRICS.some((metric) => this.moving[metric].alarmed);
  }

  view(nowMs: number): ThresholdView[] {
    return METRICS.map((metric) => {
      const { floor, ceiling, margin, hysteresis, unit } = POLICIES[metric];
      const { state, sinceMs, measured: last, alarmed } = this.moving[metric];
      return {
        metric,
        unit,
        value: state.value,
        reason: state.reason,
        ...{ floor, ceiling, margin, hysteresis },
        measured: last,
        alarm: alarmed,
        unchangedForMs: nowMs - sinceMs,
      };
    });
  }

  /** Triggers are in percent of what the VM has. */
  private scaleOf(metric: ForecastMetric, memoryBytes: number): number {
    if (metric === 'demand') return 1 / this.vcpus;
    return metric === 'memory' ? 100 / memoryBytes : 1;
  }
}

/** "cpu at 97.0%, above 74.8%: …" */
export function alarmWords({ metric, raised, value, threshold, reason }: Alarm): string {
  const label = (amount: number) => (POLICIES[metric].unit === '%' ? percent(amount) : bytesPerSecond(amount));
  return raised
    ? `${metric} at ${label(value)} is more than usual: above ${label(threshold)} (${reason}) for ${ALARM_HELD_MS / 1000} s`
    : `${metric} is back at ${label(value)}`;
}
