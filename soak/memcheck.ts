/** Hears what `shadowvm-guest memcheck` says of the guest's memory, and knows what it may not have forgotten. */
import type { QemuProcess } from '../src/qemu/process.js';

const PAGES_PER_MIB = 256;
const POLL_MS = 5;
/** Of one primary: far more than the heartbeats of any lag. */
const HEARD_MAX = 4096;

export interface MemcheckLine {
  /** Newest write. Each write verifies one more page, so as many writes as there are pages verify all. */
  i: number;
  rounds: number;
  bad: number;
  /** When it was heard, CLOCK_MONOTONIC ns; the guest said it before. */
  atNs: bigint;
}

export function parseMemcheck(app: string, atNs: bigint): MemcheckLine | null {
  const match = /^memcheck i=(\d{20}) rounds=(\d{10}) bad=(\d{10})$/.exec(app);
  return match === null ? null : { i: Number(match[1]), rounds: Number(match[2]), bad: Number(match[3]), atNs };
}

export class Memcheck {
  readonly pages: number;
  private readonly timer: NodeJS.Timeout;
  /** From the present primary, oldest first. */
  private heard: MemcheckLine[] = [];
  /** What the present primary had written when it took over, at least. */
  private floor = 0;
  private pid = 0;

  /** @param primary null while there is none */
  constructor(
    mib: number,
    private readonly primary: () => QemuProcess | null,
  ) {
    this.pages = mib * PAGES_PER_MIB;
    this.timer = setInterval(() => this.listen(), POLL_MS);
  }

  static command(mib: number, writesPerSecond: number): string {
    return `shadowvm-guest memcheck ${mib} ${writesPerSecond} &`;
  }

  close(): void {
    clearInterval(this.timer);
  }

  get first(): MemcheckLine | null {
    return this.heard[0] ?? null;
  }
  get last(): MemcheckLine | null {
    return this.heard.at(-1) ?? null;
  }
  /** Least write that the present primary has to know. */
  get leastWrite(): number {
    return this.floor;
  }

  /** Another QEMU is the primary, from an epoch that was cut at this time. Called before anything is heard from it. */
  promoted(pid: number, cutAtNs: bigint): void {
    this.floor = this.heard.filter(({ atNs }) => atNs < cutAtNs).reduce((most, { i }) => Math.max(most, i), this.floor);
    this.heard = [];
    this.pid = pid;
  }

  /** All that was written, in order, since the present primary spoke first, was verified once: pages, table and sum. */
  get verified(): boolean {
    const { first, last } = this;
    return first !== null && last !== null && last.i - first.i > this.pages && last.rounds > first.rounds;
  }

  private listen(): void {
    const primary = this.primary();
    const beat = primary?.agent.last;
    if (primary === null || beat == null || beat.atNs === this.last?.atNs) return;
    if (this.pid === 0) this.pid = primary.pid;
    if (primary.pid !== this.pid) return;
    const line = parseMemcheck(beat.app, beat.atNs);
    if (line === null) return;
    this.heard.push(line);
    // The first one stays: it is what the primary began with.
    if (this.heard.length > HEARD_MAX) this.heard.splice(1, 1);
  }
}
