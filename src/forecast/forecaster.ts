/**
 * Forecasts one series, sample by sample, from 1 sample to {@link HORIZON_MAX} ahead, with upper bounds. From the first
 * sample on: what similar VMs did is in the trees, what this VM does is in the fitted experts and the weights.
 */
import { isUsage } from '../monitor/usage-value.js';
import { Bounds } from './bounds.js';
import { Experts, Shared } from './experts.js';
import { HORIZONS } from './horizons.js';
import { Mix } from './mix.js';
import { HORIZON_MAX } from './scaled.js';
import { TRAINED } from './trained.js';
import { Trees } from './trees.js';

/** Weights before any error was seen: trees, half-corrected trees, base, fitted experts and profiles, last, seasonal. */
const PRIOR_TREES = 4;
const PRIOR_OTHER = 0.3;
const MEMORY = 576;
const POWER = 6;
/** A forecast is at most so many times the highest sample of late. */
const HIGHEST_FACTOR = 1.5;
const HIGHEST_KEEP = 1 - 1 / 2016;

export class Forecaster {
  private readonly shared: Shared;
  private readonly horizons: HorizonForecaster[];
  private samples = 0;
  private highest = 0;

  /** `season` in samples, mostly a day. `trained` is for trying other trees than those that ship. */
  constructor(options: { season: number; trained?: ReadonlyMap<number, Trees> }) {
    this.shared = new Shared(options.season);
    const trained = options.trained ?? shipped();
    this.horizons = HORIZONS.map(({ steps }) => new HorizonForecaster(this.shared, steps, trained.get(steps)));
  }

  /** Takes the next sample. What can not be a usage (NaN, negative, absurd) counts as one that did not come. */
  observe(value: number): void {
    const usable = isUsage(value);
    if (!usable && this.samples === 0) return;
    // A gap is filled with what was expected, from which nothing is learnt that was not known.
    const filled = usable ? value : this.forecast(1);
    this.highest = Math.max(filled, this.highest * HIGHEST_KEEP);
    for (const horizon of this.horizons) if (usable) horizon.learn(value);
    this.shared.observe(filled);
    for (const horizon of this.horizons) horizon.observe(filled);
    this.samples++;
  }

  /** Expected value `steps` samples ahead; NaN before the first sample. */
  forecast(steps: number): number {
    return this.clamp(this.between(steps, (horizon) => horizon.point));
  }

  /** What the sample `steps` ahead will not exceed, with the given probability (0.5–0.999). */
  upperBound(steps: number, coverage: number): number {
    return Math.max(
      this.forecast(steps),
      this.between(steps, (horizon) => horizon.upperBound(coverage)),
    );
  }

  private clamp(value: number): number {
    return Math.max(0, Math.min(value, HIGHEST_FACTOR * this.highest));
  }

  /** Between two horizons the usual shape of the season is followed, as far as this series has one. */
  private between(steps: number, pick: (horizon: HorizonForecaster) => number): number {
    if (this.samples === 0) return Number.NaN;
    const ahead = Math.max(1, Math.min(HORIZON_MAX, Math.round(steps)));
    const after = this.horizons.findIndex((horizon) => horizon.steps >= ahead);
    const upper = this.horizons[after]!;
    if (upper.steps === ahead) return pick(upper);
    const lower = this.horizons[after - 1]!;
    const part = (ahead - lower.steps) / (upper.steps - lower.steps);
    const shape = (at: number) => this.shared.seasonality * this.shared.profiles[0]!.usualAt(at);
    const straight = (1 - part) * (pick(lower) - shape(lower.steps)) + part * (pick(upper) - shape(upper.steps));
    return straight + shape(ahead);
  }
}

class HorizonForecaster {
  /** NaN before the first sample. */
  point = Number.NaN;
  private readonly experts: Experts;
  private readonly bounds: Bounds;
  private mix: Mix | null = null;
  /** What was said and not yet come, by the number of the sample it was said at: one array, as hundreds cost ten times it. */
  private said = new Float64Array();
  private readonly points: Float64Array;
  private samples = 0;

  constructor(
    private readonly shared: Shared,
    readonly steps: number,
    private readonly trees: Trees | undefined,
  ) {
    this.experts = new Experts(shared, steps);
    this.bounds = new Bounds(steps, shared.season);
    this.points = new Float64Array(steps);
  }

  /** Compares with what was said of this sample; before anything else takes it. */
  learn(value: number): void {
    if (this.samples < this.steps) return;
    const slot = this.samples % this.steps;
    this.mix?.learn(this.saidAt(slot), value);
    this.bounds.learn(value, this.samples);
  }

  observe(value: number): void {
    this.experts.observe(value);
    const { base, forecasts } = this.experts;
    const features = this.experts.features();
    const corrected = base + this.shared.spread * (this.trees?.predict(features) ?? 0);
    const seasonal = this.shared.scaled.at(this.shared.season - this.steps);
    const all = Float64Array.from([
      corrected,
      (corrected + base) / 2,
      base,
      ...forecasts,
      value,
      this.shared.level,
      Number.isNaN(seasonal) ? value : seasonal,
    ]);
    this.mix ??= new Mix(
      Array.from(all, (_, i) => (i < 2 ? PRIOR_TREES : PRIOR_OTHER)),
      MEMORY,
      POWER,
    );
    if (this.said.length === 0) this.said = new Float64Array(this.steps * all.length);
    this.saidAt(this.samples % this.steps).set(all);
    this.point = this.mix.combine(all);
    this.points[this.samples % this.steps] = this.point;
    this.bounds.say(this.point, this.shared.spread, this.samples);
    this.samples++;
  }

  private saidAt(slot: number): Float64Array {
    const width = this.said.length / this.steps;
    return this.said.subarray(slot * width, (slot + 1) * width);
  }

  upperBound(coverage: number): number {
    return this.bounds.upper(this.point, this.shared.spread, this.samples - 1, coverage);
  }
}

let shippedTrees: ReadonlyMap<number, Trees> | undefined;

/** Unpacked once for all series. */
function shipped(): ReadonlyMap<number, Trees> {
  shippedTrees ??= new Map(TRAINED.map(([steps, packed]) => [steps, Trees.unpack(packed)]));
  return shippedTrees;
}
