/**
 * Upper bounds of one horizon's forecasts: for each coverage the quantile of the errors, in units of the series' spread,
 * which every error moves up or down so that in the long run the asked share is covered, whatever the errors' shape
 * (adaptive conformal inference); with an offset per hour of the season, that is moved more slowly.
 */
const COVERAGES = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995];
/** Quantiles of the errors at the beginning, one and many steps ahead. */
const FIRST = [0, 0.4, 0.8, 1.3, 2.2, 3.5, 5];
const RATE = 0.05;
const HOUR_RATE = 0.02;
const HOURS = 24;
const ERROR_MEMORY = 1 / 288;

interface Said {
  point: number;
  spread: number;
}

export class Bounds {
  private readonly quantiles = Float64Array.from(FIRST);
  private readonly hours = COVERAGES.map(() => new Float64Array(HOURS));
  private readonly said: Said[] = [];
  private errorSize = 1;

  constructor(
    private readonly steps: number,
    private readonly season: number,
  ) {}

  /** Remembers what was said at sample number `at` of the one `steps` later. */
  say(point: number, spread: number, at: number): void {
    this.said[at % this.steps] = { point, spread };
  }

  /** Takes the sample with number `at`. */
  learn(value: number, at: number): void {
    const { point, spread } = this.said[at % this.steps]!;
    const error = (value - point) / spread;
    this.errorSize += ERROR_MEMORY * (Math.min(Math.abs(error), 10 * this.errorSize + 1) - this.errorSize);
    const hour = this.hourOf(at);
    COVERAGES.forEach((coverage, i) => {
      const offsets = this.hours[i]!;
      const covered = error <= this.quantiles[i]! + offsets[hour]! ? 1 : 0;
      // Steps as large as the errors, and larger for rarer breaches, whose quantile lies further out.
      const step = (this.errorSize * (coverage - covered)) / Math.sqrt(Math.max(1 - coverage, 0.01));
      this.quantiles[i] = this.quantiles[i]! + RATE * step;
      offsets[hour] = 0.999 * offsets[hour]! + HOUR_RATE * step;
    });
  }

  /** The bound of a forecast made at sample number `at`. */
  upper(point: number, spread: number, at: number, coverage: number): number {
    const hour = this.hourOf(at + this.steps);
    const quantile = (i: number) => this.quantiles[i]! + this.hours[i]![hour]!;
    const last = COVERAGES.length - 1;
    let above = COVERAGES.findIndex((each) => each >= coverage);
    if (above === -1) above = last;
    const below = Math.max(0, above - 1);
    const width = COVERAGES[above]! - COVERAGES[below]!;
    const part = width > 0 ? Math.max(0, Math.min(1, (coverage - COVERAGES[below]!) / width)) : 1;
    return point + spread * ((1 - part) * quantile(below) + part * quantile(above));
  }

  private hourOf(at: number): number {
    return Math.floor(((at % this.season) * HOURS) / this.season);
  }
}
