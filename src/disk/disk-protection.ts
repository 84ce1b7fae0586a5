/** The disks of one protection: what the primary writes to them goes into its epochs, the shadow's own files follow those. */
import { closeSync, fdatasync as fdatasyncCallback } from 'node:fs';
import { promisify } from 'node:util';
import { monotonicMs } from '../clock.js';
import type { DiskTwin } from '../native/disk.js';
import type { ShadowImage } from '../native/image.js';
import type { EpochSource } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { DiskCache } from '../vm/spec.js';
import { areMarksWhole } from './marked-epoch.js';
import type { DiskPlace } from './place.js';

const fdatasync = promisify(fdatasyncCallback);

export interface DiskProtectionOptions {
  primary: QemuProcess;
  image: ShadowImage;
  places: readonly DiskPlace[];
  cache: DiskCache;
  /** Opens the primary's file of a disk. */
  openPrimary: (name: string) => number;
  /** Opens the files that the shadow is to have as its disks. */
  openTwins: () => DiskTwin[];
  /** Nobody else uses them any more: a primary that was killed may still be in the middle of a write. */
  twinsFree: Promise<void>;
  /** A file of the shadow can not be written; told once, and again when it could be in between. */
  onTwinTrouble: (why: string) => void;
}

/** 64 MiB: a slice takes some ten ms, for which the next epoch waits; a GiB is compared within seconds. */
const SLICE_PAGES = 16_384;
const RETRY_MS = 5000;

export class DiskProtection {
  /** The shadow's files, as far as they are open. */
  twins: DiskTwin[] = [];
  /** The primary's files. */
  private fds: number[] = [];
  private leftPages = Number.POSITIVE_INFINITY;
  private troubled = '';
  private retryAtMs = 0;
  private free = false;

  constructor(private readonly options: DiskProtectionOptions) {
    void options.twinsFree.then(() => {
      this.free = true;
    });
  }

  /** Once, before the first epoch. @throws native failures */
  async attach(source: EpochSource): Promise<void> {
    const { primary, places, image, openPrimary } = this.options;
    if (places.length === 0) return;
    this.fds = places.map(({ name }) => openPrimary(name));
    const disks = places.map(({ firstPage, bytes }, i) => ({ fd: this.fds[i] as number, firstPage, bytes }));
    await source.attachDisks(disks, areMarksWhole(primary.control.read().marked, image.describe()));
  }

  /**
   * Before the guest stands. QEMU flushes its disks whenever it stops a guest, and what the guest has written without
   * asking for that would be written in the pause. Where QEMU ignores flushes there is none.
   * @returns how long it took, ms
   */
  async flush(): Promise<number> {
    if (this.options.cache === 'unsafe') return 0;
    const startedMs = monotonicMs();
    await Promise.all(this.fds.map((fd) => fdatasync(fd)));
    return monotonicMs() - startedMs;
  }

  /** Compares a little more of the shadow's files with the image. Their failure is no reason to end the epochs. */
  async advance(source: EpochSource): Promise<void> {
    const nowMs = Date.now();
    if (this.options.places.length === 0 || !this.free || nowMs < this.retryAtMs) return;
    // A commit begins those anew that it could not write.
    const failed = this.twins.map((twin) => twin.failure()).find((why) => why !== '');
    if (this.leftPages === 0 && failed === undefined) return;
    try {
      this.open();
      this.leftPages = await source.advanceTwins(this.twins, SLICE_PAGES);
      if (this.leftPages === 0) this.troubled = '';
    } catch (error) {
      this.retryAtMs = nowMs + RETRY_MS;
      this.leftPages = Number.POSITIVE_INFINITY;
      const why = error instanceof Error ? error.message : String(error);
      if (why !== this.troubled) this.options.onTwinTrouble(why);
      this.troubled = why;
    }
  }

  /** Before the shadow runs: its files are what the image holds. @throws what keeps them from that */
  async complete(source: EpochSource): Promise<void> {
    if (this.options.places.length === 0) return;
    await this.options.twinsFree;
    this.open();
    while ((await source.advanceTwins(this.twins, 16 * SLICE_PAGES)) > 0);
  }

  close(): void {
    for (const fd of this.fds.splice(0)) closeSync(fd);
    for (const twin of this.twins) twin.close();
    this.twins = [];
  }

  private open(): void {
    if (this.twins.length === 0) this.twins = this.options.openTwins();
  }
}
