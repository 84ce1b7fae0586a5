/**
 * Everything that is known of one series at its newest sample: the experts' forecasts for one horizon, and the features
 * from which the trees (trees.ts) correct them. Live and in training it is the same code, so they can not drift apart.
 */
import { Recent } from './recent.js';
import { RobustAr } from './robust-ar.js';
import { aboveNoise, Scaled } from './scaled.js';
import { SeasonProfile } from './season-profile.js';
import { Smoothed, SortedWindow } from './window.js';

const LAGS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 18, 23, 24, 35, 36, 47, 48, 71];
const EWMA_RATES = [0.5, 0.25, 0.1, 0.04, 0.01];
const MEDIAN_WINDOWS = [3, 6, 12, 36, 72];
const RANGE_WINDOWS = [6, 12, 36, 144, 288];
/** Places in earlier seasons: how many seasons back, how many samples later. */
const SEASONAL: readonly (readonly [number, number])[] = [
  ...[-2, -1, 0, 1, 2, 6, -6].map((later) => [1, later] as const),
  ...[-1, 0, 1].map((later) => [2, later] as const),
  ...[3, 4, 5, 6].map((seasons) => [seasons, 0] as const),
  ...[-1, 0, 1].map((later) => [7, later] as const),
];
const RESIDUAL_LAGS = [0, 1, 2, 11, 12, 23];
const RESIDUALS_KEPT = 24;
const DAY_RATE = 1 / 288;
/** Keeps the logarithm of a spread's share of the level finite. */
const LEVEL_MIN = 1e-3;
const FEATURE_CLIP = 50;
/** Seasons whose values at one place are compared. */
const SEASONS = 7;

/** The part of a series' state that all horizons share. */
export class Shared {
  readonly scaled: Scaled;
  private readonly ewmas = EWMA_RATES.map((rate) => new Smoothed(rate));
  private readonly medians = MEDIAN_WINDOWS.map((samples) => new SortedWindow(samples));
  private readonly ranges = RANGE_WINDOWS.map((samples) => new SortedWindow(samples));
  private readonly distance = new Smoothed(DAY_RATE);
  private readonly step = new Smoothed(DAY_RATE);
  private readonly stepShort = new Smoothed(1 / 36);
  private readonly seasonError = new Smoothed(DAY_RATE);
  private readonly usualError = new Smoothed(DAY_RATE);
  readonly profiles: readonly SeasonProfile[];

  constructor(readonly season: number) {
    this.scaled = new Scaled(season);
    this.profiles = [
      new SeasonProfile(season, { season: 0.1, offset: 0.3, level: 0.003 }),
      new SeasonProfile(season, { season: 0.3, offset: 0.1, level: 0.003 }),
    ];
  }

  /** Median of the last 288 samples. */
  get level(): number {
    return this.ranges.at(-1)!.median;
  }

  /** Size of the usual movements; never 0. */
  get spread(): number {
    return aboveNoise(this.distance.value + this.step.value, this.level);
  }

  /** 0–1: how much nearer what is usual at this place comes than the level does. */
  get seasonality(): number {
    const [usual, level] = [this.usualError.value, this.distance.value];
    return level > 0 ? Math.max(0, Math.min(1, 1 - usual / level)) : 0;
  }

  observe(value: number): void {
    const before = this.scaled.at(0);
    const usual = this.usualNow(1);
    const seasonBefore = this.scaled.at(this.season - 1);
    for (const profile of this.profiles) profile.observe(value);
    this.scaled.push(value);
    for (const each of [...this.ewmas, ...this.medians, ...this.ranges]) each.push(value);
    const step = Number.isNaN(before) ? 0 : Math.abs(value - before);
    this.step.push(step);
    this.stepShort.push(step);
    this.distance.push(Math.abs(value - this.level));
    this.seasonError.push(Math.abs(value - (Number.isNaN(seasonBefore) ? this.level : seasonBefore)));
    if (!Number.isNaN(usual)) this.usualError.push(Math.abs(value - usual));
  }

  /** Median over the last seasons at the place `steps` after the newest sample; the level where none is known. */
  private usualNow(later: number): number {
    return median(this.seasonsAt(later));
  }

  private seasonsAt(later: number): number[] {
    const values: number[] = [];
    for (let seasons = 1; seasons <= SEASONS; seasons++) values.push(this.seasonal(seasons, later));
    return values;
  }

  private seasonal(seasons: number, later: number): number {
    const age = seasons * this.season - later;
    const value = age >= 0 ? this.scaled.at(age) : Number.NaN;
    return Number.isNaN(value) ? this.level : value;
  }

  /** Features that depend on the horizon only through the season's place. */
  features(steps: number): number[] {
    const { level, spread, scaled } = this;
    const near = (value: number) => (Number.isNaN(value) ? 0 : (value - level) / spread);
    const ahead = this.seasonsAt(steps);
    const now = this.seasonsAt(0);
    return [
      ...LAGS.map((lag) => near(scaled.at(lag))),
      ...this.ewmas.map((ewma) => near(ewma.value)),
      ...this.medians.map((window) => near(window.median)),
      ...this.ranges.flatMap((window) => [near(window.max), near(window.min)]),
      ...SEASONAL.map(([seasons, later]) => near(this.seasonal(seasons, steps + later))),
      near(median(ahead)),
      near(ahead.reduce((sum, value) => sum + value, 0) / SEASONS),
      near(median(ahead.slice(0, 3))),
      near(median(now)),
      (median(ahead) - median(now)) / spread,
      Math.log(spread / (Math.abs(level) + LEVEL_MIN)),
      level / spread,
      this.stepShort.value / spread,
      this.seasonError.value / spread,
      Number.isNaN(this.usualError.value) ? 1 : this.usualError.value / spread,
      Math.min(scaled.count / this.season, 14),
    ];
  }
}

/** The experts for one horizon, and how they did. */
export class Experts {
  private readonly fitted: readonly RobustAr[];
  private readonly errors: readonly Smoothed[];
  private readonly baseError = new Smoothed(1 / 144);
  private readonly baseErrorShort = new Smoothed(1 / 12);
  private readonly baseBias = new Smoothed(1 / 12);
  private readonly lastError = new Smoothed(DAY_RATE);
  private readonly levelError = new Smoothed(DAY_RATE);
  private readonly residuals = new Recent(RESIDUALS_KEPT);
  /** What was said, by age; the base and the level last. */
  private readonly said: Float64Array;
  private samples = 0;

  constructor(
    private readonly shared: Shared,
    readonly steps: number,
  ) {
    // The next sample and the next hour are what most is decided by, so they get the richer fits.
    this.fitted = [
      new RobustAr({ steps, lags: 13, keep: 0.998, huber: 1 }),
      ...(steps === 1 || steps === 12
        ? [
            new RobustAr({ steps, lags: 37, keep: 0.998, huber: 0.5 }),
            new RobustAr({ steps, lags: 37, keep: 0.999, huber: 1 }),
          ]
        : []),
    ];
    const experts = this.fitted.length + shared.profiles.length;
    this.errors = Array.from({ length: experts }, () => new Smoothed(1 / 144));
    this.said = new Float64Array(steps * (experts + 2));
  }

  /** To be called after the shared part has taken the sample. */
  observe(value: number): void {
    const slot = this.saidAt(this.samples % this.steps);
    if (this.samples >= this.steps) {
      const base = slot.at(-2)!;
      this.errors.forEach((error, i) => {
        error.push(Math.abs(value - slot[i]!));
      });
      this.baseError.push(Math.abs(value - base));
      this.baseErrorShort.push(Math.abs(value - base));
      this.baseBias.push(value - base);
      this.residuals.push(value - base);
      this.levelError.push(Math.abs(value - slot.at(-1)!));
      this.lastError.push(Math.abs(value - this.shared.scaled.at(this.steps)));
    }
    for (const model of this.fitted) model.learn(this.shared.scaled);
    this.fitted.forEach((model, i) => {
      slot[i] = model.forecast(this.shared.scaled);
    });
    this.shared.profiles.forEach((profile, i) => {
      slot[this.fitted.length + i] = profile.forecast(this.steps);
    });
    slot[slot.length - 2] = median([...slot.subarray(0, this.fitted.length)]);
    slot[slot.length - 1] = this.shared.level;
    this.samples++;
  }

  /** What the experts say of the sample `steps` after the newest: the fitted ones, then the profiles. */
  get forecasts(): Float64Array {
    return this.newest.subarray(0, this.newest.length - 2);
  }

  /** The fitted experts' median: what the trees correct. */
  get base(): number {
    return this.newest.at(-2)!;
  }

  private get newest(): Float64Array {
    return this.saidAt((this.samples - 1) % this.steps);
  }

  private saidAt(slot: number): Float64Array {
    const width = this.errors.length + 2;
    return this.said.subarray(slot * width, (slot + 1) * width);
  }

  features(): Float64Array {
    const { level, spread, scaled } = this.shared;
    const share = (smoothed: Smoothed) => (Number.isNaN(smoothed.value) ? 1 : smoothed.value / spread);
    const features = Float64Array.from([
      ...this.shared.features(this.steps),
      ...[...this.forecasts].flatMap((forecast, i) => [(forecast - this.base) / spread, share(this.errors[i]!)]),
      (this.base - level) / spread,
      share(this.baseError),
      share(this.baseErrorShort),
      Number.isNaN(this.baseBias.value) ? 0 : this.baseBias.value / spread,
      share(this.lastError),
      share(this.levelError),
      ...RESIDUAL_LAGS.map((lag) => {
        const residual = this.residuals.at(lag);
        return Number.isNaN(residual) ? 0 : residual / spread;
      }),
      (scaled.at(0) - this.base) / spread,
    ]);
    return features.map((value) => Math.fround(Math.max(-FEATURE_CLIP, Math.min(FEATURE_CLIP, value))));
  }
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}
