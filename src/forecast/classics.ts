/** The models that every textbook has: the yardstick of the forecaster's tests. */
import { Recent } from './recent.js';

/** What every model of one series can do. Samples come at equal intervals; "steps" count them. */
interface Model {
  /** Takes the next sample, which is finite: gaps are filled before. */
  observe(value: number): void;
  /** Forecast of the sample `steps` (≥ 1) after the last observed one; NaN before the first. */
  forecast(steps: number): number;
}

export class LastValue implements Model {
  private last = Number.NaN;

  observe(value: number): void {
    this.last = value;
  }

  forecast(): number {
    return this.last;
  }
}

/** The value of one season (or several) before; the last value until there is one. */
export class SeasonalNaive implements Model {
  private readonly recent: Recent;

  constructor(private readonly season: number) {
    this.recent = new Recent(season);
  }

  observe(value: number): void {
    this.recent.push(value);
  }

  forecast(steps: number): number {
    const seasonal = this.recent.at(this.season - 1 - ((steps - 1) % this.season));
    return Number.isNaN(seasonal) ? this.recent.at(0) : seasonal;
  }
}

export class Ewma implements Model {
  private level = Number.NaN;

  constructor(private readonly alpha: number) {}

  observe(value: number): void {
    this.level = Number.isNaN(this.level) ? value : this.level + this.alpha * (value - this.level);
  }

  forecast(): number {
    return this.level;
  }
}

/**
 * Additive Holt-Winters with a damped trend and an AR(1) of its residual. The damping keeps a short rise from being
 * drawn out to the next day.
 */
export class HoltWinters implements Model {
  private level = Number.NaN;
  private trend = 0;
  private residual = 0;
  private position = 0;
  private readonly seasonal: Float64Array;

  constructor(
    private readonly season: number,
    private readonly rates: { level: number; trend: number; season: number; damping: number; residual: number },
  ) {
    this.seasonal = new Float64Array(season);
  }

  observe(value: number): void {
    const { rates, position } = this;
    if (Number.isNaN(this.level)) {
      this.level = value;
    } else {
      const season = this.seasonal[position]!;
      const carried = this.level + rates.damping * this.trend;
      const error = value - carried - season;
      const level = carried + rates.level * error;
      this.trend = rates.damping * this.trend + rates.trend * rates.level * error;
      this.level = level;
      this.seasonal[position] = season + rates.season * (1 - rates.level) * error;
      this.residual = error * (1 - rates.level);
    }
    this.position = position + 1 === this.season ? 0 : position + 1;
  }

  forecast(steps: number): number {
    const { damping, residual } = this.rates;
    const trend = damping === 1 ? steps : (damping * (1 - damping ** steps)) / (1 - damping);
    const seasonal = this.seasonal[(this.position + steps - 1) % this.season]!;
    return this.level + this.trend * trend + seasonal + this.residual * residual ** steps;
  }
}
