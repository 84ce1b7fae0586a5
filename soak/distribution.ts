/** A row of measurements, told as people ask for it. */
import { quantile } from '../src/protect/samples.js';

export interface Distribution {
  count: number;
  p50: number | null;
  p99: number | null;
  max: number | null;
}

export function distribution(values: readonly number[]): Distribution {
  const ascending = [...values].sort((a, b) => a - b);
  const round = (value: number | null) => (value === null ? null : Math.round(value * 1000) / 1000);
  return {
    count: ascending.length,
    p50: round(quantile(ascending, 0.5)),
    p99: round(quantile(ascending, 0.99)),
    max: round(ascending.at(-1) ?? null),
  };
}
