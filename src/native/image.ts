/** The shadow image of the addon (native/image/): an append-only log of a VM's epochs. docs/shadow-image.md. */
import { loadAddon } from './index.js';
import type { GuestRam } from './memory.js';

export interface ImageOptions {
  vm: string;
  ramBytes: number;
  /** Of all writable disks together, whole MiB; default 0. */
  diskBytes?: number | undefined;
  /** Pages equal to its pages cost nothing. It must not change any more, and stays open as long as this image is. */
  base?: NativeImage | undefined;
  /** Free-form text kept with the image, at most 64 KiB. */
  label?: string | undefined;
  /** Size at which a new file is begun; default 64 MiB. */
  segmentBytes?: number | undefined;
}

/** What opening found and did. */
export interface OpenReport {
  headEpoch: number;
  /** Committed once, gone now; at least so many. */
  lostEpochs: number;
  cutBytes: number;
  removedFiles: number;
  /** The same for people; empty when nothing was lost. */
  words: string;
}

export interface EpochMeta {
  epoch: number;
  /** The head that it changes; 0 for the first. */
  parent: number;
  generation: number;
  cutAtWallMs: number;
  cutAtMonotonicNs: bigint;
}

export interface EpochInfo extends EpochMeta {
  changedPages: number;
  storedBytes: number;
  /** Survives a power loss. */
  durable: boolean;
}

export interface AppendResult {
  changedPages: number;
  /** Of those, now all zeros. */
  zeroPages: number;
  /** Of those, now what the base has. */
  basePages: number;
  /** Looked at, and the head has the same. */
  droppedPages: number;
  storedBytes: number;
}

export interface CompactOptions {
  /** Epochs cut later than this stay rewindable, and the newest that is not later. Default: all. */
  keepFromWallMs?: number | undefined;
  maxBytes?: number | undefined;
  /** Of one core. */
  dutyPercent?: number | undefined;
  /** Also when little would be gained. */
  force?: boolean | undefined;
}

export interface CompactResult {
  /** false: nothing worth doing. */
  done: boolean;
  bytesBefore: number;
  bytesAfter: number;
  movedPages: number;
  removedSegments: number;
  oldestEpoch: number;
}

export interface PackOptions {
  path: string;
  /** Default: the head. */
  epoch?: number | undefined;
  /** Include the base's pages, so that the file needs no base; default true. */
  flatten?: boolean | undefined;
  /** Default: the image's own. */
  label?: string | undefined;
  /** Of compression, 1 to 19. */
  effort?: number | undefined;
}

export interface VerifyResult {
  pages: number;
  blocks: number;
  damagedPages: number[];
  deviceStateDamaged: boolean;
}

export interface ImageStats {
  bytesOnDisk: number;
  /** Estimate of what the head needs of that. */
  liveBytes: number;
  /** Resident. */
  indexBytes: number;
  storedPages: number;
  segments: number;
  headEpoch: number;
  oldestEpoch: number;
  pageCacheBytes: number;
}

export interface ImageDescription {
  vm: string;
  label: string;
  id: string;
  /** Empty without a base. */
  baseId: string;
  ramBytes: number;
  diskBytes: number;
  /** 0 before the first. */
  headEpoch: number;
  /** The highest number ever used: the next epoch needs a higher one. */
  lastEpoch: number;
}

/** The addon's object: one operation at a time on each of its two threads (ERR_BUSY). Others in the addon take it too. */
export interface NativeImage {
  create(folder: string, options: ImageOptions): Promise<void>;
  open(path: string, base: NativeImage | null): Promise<OpenReport>;
  describe(): ImageDescription;
  epochs(): EpochInfo[];
  deviceState(epoch: number): Promise<Buffer>;
  append(meta: EpochMeta, deviceState: Buffer, ram: GuestRam, disks: number[]): Promise<AppendResult>;
  rewind(epoch: number): Promise<void>;
  flush(): Promise<void>;
  fill(ram: GuestRam, share: number): Promise<number>;
  fillDisk(fd: number, firstPage: number, bytes: number): Promise<number>;
  readPage(page: number): Promise<Buffer>;
  stats(): Promise<ImageStats>;
  compact(options: CompactOptions): Promise<CompactResult>;
  pack(options: PackOptions): Promise<{ pages: number; bytes: number }>;
  verify(options: { dutyPercent?: number | undefined }): Promise<VerifyResult>;
  stop(): void;
  close(): void;
}

export interface AppendCost {
  changedPages: number;
  storedBytes: number;
  cpuMs: number;
  ms: number;
}

interface ImageAddon {
  ShadowImage: new () => NativeImage;
  measureAppend(image: NativeImage, ram: GuestRam, deviceState: Buffer): AppendCost;
}

const addon = loadAddon<ImageAddon>();

/** Commits what differs, and tells what storing alone cost, without finding and checksumming it. Blocks; for benchmarks. */
export function measureAppend(image: ShadowImage, ram: GuestRam, deviceState: Buffer): AppendCost {
  return addon.measureAppend(image.native, ram, deviceState);
}

/**
 * A shadow image that is open. Calls may overlap: those that a promotion waits for (rewind, device state, fill) take
 * turns among themselves, upkeep (compact, pack, verify) takes turns apart from them.
 *
 * Everything rejects with an error that has `code` and `syscall`: ERR_IMAGE_NOT_FOUND, ERR_IMAGE_EXISTS,
 * ERR_IMAGE_FOREIGN, ERR_IMAGE_NEWER, ERR_IMAGE_BASE, ERR_IMAGE_CORRUPT, ERR_IMAGE_IN_USE, ERR_IMAGE_FULL, ERR_NO_EPOCH,
 * ERR_EPOCH_ORDER, ERR_READ_ONLY, ERR_CANCELLED, ERR_CLOSED, or an errno name.
 */
export class ShadowImage {
  #quick: Promise<unknown> = Promise.resolve();
  #upkeep: Promise<unknown> = Promise.resolve();
  #closing = false;

  private constructor(readonly native: NativeImage) {}

  /** @throws ERR_IMAGE_EXISTS */
  static async create(folder: string, options: Omit<ImageOptions, 'base'> & { base?: ShadowImage | undefined }) {
    const image = new ShadowImage(new addon.ShadowImage());
    await image.native.create(folder, { ...options, base: options.base?.native });
    return image;
  }

  /** A folder is opened to be appended to, and recovered on the way; a packed file is opened for reading only. */
  static async open(path: string, base?: ShadowImage): Promise<{ image: ShadowImage; report: OpenReport }> {
    const image = new ShadowImage(new addon.ShadowImage());
    const report = await image.native.open(path, base?.native ?? null);
    return { image, report };
  }

  describe(): ImageDescription {
    return this.native.describe();
  }

  /** Those that rewind() can reach, oldest first; the last one is the head. */
  epochs(): EpochInfo[] {
    return this.native.epochs();
  }

  deviceState(epoch: number): Promise<Buffer> {
    return this.quickly(() => this.native.deviceState(epoch));
  }

  /** Commits what differs between a memory and disks that nobody writes, and the head. @param disks their descriptors */
  append(meta: EpochMeta, deviceState: Buffer, ram: GuestRam, disks: number[] = []): Promise<AppendResult> {
    return this.quickly(() => this.native.append(meta, deviceState, ram, disks));
  }

  /** Durably makes `epoch` the head; later ones are given up. */
  rewind(epoch: number): Promise<void> {
    return this.quickly(() => this.native.rewind(epoch));
  }

  /** Makes everything that was committed so far survive a power loss. */
  flush(): Promise<void> {
    return this.quickly(() => this.native.flush());
  }

  /** Copies the newest `share` (0 to 1) of the pages into an empty memory. Returns their number. */
  fill(ram: GuestRam, share = 1): Promise<number> {
    return this.quickly(() => this.native.fill(ram, share));
  }

  /** Makes a disk's file what the head holds. @returns how many of its pages were not */
  fillDisk(fd: number, firstPage: number, bytes: number): Promise<number> {
    return this.quickly(() => this.native.fillDisk(fd, firstPage, bytes));
  }

  readPage(page: number): Promise<Buffer> {
    return this.quickly(() => this.native.readPage(page));
  }

  stats(): Promise<ImageStats> {
    return this.quickly(() => this.native.stats());
  }

  /** Folds epochs before the window into one table and drops what nothing needs any more. */
  compact(options: CompactOptions = {}): Promise<CompactResult> {
    return this.laterOn(() => this.native.compact(options));
  }

  /** Writes one self-contained file; it is there whole or not at all. Rejects with EEXIST when there is one. */
  pack(options: PackOptions): Promise<{ pages: number; bytes: number }> {
    return this.laterOn(() => this.native.pack(options));
  }

  /** Reads everything that the head needs. Damaged pages are stored again by the next commit that has them. */
  verify(options: { dutyPercent?: number | undefined } = {}): Promise<VerifyResult> {
    return this.laterOn(() => this.native.verify(options));
  }

  /** Upkeep under way ends early with ERR_CANCELLED. Idempotent. */
  async close(): Promise<void> {
    this.#closing = true;
    this.native.stop();
    await Promise.all([this.#quick, this.#upkeep]);
    this.native.close();
  }

  private quickly<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#quick.then(run);
    this.#quick = result.catch(() => {});
    return result;
  }

  private laterOn<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#upkeep.then(() => {
      if (this.#closing) throw Object.assign(new Error('the image is being closed'), CANCELLED);
      return run();
    });
    this.#upkeep = result.catch(() => {});
    return result;
  }
}

const CANCELLED = { code: 'ERR_CANCELLED', syscall: 'shadowImage' };
