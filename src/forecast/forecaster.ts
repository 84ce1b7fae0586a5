/** Forecasts one series, sample by sample. */
import { Ewma, HoltWinters, LastValue, SeasonalNaive } from './classics.js';
import { Mix } from './mix.js';
import type { Model } from './model.js';

const HORIZONS = [1, 12];
const LONGEST = 12;

interface Horizon {
  steps: number;
  mix: Mix;
  /** What the experts said, by the age of the saying. */
  said: Float64Array[];
}

export class Forecaster {
  private readonly models: Model[];
  private readonly horizons: Horizon[];
  private samples = 0;

  constructor(options: { season: number; intervalS: number }) {
    this.models = [
      new LastValue(),
      new SeasonalNaive(options.season),
      new Ewma(0.5),
      new Ewma(0.2),
      new Ewma(0.05),
      new HoltWinters(options.season, { level: 0.3, trend: 0, season: 0.1, damping: 0.98, residual: 0 }),
    ];
    this.horizons = HORIZONS.map((steps) => ({
      steps,
      mix: new Mix(
        this.models.map(() => 1),
        288,
        4,
      ),
      said: Array.from({ length: LONGEST + 1 }, () => new Float64Array(this.models.length)),
    }));
  }

  observe(value: number): void {
    for (const { steps, mix, said } of this.horizons)
      if (this.samples >= steps) mix.learn(said[(this.samples - steps) % said.length]!, value);
    for (const model of this.models) model.observe(value);
    for (const { steps, said } of this.horizons) {
      const row = said[this.samples % said.length]!;
      this.models.forEach((model, i) => {
        row[i] = model.forecast(steps);
      });
    }
    this.samples++;
  }

  forecast(steps: number): number {
    if (this.samples === 0) return Number.NaN;
    const horizon = this.horizons.find((each) => each.steps >= steps) ?? this.horizons.at(-1)!;
    return horizon.mix.combine(this.models.map((model) => model.forecast(steps)));
  }
}
