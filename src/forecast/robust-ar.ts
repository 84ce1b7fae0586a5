/**
 * A linear forecast from the newest samples and from those of a day, two and seven days before, whose weights are fitted
 * to this series alone as it goes on: recursive least squares that forgets, with each sample's say limited when it is far
 * off (Huber's weight). It finds the hourly job and the 40-minute cycle that no model trained on other VMs knows.
 * Lost: gradient steps instead of least squares (slower by days to find the same weights).
 */
import type { Scaled } from './scaled.js';

export interface ArOptions {
  /** Steps ahead. */
  steps: number;
  /** The newest so many samples are regressors. */
  lags: number;
  /** Share of the past that is kept per sample. */
  keep: number;
  /** Errors beyond so many mean errors count less. */
  huber: number;
}

/** Regressors near the forecast sample's place in earlier seasons: how many seasons back, and how many samples later. */
const SEASONAL: readonly (readonly [number, number])[] = [
  [1, -1],
  [1, 0],
  [1, 1],
  [2, 0],
  [7, 0],
];
/** A constant regressor, small so that it is learnt slowly. */
const BIAS = 0.3;
const CLIP = 20;
const WEIGHT_MIN = 0.02;
const ERROR_MEMORY = 0.01;

export class RobustAr {
  private readonly size: number;
  private readonly weights: Float64Array;
  /** Inverse of the regressors' weighted second moments; symmetric. */
  private readonly inverse: Float64Array;
  private readonly past: Float64Array;
  private readonly present: Float64Array;
  private readonly gain: Float64Array;
  private meanError = 1;

  constructor(private readonly options: ArOptions) {
    this.size = 1 + options.lags + SEASONAL.length;
    this.weights = new Float64Array(this.size);
    this.inverse = new Float64Array(this.size * this.size);
    for (let i = 0; i < this.size; i++) this.inverse[i * this.size + i] = 1;
    this.past = new Float64Array(this.size);
    this.present = new Float64Array(this.size);
    this.gain = new Float64Array(this.size);
  }

  /** Learns from the newest sample, as seen from `steps` before it. */
  learn(series: Scaled): void {
    const { steps } = this.options;
    const scale = series.scaleAt(steps);
    if (scale === null) return;
    this.regress(series, steps, this.past);
    this.update(clip((series.at(0) - scale.level) / scale.spread));
  }

  forecast(series: Scaled): number {
    const scale = series.scaleAt(0);
    if (scale === null) return Number.NaN;
    this.regress(series, 0, this.present);
    return scale.level + scale.spread * clip(this.dot(this.weights, this.present));
  }

  private update(target: number): void {
    const { size, past, inverse, gain, weights } = this;
    const { keep, huber } = this.options;
    const error = target - this.dot(weights, past);
    this.meanError += ERROR_MEMORY * (Math.abs(error) - this.meanError);
    const limit = huber * this.meanError + 1e-6;
    const weight = Math.max(WEIGHT_MIN, Math.min(1, limit / Math.max(Math.abs(error), 1e-12)));
    for (let i = 0; i < size; i++) {
      let sum = 0;
      const row = i * size;
      for (let j = 0; j < size; j++) sum += inverse[row + j]! * past[j]!;
      gain[i] = sum;
    }
    const share = weight / (keep + weight * this.dot(gain, past));
    let trace = 0;
    for (let i = 0; i < size; i++) {
      weights[i] = weights[i]! + share * gain[i]! * error;
      // One triangle is computed and mirrored: rounding must not make the matrix asymmetric, which would blow it up.
      for (let j = 0; j <= i; j++) {
        const value = (inverse[i * size + j]! - share * gain[i]! * gain[j]!) / keep;
        inverse[i * size + j] = value;
        inverse[j * size + i] = value;
      }
      trace += inverse[i * size + i]!;
    }
    // Without news, forgetting alone would make the matrix grow without end.
    if (trace > 2 * size) {
      const shrink = (2 * size) / trace;
      for (let i = 0; i < inverse.length; i++) inverse[i] = inverse[i]! * shrink;
    }
  }

  /** The regressors as they were `age` samples ago, in that time's scale. */
  private regress(series: Scaled, age: number, out: Float64Array): void {
    const { steps, lags } = this.options;
    const scale = series.scaleAt(age)!;
    const scaled = (at: number) => {
      const value = series.at(at);
      return Number.isNaN(value) ? 0 : clip((value - scale.level) / scale.spread);
    };
    out[0] = BIAS;
    for (let k = 0; k < lags; k++) out[1 + k] = scaled(age + k);
    SEASONAL.forEach(([seasons, later], i) => {
      const at = age + seasons * series.season - steps - later;
      out[1 + lags + i] = at >= age ? scaled(at) : 0;
    });
  }

  private dot(a: Float64Array, b: Float64Array): number {
    let sum = 0;
    for (let i = 0; i < this.size; i++) sum += a[i]! * b[i]!;
    return sum;
  }
}

function clip(value: number): number {
  return Math.max(-CLIP, Math.min(CLIP, value));
}
