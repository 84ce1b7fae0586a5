/** The newest samples of a series, by age: a ring that never grows. */
export class Recent {
  private readonly values: Float64Array;
  private next = 0;
  private taken = 0;

  constructor(readonly capacity: number) {
    this.values = new Float64Array(capacity);
  }

  get count(): number {
    return Math.min(this.taken, this.capacity);
  }

  push(value: number): void {
    this.values[this.next] = value;
    this.next = this.next + 1 === this.capacity ? 0 : this.next + 1;
    this.taken++;
  }

  /** The sample `age` samples before the newest one (0); NaN where none is kept. */
  at(age: number): number {
    if (age < 0 || age >= this.count) return Number.NaN;
    let index = this.next - 1 - age;
    if (index < 0) index += this.capacity;
    return this.values[index]!;
  }
}
