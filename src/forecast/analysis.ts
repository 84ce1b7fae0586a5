/** What kind of load a series is, in figures and words: pure, over a whole history of equal intervals. */

export type WorkloadClass = 'unknown' | 'idle' | 'steady' | 'periodic' | 'bursty';

export interface Analysis {
  class: WorkloadClass;
  samples: number;
  mean: number;
  median: number;
  p99: number;
  /** p99 over the median. */
  burstiness: number;
  /** Strongest first: length in samples, and how alike two periods are (correlation, 0–1). */
  periods: { samples: number; strength: number }[];
  /** Change per day, from the middle of all slopes between days. */
  trendPerDay: number;
  /** Samples at which the level changed for good. */
  changePoints: { at: number; before: number; after: number }[];
  words: string;
}

const SAMPLES_MIN = 48;
const PERIODS_MAX = 3;
const PERIOD_CUT = 0.98;
const PERIOD_STRENGTH_MIN = 0.3;
const PERIOD_SAMPLES_MIN = 4;
const STEADY_SPREAD_MAX = 0.25;
const BURSTY_MIN = 3;
const CHANGES_MAX = 8;
const CHANGE_BLOCKS_MIN = 12;
const BLOCK = 12;

export interface AnalysisOptions {
  intervalS: number;
  /** The p99 up to which a VM is idle. */
  idleBelow: number;
  /** An amount for people, with its unit. */
  label?: (value: number) => string;
}

export function analyze(history: readonly number[], options: AnalysisOptions): Analysis {
  const values = history.filter((value) => value >= 0 && Number.isFinite(value));
  const perDay = Math.round(86_400 / options.intervalS);
  const quantile = (share: number) => quantileOf(values, share);
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const [median, p99] = [quantile(0.5), quantile(0.99)];
  const figures = {
    samples: values.length,
    mean,
    median,
    p99,
    burstiness: median > 0 ? p99 / median : 1,
    periods: findPeriods(values, perDay),
    trendPerDay: findTrend(values, perDay),
    changePoints: findChanges(values),
  };
  const spread = quantile(0.9) - quantile(0.1);
  const kind = classify(figures, spread, options.idleBelow);
  return { class: kind, ...figures, words: inWords(kind, figures, options) };
}

function classify(figures: Omit<Analysis, 'class' | 'words'>, spread: number, idleBelow: number): WorkloadClass {
  if (figures.samples < SAMPLES_MIN) return 'unknown';
  if (figures.p99 <= idleBelow) return 'idle';
  if (figures.periods.length > 0) return 'periodic';
  if (figures.burstiness >= BURSTY_MIN) return 'bursty';
  return spread <= STEADY_SPREAD_MAX * figures.median ? 'steady' : 'bursty';
}

/** Peaks of the autocorrelation; rare spikes are cut, since one alone would hide every period. Strongest first. */
export function findPeriods(values: readonly number[], perDay: number): Analysis['periods'] {
  if (values.length < SAMPLES_MIN) return [];
  const cut = quantileOf(values, PERIOD_CUT);
  const cutValues = values.map((value) => Math.min(value, cut));
  const mean = cutValues.reduce((sum, value) => sum + value, 0) / values.length;
  const centred = Float64Array.from(cutValues, (value) => value - mean);
  const power = centred.reduce((sum, value) => sum + value * value, 0) / values.length;
  if (power <= 1e-9 * (1 + mean * mean)) return [];
  const lagMax = Math.floor(values.length / 3);
  const correlation = new Float64Array(lagMax + 1);
  for (let lag = 1; lag <= lagMax; lag++) {
    let sum = 0;
    for (let t = lag; t < centred.length; t++) sum += centred[t]! * centred[t - lag]!;
    correlation[lag] = sum / (centred.length - lag) / power;
  }
  const found: Analysis['periods'] = [];
  let lowest = 1;
  for (let lag = 1; lag < lagMax; lag++) {
    const strength = correlation[lag]!;
    lowest = Math.min(lowest, strength);
    const isPeak = strength >= correlation[lag - 1]! && strength > correlation[lag + 1]!;
    // A slow decay has no valley before it: it is a memory, and not a period.
    if (!isPeak || lag < PERIOD_SAMPLES_MIN || strength < PERIOD_STRENGTH_MIN || strength - lowest < 0.2) continue;
    const multiple = found.some(
      (each) => lag / each.samples > 1.5 && nearInteger(lag / each.samples) && strength < each.strength + 0.1,
    );
    const beside = found.some((each) => Math.abs(lag - each.samples) < 0.1 * lag && strength <= each.strength);
    // Drift moves a broad peak by a sample or two off the day that it is.
    const days = Math.round(lag / perDay);
    const samples = days > 0 && Math.abs(lag - days * perDay) <= 0.02 * lag ? days * perDay : lag;
    if (!multiple && !beside) found.push({ samples, strength: Math.min(1, strength) });
  }
  return found.toSorted((a, b) => b.strength - a.strength).slice(0, PERIODS_MAX);
}

function nearInteger(ratio: number): boolean {
  return Math.abs(ratio - Math.round(ratio)) < 0.06;
}

/** Theil and Sen: the middle slope between the days' medians, which one odd day does not move. */
function findTrend(values: readonly number[], perDay: number): number {
  const days: number[] = [];
  for (let t = 0; t + perDay <= values.length; t += perDay) days.push(medianOf(values.slice(t, t + perDay)));
  const slopes = days.flatMap((day, i) => days.slice(0, i).map((before, j) => (day - before) / (i - j)));
  return slopes.length === 0 ? 0 : medianOf(slopes);
}

/** Splits where it lowers the absolute distance from the parts' medians most, until a split is not worth its price. */
function findChanges(values: readonly number[]): Analysis['changePoints'] {
  const blocks: number[] = [];
  for (let t = 0; t + BLOCK <= values.length; t += BLOCK) blocks.push(medianOf(values.slice(t, t + BLOCK)));
  const cuts = [0, blocks.length];
  const price = 0.15;
  while (cuts.length - 2 < CHANGES_MAX) {
    let best: { at: number; gain: number } | null = null;
    for (let i = 1; i < cuts.length; i++) {
      const [from, to] = [cuts[i - 1]!, cuts[i]!];
      const whole = distance(blocks, from, to);
      const step = Math.max(1, Math.floor((to - from) / 64));
      for (let at = from + CHANGE_BLOCKS_MIN; at <= to - CHANGE_BLOCKS_MIN; at += step) {
        const gain = whole - distance(blocks, from, at) - distance(blocks, at, to);
        if (gain > price * distance(blocks, 0, blocks.length) && gain > (best?.gain ?? 0)) best = { at, gain };
      }
    }
    if (best === null) break;
    cuts.push(best.at);
    cuts.sort((a, b) => a - b);
  }
  return cuts.slice(1, -1).map((at, i) => ({
    at: at * BLOCK,
    before: medianOf(blocks.slice(cuts[i]!, at)),
    after: medianOf(blocks.slice(at, cuts[i + 2]!)),
  }));
}

function quantileOf(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.round(share * (sorted.length - 1))] ?? Number.NaN;
}

function distance(values: readonly number[], from: number, to: number): number {
  const part = values.slice(from, to);
  const middle = medianOf(part);
  return part.reduce((sum, value) => sum + Math.abs(value - middle), 0);
}

function medianOf(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

function inWords(
  kind: WorkloadClass,
  figures: Omit<Analysis, 'class' | 'words'>,
  { intervalS, label = (value) => value.toFixed(1) }: AnalysisOptions,
): string {
  if (kind === 'unknown') return `too little is known: ${figures.samples} samples`;
  const period = figures.periods[0];
  const change = figures.changePoints.at(-1);
  const parts = [
    `${kind}: half of the time up to ${label(figures.median)}, 99% of it up to ${label(figures.p99)}`,
    period === undefined
      ? null
      : `repeats every ${duration(period.samples * intervalS)} (${(100 * period.strength).toFixed(0)}% alike)`,
    Math.abs(figures.trendPerDay) > 0.01 * figures.median
      ? `${figures.trendPerDay > 0 ? 'rises' : 'falls'} by ${label(Math.abs(figures.trendPerDay))} a day`
      : null,
    change === undefined
      ? null
      : `went from ${label(change.before)} to ${label(change.after)} ${duration((figures.samples - change.at) * intervalS)} ago`,
  ];
  return parts.filter((part) => part !== null).join('; ');
}

function duration(seconds: number): string {
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 36 * 3600 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86_400).toFixed(1)} days`;
}
