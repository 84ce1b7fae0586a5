/**
 * What is expected of one VM: a forecaster for each metric that decisions are made by, fed with the highest second of each
 * interval. Peaks and not means, since a quota holds a VM back in the second in which it needs more.
 */
import { FORECAST_METRICS, type ForecastMetric, type Metric } from '../history/metrics.js';
import { isUsage } from '../monitor/usage-value.js';
import { HORIZONS } from './horizons.js';
import { Limits } from './limit.js';
import { OwnSeasonForecaster } from './own-season.js';

/** Shares of the time that the bounds of an outlook are to hold. */
export const COVERAGES = [0.8, 0.95, 0.99] as const;
/** Of these steps an outlook tells: each of the next twelve intervals, and some far ones. */
const STEPS = [
  ...Array.from({ length: 12 }, (_, i) => i + 1),
  ...HORIZONS.map(({ steps }) => steps).filter((s) => s > 12),
];

export interface ForecastSettings {
  /** Of one sample. */
  intervalS: number;
  /** After which a load is expected to repeat: mostly a day. */
  seasonS: number;
}

export interface Ahead {
  /** In intervals. */
  steps: number;
  expected: number;
  /** What it will not exceed, by {@link COVERAGES}. */
  bounds: number[];
}

export interface Outlook {
  metric: ForecastMetric;
  /** Unix time at which the newest sample ended. */
  atS: number;
  intervalS: number;
  /** How many samples it is made from. */
  samples: number;
  last: number;
  ahead: Ahead[];
  /** What an allocation that is seldom changed should be (limit.ts), of memory; null before it is known. */
  limit: number | null;
}

/** What a restart learns from, in samples: everything that the models look back at. */
export const TAUGHT_SAMPLES = 2592;
/** A longer gap is a clock that was set: what is known of the VM is not older for it, but keeps its place in the season. */
const GAP_SAMPLES_MAX = 4032;
const LIMIT_COVERAGE = 0.99;

export class VmForecasts {
  private readonly series: SeriesForecast[];

  constructor(settings: ForecastSettings) {
    this.series = FORECAST_METRICS.map((metric) => new SeriesForecast(metric, settings));
  }

  /** Takes a second, or a row of the past. @returns whether an interval ended with it */
  take(atS: number, value: (metric: Metric) => number): boolean {
    let ended = false;
    for (const each of this.series) ended = each.take(atS, value(each.metric)) || ended;
    return ended;
  }

  /** Only of metrics of which something is known. */
  outlooks(): Outlook[] {
    return this.series.flatMap((each) => each.outlook() ?? []);
  }
}

class SeriesForecast {
  private readonly forecaster: OwnSeasonForecaster;
  /** Only of what follows a limit that is held. */
  private readonly limits: Limits | null;
  /** The interval that is being filled. */
  private startS = Number.NaN;
  private highest = Number.NaN;
  private last = Number.NaN;
  private samples = 0;

  constructor(
    readonly metric: ForecastMetric,
    private readonly settings: ForecastSettings,
  ) {
    this.forecaster = new OwnSeasonForecaster(Math.max(2, Math.round(settings.seasonS / settings.intervalS)));
    this.limits = metric === 'memory' ? new Limits([LIMIT_COVERAGE]) : null;
  }

  take(atS: number, value: number): boolean {
    const { intervalS } = this.settings;
    const startS = Math.floor(atS / intervalS) * intervalS;
    const usable = isUsage(value);
    // A clock that went back: those intervals are over, and what comes is of the newest one.
    if (startS <= this.startS) {
      if (usable) this.highest = Number.isNaN(this.highest) ? value : Math.max(this.highest, value);
      return false;
    }
    const first = Number.isNaN(this.startS);
    if (!first) {
      this.observe(this.highest);
      const missing = (startS - this.startS) / intervalS - 1;
      const gap = missing > GAP_SAMPLES_MAX ? missing % this.forecaster.season : missing;
      for (let i = 0; i < gap; i++) this.observe(Number.NaN);
    }
    this.startS = startS;
    this.highest = usable ? value : Number.NaN;
    return !first;
  }

  outlook(): Outlook | null {
    if (Number.isNaN(this.last)) return null;
    const { forecaster } = this;
    return {
      metric: this.metric,
      atS: this.startS,
      intervalS: this.settings.intervalS,
      samples: this.samples,
      last: this.last,
      ahead: STEPS.map((steps) => ({
        steps,
        expected: forecaster.forecast(steps),
        bounds: COVERAGES.map((coverage) => forecaster.upperBound(steps, coverage)),
      })),
      limit: this.limit,
    };
  }

  private get limit(): number | null {
    const [limit = Number.NaN] = this.limits?.limits ?? [];
    return Number.isNaN(limit) ? null : limit;
  }

  private observe(value: number): void {
    this.forecaster.observe(value);
    this.limits?.observe(value, (steps) => this.forecaster.forecast(steps));
    if (Number.isNaN(value)) return;
    this.last = value;
    this.samples++;
  }
}
