import { describe, expect, test } from 'vitest';
import { MIB } from '../vm/spec.js';
import { extentBytesOf, HeatMap } from './heat-map.js';
import { partsWithin } from './prefetch.js';

const GIB = 1024 * MIB;
const PAGES = 256; // of an extent of 1 MiB
const counts = (extents: number, read: Record<number, number>, written: Record<number, number> = {}) => ({
  read: Array.from({ length: extents }, (_, i) => read[i] ?? 0),
  written: Array.from({ length: extents }, (_, i) => written[i] ?? 0),
});

test('extents are small, and never too many', () => {
  for (const bytes of [MIB, 3 * MIB, 16 * GIB, 16 * GIB + MIB, 1024 * GIB]) {
    expect(Math.ceil(bytes / extentBytesOf(bytes))).toBeLessThanOrEqual(16_384);
    expect(Math.log2(extentBytesOf(bytes)) % 1).toBe(0);
  }
  expect(extentBytesOf(16 * GIB)).toBe(MIB);
});

describe('heat', () => {
  test('is of the recent more than of the past, and is forgotten', () => {
    const map = new HeatMap(8 * MIB);
    expect(map.add(counts(8, { 2: 100 }), 0)).toBe(true);
    expect(map.add(counts(8, { 5: 40 }, { 5: 30 }), 600_000)).toBe(true);
    expect([map.heat(2), map.heat(5)]).toEqual([50, 70]);
    expect(map.hottest()).toEqual([5, 2]);
    expect(map.add(counts(8, {}), 12 * 600_000)).toBe(false);
    expect(map.hottest()).toEqual([]);
  });

  test('goes on from what was stored, in another grid when the disk has grown', () => {
    const map = new HeatMap(16 * GIB);
    map.add(counts(16_384, { 1: 10, 2: 20, 3: 30 }), 0);
    expect(map.toStored(2).extents.map(([extent]) => extent)).toEqual([3, 2]);
    const same = HeatMap.fromStored(16 * GIB, map.toStored());
    expect([same.heat(1), same.heat(2), same.heat(3)]).toEqual([10, 20, 30]);
    const grown = HeatMap.fromStored(32 * GIB, map.toStored());
    expect(grown.extentBytes).toBe(2 * MIB);
    expect([grown.heat(0), grown.heat(1)]).toEqual([10, 50]);
    // What is not of this disk is left out.
    expect(HeatMap.fromStored(2 * MIB, { extentBytes: MIB, extents: [[7, 1, 1]] }).hottest()).toEqual([]);
  });
});

describe('what comes next', () => {
  test('is ahead of one that reads in order', () => {
    const map = new HeatMap(16 * MIB);
    map.add(counts(16, { 3: PAGES, 4: 10 }), 0);
    expect(map.comesNext()).toEqual([5, 6]);
    map.add(counts(16, { 4: PAGES - 10, 5: PAGES, 6: 1 }), 1000);
    expect(map.comesNext()).toEqual([7, 8]);
    map.add(counts(16, {}), 2000);
    expect(map.comesNext()).toEqual([]);
  });

  test('is nothing for one that reads here and there, or at the end', () => {
    const map = new HeatMap(16 * MIB);
    map.add(counts(16, { 3: 20, 4: 10, 9: 5 }), 0);
    expect(map.comesNext()).toEqual([]);
    map.add(counts(16, { 14: PAGES, 15: PAGES }), 0);
    expect(map.comesNext()).toEqual([]);
  });
});

test('of several disks, the budget goes to what is hottest for its size', () => {
  const [small, big] = [new HeatMap(4 * MIB), new HeatMap(32 * GIB)];
  small.add(counts(4, { 0: 10, 3: 100 }), 0);
  big.add(counts(16_384, { 7: 150 }), 0);
  const maps = new Map([
    ['small', small],
    ['big', big],
  ]);
  const part = (disk: string, offsetMib: number, mib: number) => ({ disk, offset: offsetMib * MIB, bytes: mib * MIB });
  expect(partsWithin(maps, 3 * MIB)).toEqual([part('small', 3, 1), part('big', 14, 2)]);
  expect(partsWithin(maps, MIB)).toEqual([part('small', 3, 1)]);
  expect(partsWithin(maps, 0)).toEqual([]);
});
