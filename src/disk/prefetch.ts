/**
 * Has what a guest uses of its disks in the host's page cache, where the guest will read it after a promotion. A hint to
 * the kernel and no more: nothing waits for it, and what it is wrong about costs a read.
 */
import { closeSync } from 'node:fs';
import { readAhead } from '../native/disk.js';
import type { HeatMap } from './heat-map.js';

/** For the steady kind; a promotion takes what it can get. */
const BYTES_PER_LOOK = 16 * 1024 * 1024;
/** At once, so that a guest's own reads get their turn. */
const CHUNK_BYTES = 1024 * 1024;
/** What is cached costs nearly nothing to ask for, and still not every second. */
const REST_LOOKS = 5;

interface Part {
  disk: string;
  offset: number;
  bytes: number;
}

export interface PrefetchOptions {
  /** Of all disks together. */
  budgetBytes: number;
  maps: () => ReadonlyMap<string, HeatMap>;
  /** Opens a disk's file for reading; null when there is none. The descriptor is the caller's. */
  open: (disk: string) => number | null;
}

/** The parts of disks that are worth the budget, the hottest for their size first. Pure. */
export function partsWithin(maps: ReadonlyMap<string, HeatMap>, budgetBytes: number): Part[] {
  const parts = [...maps].flatMap(([disk, map]) =>
    map.hottest().map((extent) => {
      const part = partOf(disk, map, extent);
      return { part, heat: map.heat(extent) / part.bytes };
    }),
  );
  let left = budgetBytes;
  return parts
    .sort((a, b) => b.heat - a.heat)
    .map(({ part }) => part)
    .filter(({ bytes }) => {
      left -= bytes;
      return left >= 0;
    });
}

function partOf(disk: string, { extentBytes, diskBytes }: HeatMap, extent: number): Part {
  const offset = extent * extentBytes;
  return { disk, offset, bytes: Math.min(extentBytes, diskBytes - offset) };
}

export class Prefetch {
  private queue: Part[] = [];
  private restLooks = 0;
  private running: Promise<void> | null = null;
  private closed = false;
  /** Asked for so far, bytes. */
  totalBytes = 0;

  constructor(private readonly options: PrefetchOptions) {}

  /** Once a second: goes a little further through what is worth it, and begins anew after a rest. */
  look(): void {
    if (this.running !== null || this.closed) return;
    const { maps, budgetBytes } = this.options;
    if (this.queue.length === 0 && this.restLooks-- <= 0) {
      this.queue = partsWithin(maps(), budgetBytes);
      this.restLooks = REST_LOOKS;
    }
    const now: Part[] = [];
    let bytes = 0;
    const take = (part: Part | undefined) => {
      if (part === undefined || bytes >= BYTES_PER_LOOK) return false;
      bytes += part.bytes;
      return now.push(part) > 0;
    };
    for (const [disk, map] of maps()) for (const extent of map.comesNext()) if (!take(partOf(disk, map, extent))) break;
    while (bytes < BYTES_PER_LOOK && take(this.queue.shift()));
    this.begin(now);
  }

  /** All of it, as fast as the disk can. */
  rush(): Promise<void> {
    const { maps, budgetBytes } = this.options;
    this.queue = [];
    this.begin(partsWithin(maps(), budgetBytes));
    return this.running ?? Promise.resolve();
  }

  async close(): Promise<void> {
    this.closed = true;
    await this.running;
  }

  private begin(parts: readonly Part[]): void {
    if (parts.length === 0) return;
    const all: Promise<void> = Promise.all([this.running, this.fetch(parts)]).then(() => {
      if (this.running === all) this.running = null;
    });
    this.running = all;
  }

  private async fetch(parts: readonly Part[]): Promise<void> {
    const fds = new Map<string, number | null>();
    try {
      for (const { disk, offset, bytes } of parts) {
        let fd = fds.get(disk);
        if (fd === undefined) {
          fd = this.options.open(disk);
          fds.set(disk, fd);
        }
        for (let at = 0; fd !== null && at < bytes && !this.closed; at += CHUNK_BYTES) {
          const length = Math.min(CHUNK_BYTES, bytes - at);
          await readAhead(fd, offset + at, length);
          this.totalBytes += length;
        }
      }
    } finally {
      for (const fd of fds.values()) if (fd !== null) closeSync(fd);
    }
  }
}
