/** The newest samples of a series together with the level and spread that it had at each of them. */
import { Recent } from './recent.js';

export interface Scale {
  level: number;
  /** Mean absolute distance from the level; never 0. */
  spread: number;
}

/** How far back a scale can be asked for, in samples: the longest horizon. */
export const HORIZON_MAX = 288;
const SEASONS_KEPT = 7;
const DAY_SHARE = 1 / 288;
/** A spread below this share of the level is noise of the measurement. */
const SPREAD_SHARE_MIN = 0.002;
const SPREAD_MIN = 1e-3;

/** A spread that is no less than the noise of measuring at this level. */
export function aboveNoise(spread: number, level: number): number {
  return Math.max(spread, SPREAD_MIN + SPREAD_SHARE_MIN * Math.abs(level));
}

export class Scaled {
  private readonly values: Recent;
  private readonly levels = new Recent(HORIZON_MAX + 1);
  private readonly spreads = new Recent(HORIZON_MAX + 1);
  private level = Number.NaN;
  private spread = 0;

  constructor(readonly season: number) {
    this.values = new Recent(SEASONS_KEPT * season + 2 * HORIZON_MAX);
  }

  get count(): number {
    return this.values.count;
  }

  push(value: number): void {
    this.level = Number.isNaN(this.level) ? value : this.level + DAY_SHARE * (value - this.level);
    this.spread += DAY_SHARE * (Math.abs(value - this.level) - this.spread);
    this.values.push(value);
    this.levels.push(this.level);
    this.spreads.push(aboveNoise(this.spread, this.level));
  }

  /** The sample `age` before the newest; NaN where none is kept. */
  at(age: number): number {
    return this.values.at(age);
  }

  /** null before the first sample. */
  scaleAt(age: number): Scale | null {
    const level = this.levels.at(age);
    return Number.isNaN(level) ? null : { level, spread: this.spreads.at(age) };
  }
}
