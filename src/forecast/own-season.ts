/**
 * A forecaster of a series that may repeat after another time than the one that all are given. A period that the series
 * shows gets a forecaster of its own, which is taught the past a few samples at a time and takes over if it would have
 * forecast the newer part of that past clearly better.
 */
import { findPeriods } from './analysis.js';
import { Forecaster } from './forecaster.js';
import { Recent } from './recent.js';

/** What a trial is judged by: an hour, with samples of 5 minutes. */
const AHEAD = 12;
/** Samples that are looked at for a period, and that a trial is taught. */
const PAST = 1152;
const LOOK_EVERY = 96;
/** Shorter ones are within reach of the newest samples, which every forecast is made from. */
const PERIOD_MIN = 32;
/** Samples that a trial is taught with each one that comes: a sample takes four times as long meanwhile. */
const TAUGHT_PER_SAMPLE = 3;
/** A trial's errors count once it has seen its period so many times. */
const PERIODS_LEARNT = 2;
const JUDGED_MIN = 96;
/** What it has to be better by, and after what it may try again. */
const BETTER = 0.95;
const AGAIN_AFTER = 1152;

interface Trial {
  scored: Scored;
  season: number;
  /** Number of the sample that it is taught next, and of the one that it is judged from. */
  next: number;
  judgedFrom: number;
  judged: number;
  error: number;
  errorOfPresent: number;
}

export class OwnSeasonForecaster {
  private present: Scored;
  private readonly values = new Recent(PAST);
  private readonly errors = new Recent(PAST);
  private samples = 0;
  private trial: Trial | null = null;
  private lookAt = LOOK_EVERY;

  /** @param season in samples; what it is forecast with until its own is known */
  constructor(public season: number) {
    this.present = new Scored(season);
  }

  observe(value: number): void {
    this.values.push(value);
    this.errors.push(this.present.observe(value));
    this.samples++;
    if (this.trial !== null) this.goOn(this.trial);
    else if (this.samples >= this.lookAt) this.look();
  }

  forecast(steps: number): number {
    return this.present.forecaster.forecast(steps);
  }

  upperBound(steps: number, coverage: number): number {
    return this.present.forecaster.upperBound(steps, coverage);
  }

  private look(): void {
    this.lookAt = this.samples + LOOK_EVERY;
    const { count } = this.values;
    const known: number[] = [];
    for (let age = count - 1; age >= 0; age--) {
      const value = this.values.at(age);
      known.push(value >= 0 ? value : (known.at(-1) ?? 0));
    }
    const season = findPeriods(known, this.season)[0]?.samples;
    if (season === undefined || season < PERIOD_MIN || isWithin(season, this.season)) return;
    const first = this.samples - count;
    this.trial = {
      scored: new Scored(season),
      season,
      next: first,
      judgedFrom: first + PERIODS_LEARNT * season,
      judged: 0,
      error: 0,
      errorOfPresent: 0,
    };
  }

  private goOn(trial: Trial): void {
    for (let i = 0; i < TAUGHT_PER_SAMPLE && trial.next < this.samples; i++, trial.next++) {
      const age = this.samples - 1 - trial.next;
      const [error, errorOfPresent] = [trial.scored.observe(this.values.at(age)), this.errors.at(age)];
      if (trial.next < trial.judgedFrom || Number.isNaN(error) || Number.isNaN(errorOfPresent)) continue;
      trial.judged++;
      trial.error += error;
      trial.errorOfPresent += errorOfPresent;
    }
    if (trial.next < this.samples || trial.judged < JUDGED_MIN) return;
    this.trial = null;
    if (trial.error < BETTER * trial.errorOfPresent) {
      this.present = trial.scored;
      this.season = trial.season;
    }
    this.lookAt = this.samples + AGAIN_AFTER;
  }
}

/** A forecaster, and how far off it was. */
class Scored {
  readonly forecaster: Forecaster;
  private readonly due = new Float64Array(AHEAD).fill(Number.NaN);
  private samples = 0;

  constructor(season: number) {
    this.forecaster = new Forecaster({ season });
  }

  /** @returns the distance from what was said an hour before; NaN where nothing was, or nothing came */
  observe(value: number): number {
    const at = this.samples++ % AHEAD;
    const error = Math.abs(value - this.due[at]!);
    this.forecaster.observe(value);
    this.due[at] = this.forecaster.forecast(AHEAD);
    return error;
  }
}

/** What repeats within the season is in it already, and so is a season of seasons. A period is known to a sample. */
function isWithin(period: number, season: number): boolean {
  const [shorter, longer] = period < season ? [period, season] : [season, period];
  const times = Math.round(longer / shorter);
  return Math.abs(longer - times * shorter) <= times;
}
