/**
 * The shadow image of one VM on disk, and the golden snapshot under it. It outlives shadows, promotions and the VM's own
 * end: at rest it is the VM's snapshot.
 *
 *     vms/<name>/shadow/      the image: segments of the epoch log
 *     vms/<name>/base.fold    the golden snapshot that the VM started from, kept by a name of its own
 */
import { existsSync } from 'node:fs';
import { copyFile, link, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type ImageStats, ShadowImage } from '../native/image.js';
import { imageError, noSnapshot, type SnapshotLabel } from '../shadow/snapshot.js';
import { Upkeep } from '../shadow/upkeep.js';
import { diskBytes, type VmSpec } from '../vm/spec.js';
import type { Host } from './host.js';

export class VmImage {
  private image: ShadowImage | null = null;
  private opening: Promise<ShadowImage> | null = null;
  private upkeep: Upkeep | null = null;
  private base: ShadowImage | null = null;

  constructor(
    private readonly host: Host,
    private readonly spec: VmSpec,
  ) {}

  get folder(): string {
    return join(this.host.options.stateDir.vmDir(this.spec.name), 'shadow');
  }

  get basePath(): string {
    return join(this.host.options.stateDir.vmDir(this.spec.name), 'base.fold');
  }

  /** Whether there is an image on disk; it may be one without a whole epoch. */
  exists(): boolean {
    return existsSync(this.folder);
  }

  /** The image when it is open. */
  get opened(): ShadowImage | null {
    return this.image;
  }

  /** How it was when it was last looked at, some seconds ago; null before that. */
  get stats(): ImageStats | null {
    return this.upkeep?.stats ?? null;
  }

  /** Makes a golden snapshot the base of the image that is still to be made. @returns the base, open */
  async setBase(goldenPath: string): Promise<ShadowImage> {
    await rm(this.basePath, { force: true });
    await link(goldenPath, this.basePath).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'EXDEV' || error.code === 'EPERM' || error.code === 'EMLINK')
        return copyFile(goldenPath, this.basePath);
      throw error;
    });
    return this.openBase();
  }

  /** Opens the image, and makes it when there is none. Whoever asks meanwhile gets the same. @throws IMAGE_* */
  open(): Promise<ShadowImage> {
    if (this.image !== null) return Promise.resolve(this.image);
    this.opening ??= this.openOrMake().finally(() => {
      this.opening = null;
    });
    return this.opening;
  }

  private async openOrMake(): Promise<ShadowImage> {
    const { spec, host } = this;
    const base = existsSync(this.basePath) ? await this.openBase() : null;
    if (this.exists()) {
      const { image, report } = await ShadowImage.open(this.folder, base ?? undefined);
      this.image = image;
      if (report.words !== '')
        host.options.events.append(
          'warn',
          'image.recovered',
          spec.name,
          `the shadow image was mended: ${report.words}`,
          {
            headEpoch: report.headEpoch,
            lostEpochs: report.lostEpochs,
          },
        );
    } else {
      this.image = await ShadowImage.create(this.folder, {
        vm: spec.name,
        ramBytes: spec.ramBytes,
        diskBytes: diskBytes(spec.disks),
        base: base ?? undefined,
      });
    }
    this.upkeep = new Upkeep({
      image: this.image,
      spec,
      log: host.options.log,
      onTrouble: (why) => host.options.events.append('warn', 'image.trouble', spec.name, why, {}),
    });
    return this.image;
  }

  private async openBase(): Promise<ShadowImage> {
    this.base ??= await this.host.bases.open(this.basePath);
    return this.base;
  }

  /** What the RAM of a guest that was started from an image is filled from. @throws SNAPSHOT_NOT_FOUND, SNAPSHOT_* */
  async openSource(): Promise<ShadowImage> {
    const image = this.exists() ? await this.open() : null;
    if (image !== null && image.describe().headEpoch > 0) return image;
    if (existsSync(this.basePath)) return this.openBase();
    throw noSnapshot('find the image of the VM', this.spec.name);
  }

  /**
   * What the VM's own state is in: its image. The base only where it is a state of this VM as well, which was imported or
   * cloned, and not one of all VMs.
   * @throws SNAPSHOT_NOT_FOUND, SNAPSHOT_*
   */
  async openSnapshot(baseCounts: boolean): Promise<ShadowImage> {
    const source = this.exists() || baseCounts ? await this.openSource() : null;
    if (source !== null && (source === this.image || baseCounts)) return source;
    throw noSnapshot('use the snapshot', this.spec.name);
  }

  /** Writes one self-contained file. @param epoch 0 for the newest @throws EPOCH_NOT_FOUND, NO_SPACE, SNAPSHOT_NOT_FOUND */
  async pack(
    path: string,
    what: { epoch: number; label: SnapshotLabel; baseCounts: boolean; effort?: number },
  ): Promise<{ epoch: number; bytes: number; pages: number }> {
    const image = await this.openSnapshot(what.baseCounts);
    const epoch = what.epoch === 0 ? image.describe().headEpoch : what.epoch;
    const packed = await image
      .pack({ path, epoch, label: JSON.stringify(what.label), effort: what.effort })
      .catch((error: unknown) => Promise.reject(imageError(error, 'write the snapshot', path)));
    return { ...packed, epoch };
  }

  /** Folds everything but the newest epoch away and makes it durable: the image is a snapshot then. */
  async settle(): Promise<void> {
    await this.upkeep?.close();
    this.upkeep = null;
    if (this.image === null) return;
    await this.image.compact({ keepFromWallMs: Date.now(), force: true });
    await this.image.flush();
  }

  /** Gives the open files and the index back; the image stays on disk. Idempotent. */
  async close(): Promise<void> {
    await this.opening?.catch(() => {});
    await this.upkeep?.close();
    this.upkeep = null;
    const { image, base } = this;
    this.image = null;
    this.base = null;
    await image?.close();
    if (base !== null) await this.host.bases.release(base);
  }

  /** Takes the image off the disk, and the base: the next one has another shape than both. */
  async begin(): Promise<void> {
    await this.remove();
    await rm(this.basePath, { force: true });
  }

  /** Takes the image off the disk; the base stays, since a later image can stand on it as well. */
  async remove(): Promise<void> {
    await this.close();
    await rm(this.folder, { recursive: true, force: true });
  }
}
