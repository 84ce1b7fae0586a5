/**
 * A forecaster of a series that may repeat after another time than the one that all are given. A period that the series
 * shows gets a second forecaster, which is taught the past a few samples at a time; from then on the one speaks that was
 * clearly nearer of late. Lost: to replace the first one for good (what was better in the past week was worse in the next).
 */
import { isUsage } from '../monitor/usage-value.js';
import { findPeriods } from './analysis.js';
import { Forecaster } from './forecaster.js';
import { Recent } from './recent.js';
import { Smoothed } from './window.js';

/** What they are judged by: the next hour, with samples of 5 minutes; of the last day. */
const AHEAD = 12;
const ERROR_MEMORY = 1 / 288;
/** Samples that are looked at for a period, and that a second forecaster is taught. */
const PAST = 1152;
const LOOK_EVERY = 96;
/** Shorter ones are within reach of the newest samples, which every forecast is made from. */
const PERIOD_MIN = 32;
/** With each sample that comes; it takes three times as long meanwhile. */
const TAUGHT_PER_SAMPLE = 2;
/** What the second has to be better by. */
const BETTER = 0.95;
/** For so long a second one may show what it is worth. */
const TRIAL = 1152;

export class OwnSeasonForecaster {
  private readonly given: Scored;
  private own: Scored | null = null;
  /** Number of the sample that the second one is taught next. */
  private next = 0;
  private readonly values = new Recent(PAST);
  private samples = 0;
  private lookAt = LOOK_EVERY;

  /** @param season in samples; what it is forecast with until its own is known */
  constructor(season: number) {
    this.given = new Scored(season);
  }

  /** In samples: that of what is forecast now. */
  get season(): number {
    return this.best.season;
  }

  /** Takes the next sample. What can not be a usage (NaN, negative, absurd) counts as one that did not come. */
  observe(value: number): void {
    const sample = isUsage(value) ? value : Number.NaN;
    this.values.push(sample);
    this.samples++;
    this.given.observe(sample);
    this.teach();
    if (this.samples >= this.lookAt && this.best === this.given) this.look();
  }

  forecast(steps: number): number {
    return this.best.forecaster.forecast(steps);
  }

  upperBound(steps: number, coverage: number): number {
    return this.best.forecaster.upperBound(steps, coverage);
  }

  private get best(): Scored {
    const { own, given } = this;
    const knowsAll = own !== null && this.next === this.samples;
    return knowsAll && own.error < BETTER * given.error ? own : given;
  }

  private look(): void {
    this.own = null;
    this.lookAt = this.samples + LOOK_EVERY;
    const { count } = this.values;
    const known: number[] = [];
    for (let age = count - 1; age >= 0; age--) {
      const value = this.values.at(age);
      known.push(Number.isNaN(value) ? (known.at(-1) ?? 0) : value);
    }
    const season = findPeriods(known, this.given.season)[0]?.samples;
    if (season === undefined || season < PERIOD_MIN || isWithin(season, this.given.season)) return;
    this.own = new Scored(season);
    this.next = this.samples - count;
    this.lookAt = this.samples + TRIAL;
  }

  private teach(): void {
    for (let i = 0; this.own !== null && i < TAUGHT_PER_SAMPLE && this.next < this.samples; i++)
      this.own.observe(this.values.at(this.samples - 1 - this.next++));
  }
}

/** A forecaster, and how far off it is. */
class Scored {
  readonly forecaster: Forecaster;
  private readonly errors = new Smoothed(ERROR_MEMORY);
  private readonly due = new Float64Array(AHEAD).fill(Number.NaN);
  private samples = 0;

  constructor(readonly season: number) {
    this.forecaster = new Forecaster({ season });
  }

  /** Mean distance from what was said an hour before; NaN where nothing was. */
  get error(): number {
    return this.errors.value;
  }

  observe(value: number): void {
    const at = this.samples++ % AHEAD;
    const error = Math.abs(value - this.due[at]!);
    if (!Number.isNaN(error)) this.errors.push(error);
    this.forecaster.observe(value);
    this.due[at] = this.forecaster.forecast(AHEAD);
  }
}

/** What repeats within the season is in it already, and so is a season of seasons. A period is known to a sample. */
function isWithin(period: number, season: number): boolean {
  const [shorter, longer] = period < season ? [period, season] : [season, period];
  const times = Math.round(longer / shorter);
  return Math.abs(longer - times * shorter) <= times;
}
