/** What a shadow image needs beside its epochs: flushes to the disk, and the folding of epochs that nobody goes back to. */
import type { Logger } from 'pino';
import { messageOf } from '../errors.js';
import type { ImageStats, ShadowImage } from '../native/image.js';
import { imageBytesMax, type VmSpec } from '../vm/spec.js';
import { compactionDue } from './compaction.js';

const FLUSH_EVERY_MS = 1000;
const LOOK_EVERY_MS = 5000;
/** Compaction is never in a hurry: a tenth of a core, behind everything else. */
const DUTY_PERCENT = 10;

export interface UpkeepOptions {
  image: ShadowImage;
  spec: Pick<VmSpec, 'name' | 'ramBytes' | 'disks' | 'retention' | 'durability'>;
  log: Logger;
  /** Compaction or flushing failed; told once, and again after it has worked in between. */
  onTrouble: (why: string) => void;
}

export class Upkeep {
  private readonly timers: NodeJS.Timeout[] = [];
  private compacting: Promise<void> = Promise.resolve();
  private flushing: Promise<void> | null = null;
  private flushedEpoch = 0;
  private troubled = false;
  private closed = false;

  constructor(private readonly options: UpkeepOptions) {
    if (options.spec.durability === 'interval') this.every(FLUSH_EVERY_MS, () => void this.flush());
    this.every(LOOK_EVERY_MS, () => {
      this.compacting = this.compact();
    });
    this.compacting = this.compact();
  }

  /** Ends the upkeep, and waits for what is under way. Idempotent. */
  async close(): Promise<void> {
    this.closed = true;
    for (const timer of this.timers) clearInterval(timer);
    await this.compacting;
    await this.flushing;
  }

  /** How the image was when it was last looked at; that takes milliseconds. null before the first look. */
  stats: ImageStats | null = null;

  private async look(): Promise<ImageStats> {
    this.stats = await this.options.image.stats();
    return this.stats;
  }

  private every(ms: number, act: () => void): void {
    const timer = setInterval(act, ms);
    timer.unref();
    this.timers.push(timer);
  }

  private async flush(): Promise<void> {
    const { headEpoch } = this.options.image.describe();
    if (this.flushing !== null || headEpoch === this.flushedEpoch) return;
    this.flushing = this.attempt('flush', async () => {
      await this.options.image.flush();
      this.flushedEpoch = headEpoch;
    });
    await this.flushing;
    this.flushing = null;
  }

  private compact(): Promise<void> {
    return this.compacting.then(async () => {
      const { image, spec } = this.options;
      if (this.closed) return;
      const maxBytes = imageBytesMax(spec);
      const { bytesOnDisk, liveBytes } = await this.look();
      if (!compactionDue({ bytesOnDisk, liveBytes, maxBytes })) return;
      await this.attempt('compact', async () => {
        const keepFromWallMs = Date.now() - spec.retention.keepMs;
        await image.compact({ keepFromWallMs, maxBytes, dutyPercent: DUTY_PERCENT });
      });
    });
  }

  private async attempt(what: string, act: () => Promise<void>): Promise<void> {
    try {
      await act();
      this.troubled = false;
    } catch (error) {
      if (this.closed) return;
      const why = messageOf(error);
      this.options.log.warn({ err: error, vm: this.options.spec.name }, `${what} of the shadow image`);
      if (!this.troubled) this.options.onTrouble(`could not ${what} the shadow image: ${why}`);
      this.troubled = true;
    }
  }
}
