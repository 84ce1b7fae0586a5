/** The last samples of a duration, for honest quantiles: no buckets, no decay, bounded memory. */
import type { Quantiles } from '../vm/view.js';

const SAMPLES_MAX = 4096;

export class Samples {
  private readonly ring = new Float64Array(SAMPLES_MAX);
  private count = 0;

  add(ms: number): void {
    this.ring[this.count % SAMPLES_MAX] = ms;
    this.count++;
  }

  quantiles(): Quantiles {
    const sorted = this.ring.slice(0, Math.min(this.count, SAMPLES_MAX)).sort();
    return { count: this.count, p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99), max: sorted.at(-1) ?? null };
  }
}

/** Nearest-rank quantile of an ascending series; null when it is empty. */
export function quantile(ascending: ArrayLike<number>, q: number): number | null {
  const rank = Math.max(1, Math.ceil(q * ascending.length));
  return ascending[rank - 1] ?? null;
}
