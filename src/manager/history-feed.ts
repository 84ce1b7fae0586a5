/** Once a second, reads what every VM used and hands it to who wants to know. A few VMs at a time, between other work. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { VmSecond } from '../history/archive.js';
import type { UsageSample } from '../history/metrics.js';

export interface FeedSource {
  name: string;
  sample: () => UsageSample | null;
}

export interface HistoryFeedOptions {
  sources: () => FeedSource[];
  take: (seconds: VmSecond[]) => void;
  onError: (error: unknown) => void;
}

const SECOND_MS = 1000;
/** One VM's readings take some 100 µs, and an epoch's pause must not wait for those of all. */
const VMS_PER_TURN = 8;

export class HistoryFeed {
  private timer: NodeJS.Timeout | undefined;
  private reading: Promise<void> = Promise.resolve();
  private over = false;

  constructor(private readonly options: HistoryFeedOptions) {}

  /** From now on, at the end of each second by the wall clock. */
  start(): void {
    if (this.over) return;
    const leftMs = SECOND_MS - (Date.now() % SECOND_MS);
    // A timer may fire a little before its time: that second has been read.
    const delayMs = leftMs < SECOND_MS / 4 ? leftMs + SECOND_MS : leftMs;
    this.timer = setTimeout(() => {
      this.reading = this.read().catch((error: unknown) => this.options.onError(error));
      void this.reading.then(() => this.start());
    }, delayMs);
  }

  /** Resolves when nothing is read any more. */
  async stop(): Promise<void> {
    this.over = true;
    clearTimeout(this.timer);
    await this.reading;
  }

  private async read(): Promise<void> {
    // The second that has just ended: timers fire a little before or after it has.
    const atS = Math.round(Date.now() / SECOND_MS) - 1;
    const seconds: VmSecond[] = [];
    const sources = this.options.sources();
    for (const [i, { name, sample }] of sources.entries()) {
      if (i > 0 && i % VMS_PER_TURN === 0) await nextTurn();
      if (this.over) return;
      try {
        const usage = sample();
        if (usage !== null) seconds.push({ vm: name, atS, usage });
      } catch (error) {
        this.options.onError(error); // its process or tap may go in this moment; the others' figures count
      }
    }
    this.options.take(seconds);
  }
}
