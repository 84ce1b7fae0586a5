/** Something that may happen many times a second and is told of once in a while, with how often it was. */
export class Repeated {
  private untold = 0;
  private toldAtMs = Number.NEGATIVE_INFINITY;

  constructor(private readonly everyMs: number) {}

  /** It happened. @returns how often since it was last told of, or 0 when it is not to be told of now */
  count(nowMs: number): number {
    this.untold++;
    if (nowMs - this.toldAtMs < this.everyMs) return 0;
    const { untold } = this;
    this.toldAtMs = nowMs;
    this.untold = 0;
    return untold;
  }
}
