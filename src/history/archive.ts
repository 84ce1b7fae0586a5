/** What the history's thread does: takes what VMs used, forecasts it, and answers questions about it. */
import { type Analysis, analyze } from '../forecast/analysis.js';
import { type ForecastSettings, type Outlook, TAUGHT_SAMPLES, VmForecasts } from '../forecast/outlook.js';
import { amount } from '../vm/amount-text.js';
import { METRIC_UNITS, type Metric, type UsageSample } from './metrics.js';
import { type HistoryPoint, HistoryStore } from './store.js';

/** What a VM used in one second. */
export interface VmSecond {
  vm: string;
  /** Unix time of the second's begin. */
  atS: number;
  usage: UsageSample;
}

/** Points of equal distance. */
export interface HistoryPart {
  stepS: number;
  points: HistoryPoint[];
}

/** An analysis, with the interval of the samples that it counts in. */
export interface HistoryAnalysis {
  intervalS: number;
  sinceS: number;
  analysis: Analysis;
}

const POINTS_MAX = 2000;
/** An analysis looks at so many samples at most: two weeks of 5 minutes. */
const ANALYSED_MAX = 4032;
/** The distances that rows have, and multiples that people read well. */
const STEPS_S = [1, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 86_400];
/** Below it at 99 % of the time a VM does nothing, in the unit of the metric. */
const IDLE_BELOW: Partial<Record<Metric, number>> = { cpu: 5, demand: 5, 'network-bytes': 1000, 'dirty-rate': 65_536 };

/** Rows of the past that are learnt in one turn: some 10 ms. */
const TAUGHT_PER_TURN = 16;

export interface ArchiveOptions {
  path: string;
  forecasts: ForecastSettings;
  /** What is expected of a VM from now on; told at the end of each interval. */
  onOutlook: (vm: string, outlooks: Outlook[]) => void;
}

export class Archive {
  private readonly store: HistoryStore;
  private readonly forecasts = new Map<string, VmForecasts>();
  /** VMs of an earlier run, whose forecasters still learn what the history holds. */
  private readonly learning = new Map<string, Iterator<void>>();

  /** @throws STATE_CORRUPT */
  constructor(private readonly options: ArchiveOptions) {
    this.store = HistoryStore.open(options.path);
  }

  /** Takes one second of all VMs, in one transaction. */
  take(seconds: readonly VmSecond[]): void {
    for (const { vm, atS, usage } of seconds) this.store.append(vm, atS, usage);
    this.store.flush();
    for (const { vm, atS, usage } of seconds) {
      const forecasts = this.forecasts.get(vm);
      if (forecasts === undefined) this.begin(vm, atS);
      else if (!this.learning.has(vm) && forecasts.take(atS, (metric) => usage[metric] ?? Number.NaN)) this.tell(vm);
    }
  }

  /** Goes on learning the past for a moment. @returns whether more is left */
  learn(): boolean {
    const [next] = this.learning;
    if (next === undefined) return false;
    const [vm, rows] = next;
    for (let i = 0; i < TAUGHT_PER_TURN; i++) {
      if (!rows.next().done) continue;
      this.learning.delete(vm);
      this.tell(vm);
      break;
    }
    return this.learning.size > 0;
  }

  /** A VM that is new to this run: what the history holds of it comes first. */
  private begin(vm: string, atS: number): void {
    const { forecasts: settings } = this.options;
    const forecasts = new VmForecasts(settings);
    this.forecasts.set(vm, forecasts);
    const sinceS = atS - TAUGHT_SAMPLES * settings.intervalS;
    const { store } = this;
    this.learning.set(
      vm,
      (function* () {
        for (const row of store.rows(vm, sinceS, atS + 1, settings.intervalS)) {
          forecasts.take(row.atS, row.max);
          yield;
        }
        // And what has come meanwhile.
        for (const row of store.rows(vm, atS + 1, Number.MAX_SAFE_INTEGER, 1)) forecasts.take(row.atS, row.max);
      })(),
    );
  }

  private tell(vm: string): void {
    const outlooks = this.forecasts.get(vm)?.outlooks() ?? [];
    if (outlooks.length > 0) this.options.onOutlook(vm, outlooks);
  }

  /** The points of a metric in [sinceS, untilS), at most `pointsMax` of them. */
  points(vm: string, metric: Metric, sinceS: number, untilS: number, pointsMax: number): HistoryPart {
    const points = this.store.query(vm, metric, sinceS, untilS);
    return thinned(points, Math.min(pointsMax, POINTS_MAX));
  }

  /** What kind of load it was; of the newest {@link ANALYSED_MAX} samples where there are more. */
  analysis(vm: string, metric: Metric, sinceS: number, untilS: number): HistoryAnalysis {
    const { stepS, points } = thinned(this.store.query(vm, metric, sinceS, untilS), ANALYSED_MAX);
    const values = evenly(points, stepS);
    return {
      intervalS: stepS,
      sinceS: points[0]?.atS ?? sinceS,
      analysis: analyze(values, {
        intervalS: stepS,
        idleBelow: IDLE_BELOW[metric] ?? 0,
        label: (value) => amount(value, METRIC_UNITS[metric]),
      }),
    };
  }

  remove(vm: string): void {
    this.forecasts.delete(vm);
    this.learning.delete(vm);
    this.store.remove(vm);
  }

  close(): void {
    this.learning.clear();
    this.store.close();
  }
}

/** Neighbours put together until there are few enough: their mean, and the highest of them. */
export function thinned(points: readonly HistoryPoint[], pointsMax: number): HistoryPart {
  const own = smallestStep(points);
  const spanS = points.length === 0 ? 0 : points.at(-1)!.atS - points[0]!.atS + own;
  const stepS = STEPS_S.find((step) => step >= own && spanS / step <= pointsMax) ?? STEPS_S.at(-1)!;
  if (stepS === own) return { stepS, points: [...points] };
  const buckets = new Map<number, { sum: number; max: number; count: number }>();
  for (const { atS, mean, max } of points) {
    const startS = Math.floor(atS / stepS) * stepS;
    const bucket = buckets.get(startS) ?? { sum: 0, max: 0, count: 0 };
    buckets.set(startS, { sum: bucket.sum + mean, max: Math.max(bucket.max, max), count: bucket.count + 1 });
  }
  return {
    stepS,
    points: [...buckets].map(([atS, { sum, max, count }]) => ({ atS, mean: sum / count, max })),
  };
}

function smallestStep(points: readonly HistoryPoint[]): number {
  let smallest = Number.POSITIVE_INFINITY;
  for (let i = 1; i < points.length; i++) smallest = Math.min(smallest, points[i]!.atS - points[i - 1]!.atS);
  return Number.isFinite(smallest) ? (STEPS_S.findLast((step) => step <= smallest) ?? 1) : 1;
}

/** One mean for each step from the first point to the last. A gap is what was before it: a period must not lose its place. */
function evenly(points: readonly HistoryPoint[], stepS: number): number[] {
  const values: number[] = [];
  for (const { atS, mean } of points) {
    const place = Math.min(Math.round((atS - points[0]!.atS) / stepS), ANALYSED_MAX);
    while (values.length < place) values.push(values.at(-1) ?? mean);
    values.push(mean);
  }
  return values.slice(-ANALYSED_MAX);
}
