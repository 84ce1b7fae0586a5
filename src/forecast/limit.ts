/** Turns forecasts into an allocation that is held for a while. */
import type { Forecaster } from './forecaster.js';

/** A limit is decided at most once in so many samples. */
export const SAMPLES_PER_DECISION = 12;

export class LimitKeeper {
  limit = Number.NaN;

  constructor(private readonly safety: number) {}

  observe(_value: number): void {}

  decide(forecaster: Forecaster): void {
    this.limit = forecaster.forecast(12) * this.safety;
  }
}
