/** The figures by which forecasts and limits are judged. Samples that are no number count nowhere. */

/** Mean absolute error of the one-season naive forecast over the training part: the unit of MASE. */
export function naiveScale(values: readonly number[], train: number, season: number): number {
  return meanOf(season, Math.min(train, values.length), (t) => Math.abs(values[t]! - values[t - season]!));
}

export function meanAbsoluteError(values: readonly number[], forecasts: readonly number[], from: number): number {
  return meanOf(from, values.length, (t) => Math.abs(values[t]! - forecasts[t]!));
}

export interface LimitScore {
  /** Share of samples at or below the limit. */
  coverage: number;
  /** Share of the hours (blocks of decision length) with at least one sample above the limit. */
  breachedHours: number;
  /** Share of what was allocated that was not used. */
  unusedShare: number;
  changesPerDay: number;
}

export function scoreLimits(
  values: readonly number[],
  limits: readonly number[],
  from: number,
  samplesPerDay: number,
  samplesPerBlock: number,
): LimitScore {
  let [samples, covered, allocated, used, changes] = [0, 0, 0, 0, 0];
  const breached = new Set<number>();
  const blocks = new Set<number>();
  for (let t = from; t < values.length; t++) {
    const [value, limit] = [values[t]!, limits[t]!];
    if (t > from && limit !== limits[t - 1] && !Number.isNaN(limits[t - 1]!)) changes++;
    if (Number.isNaN(value) || Number.isNaN(limit)) continue;
    const block = Math.floor(t / samplesPerBlock);
    blocks.add(block);
    samples++;
    allocated += limit;
    used += Math.min(value, limit);
    if (value <= limit) covered++;
    else breached.add(block);
  }
  return {
    coverage: covered / samples,
    breachedHours: breached.size / blocks.size,
    unusedShare: allocated > 0 ? 1 - used / allocated : 0,
    changesPerDay: (changes * samplesPerDay) / (values.length - from),
  };
}

function meanOf(from: number, to: number, term: (t: number) => number): number {
  let [sum, count] = [0, 0];
  for (let t = from; t < to; t++) {
    const value = term(t);
    if (Number.isNaN(value)) continue;
    sum += value;
    count++;
  }
  return sum / count;
}
