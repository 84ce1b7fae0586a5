/** Medians and tails of a benchmark's rounds. */
import { quantile } from '../src/protect/samples.js';

export function p50(values: readonly number[]): number {
  return round(
    quantile(
      [...values].sort((a, b) => a - b),
      0.5,
    ) ?? Number.NaN,
  );
}

export function p99(values: readonly number[]): number {
  return round(
    quantile(
      [...values].sort((a, b) => a - b),
      0.99,
    ) ?? Number.NaN,
  );
}

/** Three significant digits behind the point are more than a noisy machine gives. */
export function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
