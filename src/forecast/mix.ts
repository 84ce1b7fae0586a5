/**
 * A weighted mean of experts, for one horizon: weights follow each expert's discounted absolute error on this series.
 * Weights fall as a power of the error, so that they do not depend on the unit of the series.
 */
export class Mix {
  private readonly errors: Float64Array;

  /** `memory` in samples; `prior` are relative weights before any error was seen; `power` says how sharp the choice is. */
  constructor(
    private readonly prior: readonly number[],
    private readonly memory: number,
    private readonly power: number,
  ) {
    this.errors = new Float64Array(prior.length);
  }

  /** Takes what the experts said of a sample that has come. */
  learn(forecasts: ArrayLike<number>, value: number): void {
    const keep = 1 - 1 / this.memory;
    for (let i = 0; i < this.prior.length; i++)
      this.errors[i] = keep * this.errors[i]! + (1 - keep) * Math.abs(forecasts[i]! - value);
  }

  combine(forecasts: ArrayLike<number>): number {
    let smallest = Number.POSITIVE_INFINITY;
    for (const error of this.errors) smallest = Math.min(smallest, error);
    let [sum, weights] = [0, 0];
    for (let i = 0; i < this.prior.length; i++) {
      const ratio = this.errors[i]! <= smallest ? 1 : smallest / this.errors[i]!;
      const weight = this.prior[i]! * ratio ** this.power;
      sum += weight * forecasts[i]!;
      weights += weight;
    }
    return weights > 0 ? sum / weights : Number.NaN;
  }
}
