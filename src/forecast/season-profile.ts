/** What is usual at each place in the season, around a slowly moving level, and how far the series is off it now. */
export class SeasonProfile {
  private level = Number.NaN;
  private offset = 0;
  private position = 0;
  private readonly usual: Float64Array;
  private readonly seen: Uint16Array;

  constructor(
    private readonly season: number,
    private readonly rates: { season: number; offset: number; level: number },
  ) {
    this.usual = new Float64Array(season);
    this.seen = new Uint16Array(season);
  }

  observe(value: number): void {
    const { position, rates } = this;
    this.level = Number.isNaN(this.level) ? value : this.level + rates.level * (value - this.level);
    const expected = this.level + this.usual[position]!;
    this.offset += rates.offset * (value - expected - this.offset);
    const rate = Math.max(rates.season, 1 / (this.seen[position]! + 1));
    this.usual[position] = this.usual[position]! + rate * (value - expected);
    this.seen[position] = Math.min(this.seen[position]! + 1, 0xffff);
    this.position = position + 1 === this.season ? 0 : position + 1;
  }

  /** How far the sample `steps` after the newest is usually above the level. */
  usualAt(steps: number): number {
    return this.usual[(this.position + steps - 1) % this.season]!;
  }

  forecast(steps: number): number {
    return this.level + this.usualAt(steps) + this.offset * (steps === 1 ? 1 : 0.7);
  }
}
