/** Order statistics of the newest samples: a sorted copy beside the ring, mended by one insertion and one removal. */
export class SortedWindow {
  private readonly ring: Float64Array;
  private readonly sorted: Float64Array;
  private next = 0;
  private count = 0;

  constructor(readonly capacity: number) {
    this.ring = new Float64Array(capacity);
    this.sorted = new Float64Array(capacity);
  }

  push(value: number): void {
    if (this.count === this.capacity) {
      const gone = this.position(this.ring[this.next]!);
      this.sorted.copyWithin(gone, gone + 1, this.count);
      this.count--;
    }
    const place = this.position(value);
    this.sorted.copyWithin(place + 1, place, this.count);
    this.sorted[place] = value;
    this.count++;
    this.ring[this.next] = value;
    this.next = this.next + 1 === this.capacity ? 0 : this.next + 1;
  }

  get min(): number {
    return this.count === 0 ? Number.NaN : this.sorted[0]!;
  }

  get max(): number {
    return this.count === 0 ? Number.NaN : this.sorted[this.count - 1]!;
  }

  get median(): number {
    if (this.count === 0) return Number.NaN;
    const half = this.count >> 1;
    return this.count % 2 === 1 ? this.sorted[half]! : (this.sorted[half - 1]! + this.sorted[half]!) / 2;
  }

  /** The value that this share (0–1) of the window does not exceed. */
  quantile(share: number): number {
    return this.count === 0 ? Number.NaN : this.sorted[Math.round(share * (this.count - 1))]!;
  }

  /** First index whose value is not below. */
  private position(value: number): number {
    let [low, high] = [0, this.count];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sorted[middle]! < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Exponentially weighted mean; of the first samples the plain mean, so that a start is not remembered for long. */
export class Smoothed {
  value = Number.NaN;
  private count = 0;

  constructor(private readonly alpha: number) {}

  push(value: number): void {
    this.count++;
    this.value = this.count === 1 ? value : this.value + Math.max(this.alpha, 1 / this.count) * (value - this.value);
  }
}
