/**
 * What waits beside the shadow image to take over: nothing (`image`), a QEMU without RAM (`process`), or one that holds a
 * part of the RAM already (`resident`). A standby that is lost costs a promotion some time and nothing else, so it is
 * made anew quietly while the epochs go on.
 */
import { messageOf } from '../errors.js';
import type { ResidentRam } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { StandbyLevel } from '../vm/spec.js';

export interface StandbyOptions {
  level: StandbyLevel;
  /** Starts a QEMU that waits for a device state, with none of its RAM. */
  launch: () => Promise<QemuProcess>;
  /** Its limits can be lowered from then on. */
  onWaiting: (qemu: QemuProcess) => void;
  /** It died, or could not be started; another one is made after `retryMs`. */
  onLost: (why: string, retryMs: number) => void;
}

const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 30_000;

export class Standby {
  level: StandbyLevel;
  private waiting: QemuProcess | null = null;
  private making: Promise<void> | null = null;
  private retry: NodeJS.Timeout | undefined;
  private failures = 0;
  private over = false;

  constructor(private readonly options: StandbyOptions) {
    this.level = options.level;
  }

  get qemu(): QemuProcess | null {
    return this.waiting;
  }

  /** Begins to bring about what the level asks for; resolves when it is there or has failed for now. */
  start(): Promise<void> {
    if (this.over || this.level.level === 'image' || this.waiting !== null) return Promise.resolve();
    this.making ??= this.make().finally(() => {
      this.making = null;
    });
    return this.making;
  }

  /** Changes the level while the shadow goes on; resolves when it is so. */
  async change(level: StandbyLevel): Promise<void> {
    const before = this.level;
    this.level = level;
    await this.making;
    // A QEMU that held more than is wanted now gives its memory back only by its end.
    const shrinks = level.level === 'image' || share(level) < share(before);
    if (shrinks) await this.drop();
    await this.start();
  }

  /** The RAM that commits are to fill and keep fresh; null when none is to be resident. */
  resident(): ResidentRam | null {
    if (this.waiting === null || this.level.level !== 'resident') return null;
    const { ram, control } = this.waiting;
    return { ram, control, share: share(this.level) };
  }

  /** Gives the QEMU away to become the primary, and starts one first when none waits. This object is over. */
  async take(): Promise<QemuProcess> {
    this.over = true;
    clearTimeout(this.retry);
    await this.making;
    const qemu = this.waiting ?? (await this.options.launch());
    this.waiting = null;
    return qemu;
  }

  /** Ends what waits. Idempotent; no effect on what was taken. */
  async dispose(): Promise<void> {
    this.over = true;
    clearTimeout(this.retry);
    await this.making;
    await this.drop();
  }

  private async drop(): Promise<void> {
    const { waiting } = this;
    this.waiting = null;
    await waiting?.dispose();
  }

  private async make(): Promise<void> {
    clearTimeout(this.retry);
    try {
      const qemu = await this.options.launch();
      this.waiting = qemu;
      this.failures = 0;
      this.options.onWaiting(qemu);
      void qemu.died.then(() => this.died(qemu));
    } catch (error) {
      this.lost(messageOf(error));
    }
  }

  private died(qemu: QemuProcess): void {
    if (this.waiting !== qemu) return; // taken or dropped before
    this.waiting = null;
    void qemu.dispose();
    this.lost('its QEMU died');
  }

  private lost(why: string): void {
    if (this.over) return;
    const retryMs = Math.min(RETRY_MS_MAX, RETRY_MS_MIN * 2 ** this.failures++);
    this.options.onLost(why, retryMs);
    this.retry = setTimeout(() => void this.start(), retryMs);
  }
}

function share(level: StandbyLevel): number {
  return level.level === 'resident' ? level.percent / 100 : 0;
}
