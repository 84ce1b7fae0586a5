/** The disks of one protection: the primary's written blocks go into its epochs, the shadow's own files follow them. */
import type { DiskTwin, EpochDisks } from '../native/disk.js';
import type { ShadowImage } from '../native/image.js';
import type { EpochSource } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import { DiskEpochs } from './disk-epochs.js';
import type { DiskPlace } from './place.js';

export interface DiskProtectionOptions {
  primary: QemuProcess;
  image: ShadowImage;
  places: readonly DiskPlace[];
  /** Opens the primary's file of a disk. */
  openPrimary: (name: string) => number;
  /** Opens the files that the shadow is to have as its disks; nobody else uses them any more. */
  openTwins: () => DiskTwin[];
  /** A file of the shadow can not be written; told once, and again when it could be in between. */
  onTwinTrouble: (why: string) => void;
}

/** 64 MiB: a slice takes some ten ms, for which the next epoch waits; a GiB is compared within seconds. */
const SLICE_PAGES = 16_384;
const RETRY_MS = 5000;

export class DiskProtection {
  epochs: DiskEpochs | null = null;
  private twins: DiskTwin[] = [];
  private leftPages = Number.POSITIVE_INFINITY;
  private troubled = '';
  private retryAtMs = 0;

  constructor(private readonly options: DiskProtectionOptions) {}

  /** Once, before the first epoch. @throws QMP_*, native failures */
  async attach(): Promise<void> {
    const { primary, places, image, openPrimary } = this.options;
    if (places.length === 0) return;
    this.epochs = await DiskEpochs.attach(primary, places, () => image.describe(), openPrimary);
  }

  /** For a commit that takes the blocks of these disks, or a rewind. */
  of(receivers: EpochDisks['receivers']): EpochDisks {
    return { receivers, twins: this.twins };
  }

  /** Compares a little more of the shadow's files with the image. Their failure is no reason to end the epochs. */
  async advance(source: EpochSource): Promise<void> {
    const nowMs = Date.now();
    if (this.options.places.length === 0 || nowMs < this.retryAtMs) return;
    // A commit begins those anew that it could not write.
    const failed = this.twins.map((twin) => twin.failure()).find((why) => why !== '');
    if (this.leftPages === 0 && failed === undefined) return;
    try {
      this.open();
      this.leftPages = await source.advanceTwins(this.of([]), SLICE_PAGES);
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
    this.open();
    while ((await source.advanceTwins(this.of([]), 16 * SLICE_PAGES)) > 0);
  }

  close(): void {
    this.epochs?.close();
    for (const twin of this.twins) twin.close();
    this.twins = [];
  }

  private open(): void {
    if (this.twins.length === 0) this.twins = this.options.openTwins();
  }
}
