/** The part of the addon that fills a lazy QEMU's RAM while its guest runs: sources of pages, and the pager. */

import type { NativeImage } from './image.js';
import { loadAddon } from './index.js';
import type { GuestRam, QemuControl } from './memory.js';

/** A memory as a source of pages. */
export interface RamPageSource {
  readonly pages: number;
}

/** What pages can come from: objects of the addon that know how to read them. */
export type PageSource = RamPageSource | NativeImage;

export interface FillResult {
  /** Installed, on demand or behind it. */
  pages: number;
  /** Faults served while the fill was under way. */
  faults: number;
  ms: number;
}

export interface PagerStats {
  faults: number;
  /** From the kernel's word of a fault until its thread was woken: median of the newest 4096, and longest of all. */
  faultMsP50: number;
  faultMsMax: number;
  /** Of those that the fill installed before they were asked for. */
  filledPages: number;
  filling: boolean;
}

/** A page that its source could not give. */
export interface PagerTrouble {
  page: number;
  /** ERR_IMAGE_CORRUPT, or the errno of a read that failed. */
  code: string;
  message: string;
}

export interface PagerOptions {
  control: QemuControl;
  pid: number;
  ram: GuestRam;
  source: PageSource;
  /** Default 2. */
  faultThreads?: number;
  /** Called at most once. The guest's thread that touched the page waits for ever: end that QEMU. */
  onTrouble: (trouble: PagerTrouble) => void;
}

/** One per lazy QEMU at a time. @throws ERR_NOT_LAZY, ERR_SIZE, EPERM, ESRCH */
export interface Pager {
  /**
   * Serves faults from now on, and fills the rest behind them. Settles when every page that is not all zeros is there;
   * rejects with ERR_CLOSED, ERR_VM_DEAD, or with what onTrouble was told first. Faults are served until close().
   * @param hotPath a file of keepHot(), filled before everything else; a hint, which may be missing
   * @param laterHotPath another one, filled behind it
   * @throws ERR_BUSY when it was started before
   */
  start(hotPath?: string, laterHotPath?: string): Promise<FillResult>;
  /**
   * The pages of the first hot file and those that were waited for all the same, at most 1536: what the next awakening
   * needs. @param before what it needed at an earlier moment: those that it has needed beside them, of the second file and
   * waited for
   */
  needed(before?: Uint32Array): Uint32Array;
  /** Writes a file of hot pages, as the source has them now; one at a time. Rejects with ERR_BUSY, or an errno. */
  keepHot(path: string, pages: Uint32Array): Promise<void>;
  stats(): PagerStats;
  /** Limits the fill, never the faults; 0 is no limit. */
  throttle(bytesPerSecond: number): void;
  /** Idempotent. While QEMU lives, a guest that touches an absent page waits until another pager starts. */
  close(): void;
}

interface PagerAddon {
  /** A memory as a source. It must not change, and stays mapped for as long as a pager reads from it. */
  RamPageSource: new (
    ram: GuestRam,
  ) => RamPageSource;
  Pager: new (options: PagerOptions) => Pager;
}

export const { RamPageSource, Pager } = loadAddon<PagerAddon>();
