/** Replays a series as the manager would have seen it: every forecast and limit is made before its sample is shown. */
import { Limits, SAMPLES_PER_DECISION } from './limit.js';
import { OwnSeasonForecaster } from './own-season.js';
import { type LimitScore, meanAbsoluteError, naiveScale, scoreLimits } from './score.js';
import type { Row } from './series-file.js';

/** The horizons that are scored, in samples. */
const SHORT = 1;
const LONG = 12;
const DAY_S = 86_400;

export interface BacktestOptions {
  intervalS: number;
  /** Samples before the scored part. */
  train: number;
  /** Samples of one season. */
  season: number;
  /** Shares of samples that a limit is asked to cover. */
  safety: readonly number[];
}

export interface Replay {
  values: number[];
  /** `short[t]` is the forecast of sample t that was made one sample before it; NaN where none was. */
  short: number[];
  long: number[];
  /** Per safety, the allocation in force at each sample; NaN before the first decision. */
  limits: number[][];
}

export interface SeriesScore {
  samples: number;
  mase: { '1': number; '12': number };
  limits: Record<string, LimitScore>;
  usPerSample: number;
}

export function replay(rows: readonly Row[], options: BacktestOptions): Replay {
  const forecaster = new OwnSeasonForecaster(options.season);
  const limits = new Limits(options.safety);
  const result: Replay = { values: [], short: [], long: [], limits: options.safety.map(() => []) };
  /** Forecasts of samples to come, by their number. */
  const dueLong = new Map<number, number>();
  let now = 0;
  for (const row of rows) {
    for (let i = 0; i < row.gap; i++) pass(Number.NaN);
    result.values.push(row.value);
    result.short.push(forecaster.forecast(SHORT));
    result.long.push(dueLong.get(now) ?? Number.NaN);
    limits.limits.forEach((limit, i) => {
      result.limits[i]!.push(limit);
    });
    if (!row.stale) pass(row.value);
  }
  return result;

  function pass(value: number): void {
    forecaster.observe(value);
    limits.observe(value, (steps) => forecaster.forecast(steps));
    dueLong.delete(now);
    now++;
    dueLong.set(now + LONG - 1, forecaster.forecast(LONG));
  }
}

export function scoreReplay(replayed: Replay, options: BacktestOptions): Omit<SeriesScore, 'usPerSample'> {
  const { values, short, long, limits } = replayed;
  const scale = naiveScale(values, options.train, options.season);
  const score = (forecasts: number[]) => meanAbsoluteError(values, forecasts, options.train) / scale;
  const samplesPerDay = DAY_S / options.intervalS;
  return {
    samples: values.length,
    mase: { '1': score(short), '12': score(long) },
    limits: Object.fromEntries(
      options.safety.map((safety, i) => [
        String(safety),
        scoreLimits(values, limits[i]!, options.train, samplesPerDay, SAMPLES_PER_DECISION),
      ]),
    ),
  };
}

/** The header and one line per row. What was not forecast is `NaN`, which every reader of numbers knows. */
export function dumpCsv(replayed: Replay, safety: readonly number[]): string {
  const { values, short, long, limits } = replayed;
  const lines = [['t', 'y', 'f1', 'f12', ...safety.map((each) => `limit@${each}`)].join(',')];
  values.forEach((value, t) => {
    lines.push([t, value, short[t]!, long[t]!, ...limits.map((limit) => limit[t]!)].join(','));
  });
  return lines.join('\n') + '\n';
}
