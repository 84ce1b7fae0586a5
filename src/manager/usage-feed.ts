/** Reads what every VM uses, a few VMs at a time between other work: twice a second, and hands each second on as one. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { VmSecond } from '../history/archive.js';
import type { UsageSample } from '../history/metrics.js';

export interface FeedSource {
  name: string;
  /** Takes a reading: the triggers are judged by it. */
  read: () => void;
  /** What was used in the second that the last reading ended; null when that can not be said. */
  sample: () => UsageSample | null;
}

export interface UsageFeedOptions {
  sources: () => FeedSource[];
  take: (seconds: VmSecond[]) => void;
  onError: (error: unknown) => void;
}

/** How often a trigger looks. */
const READ_EVERY_MS = 500;
const READINGS_PER_SECOND = 1000 / READ_EVERY_MS;
/** One VM's readings take some 100 µs, and an epoch's pause must not wait for those of all. */
const VMS_PER_TURN = 8;

export class UsageFeed {
  private timer: NodeJS.Timeout | undefined;
  private reading: Promise<void> = Promise.resolve();
  private over = false;

  constructor(private readonly options: UsageFeedOptions) {}

  /** From now on, at each half second by the wall clock. */
  start(): void {
    if (this.over) return;
    const leftMs = READ_EVERY_MS - (Date.now() % READ_EVERY_MS);
    // A timer may fire a little before its time: that reading was taken.
    const delayMs = leftMs < READ_EVERY_MS / 4 ? leftMs + READ_EVERY_MS : leftMs;
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
    // Timers fire a little before or after their time.
    const readings = Math.round(Date.now() / READ_EVERY_MS);
    const endsSecond = readings % READINGS_PER_SECOND === 0;
    const seconds: VmSecond[] = [];
    for (const [i, { name, read, sample }] of this.options.sources().entries()) {
      if (i > 0 && i % VMS_PER_TURN === 0) await nextTurn();
      if (this.over) return;
      try {
        read();
        const usage = endsSecond ? sample() : null;
        if (usage !== null) seconds.push({ vm: name, atS: readings / READINGS_PER_SECOND - 1, usage });
      } catch (error) {
        this.options.onError(error); // its process or tap may go in this moment; the others' figures count
      }
    }
    if (endsSecond) this.options.take(seconds);
  }
}
