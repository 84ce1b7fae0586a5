/**
 * What a guest uses of one disk: how often it read and wrote each extent, the recent more than the past. Pure.
 */
import { z } from 'zod';
import { MIB } from '../vm/spec.js';

/** As many as the shim counts (native/shim/control.h): what a map takes is bounded, whatever the disk's size. */
const EXTENTS_MAX = 16_384;
/** After so long without use, an extent counts half. */
const HALF_LIFE_MS = 10 * 60_000;
const PAGE_BYTES = 4096;
/** Half a page that was once used. */
const FORGOTTEN = 0.5;
/** An extent of which so much was read was read as a whole, and not here and there. */
const WHOLE = 0.5;
/** So few were read of one that the reader has not come to yet. */
const UNTOUCHED = 0.05;
/** Extents ahead of one that is read in order. */
const AHEAD = 2;

export const storedHeatSchema = z.object({
  extentBytes: z.number().int().positive(),
  /** Extent, pages read, pages written; the hottest first. */
  extents: z.array(z.tuple([z.number().int().min(0), z.number().min(0), z.number().min(0)])),
});
export type StoredHeat = z.infer<typeof storedHeatSchema>;

export interface ExtentCounts {
  /** Pages of each extent. */
  read: ArrayLike<number>;
  written: ArrayLike<number>;
}

/** 1 MiB up to 16 GiB, and always a power of two. */
export function extentBytesOf(diskBytes: number): number {
  let bytes = MIB;
  while (bytes * EXTENTS_MAX < diskBytes) bytes *= 2;
  return bytes;
}

export class HeatMap {
  readonly extentBytes: number;
  readonly read: Float64Array;
  readonly written: Float64Array;
  /** Those that whoever reads in order comes to next, by the last counts. */
  private ahead: number[] = [];
  private countedAtMs: number | null = null;

  constructor(readonly diskBytes: number) {
    this.extentBytes = extentBytesOf(diskBytes);
    const extents = Math.ceil(diskBytes / this.extentBytes);
    this.read = new Float64Array(extents);
    this.written = new Float64Array(extents);
  }

  get extents(): number {
    return this.read.length;
  }

  /** What was counted since the last time. @returns whether there was anything */
  add({ read, written }: ExtentCounts, nowMs: number): boolean {
    const fade = this.countedAtMs === null ? 1 : 0.5 ** ((nowMs - this.countedAtMs) / HALF_LIFE_MS);
    this.countedAtMs = nowMs;
    let any = false;
    for (const [map, counts] of [
      [this.read, read],
      [this.written, written],
    ] as const)
      for (let i = 0; i < map.length; i++) {
        const count = counts[i] ?? 0;
        const faded = (map[i] as number) * fade + count;
        map[i] = faded < FORGOTTEN ? 0 : faded;
        any ||= count > 0;
      }
    this.ahead = this.fronts(read);
    return any;
  }

  /** The extents ahead of a reader that has read one and goes on in the next. */
  private fronts(justRead: ArrayLike<number>): number[] {
    const pages = this.extentBytes / PAGE_BYTES;
    const ahead: number[] = [];
    for (let i = 1; i + 1 < this.extents; i++) {
      const isFront = (justRead[i] ?? 0) > 0 && (justRead[i + 1] ?? 0) === 0;
      if (!isFront || (this.read[i - 1] as number) < WHOLE * pages) continue;
      for (let next = i + 1; next <= i + AHEAD && next < this.extents; next++)
        if ((this.read[next] as number) < UNTOUCHED * pages) ahead.push(next);
    }
    return ahead;
  }

  heat(extent: number): number {
    return (this.read[extent] as number) + (this.written[extent] as number);
  }

  /** Those that are not cold, the hottest first. */
  hottest(): number[] {
    const used: number[] = [];
    for (let i = 0; i < this.extents; i++) if (this.heat(i) > 0) used.push(i);
    return used.sort((a, b) => this.heat(b) - this.heat(a));
  }

  /** The extents in which the next reads of one that reads in order will be. */
  comesNext(): readonly number[] {
    return this.ahead;
  }

  /** @param extentsMax the hottest ones */
  toStored(extentsMax = Number.POSITIVE_INFINITY): StoredHeat {
    const round = (value: number | undefined) => Math.round((value as number) * 10) / 10;
    return {
      extentBytes: this.extentBytes,
      extents: this.hottest()
        .slice(0, extentsMax)
        .map((i) => [i, round(this.read[i]), round(this.written[i])]),
    };
  }

  /** Of a disk that may have grown since. Extents of another size are put where they lie. */
  static fromStored(diskBytes: number, { extentBytes, extents }: StoredHeat): HeatMap {
    const map = new HeatMap(diskBytes);
    for (const [extent, read, written] of extents) {
      const to = Math.floor((extent * extentBytes) / map.extentBytes);
      if (to >= map.extents) continue;
      map.read[to] = (map.read[to] as number) + read;
      map.written[to] = (map.written[to] as number) + written;
    }
    return map;
  }
}
