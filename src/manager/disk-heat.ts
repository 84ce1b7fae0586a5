/**
 * What a VM's guest uses of its disks, looked at each second, and what is read ahead for the guest that may take over.
 *
 *     vms/<name>/heat.json    the maps; also in the label of every snapshot that is exported, and of every clone's base
 */
import { openSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { monotonicMs } from '../clock.js';
import { HeatMap, type StoredHeat, storedHeatSchema } from '../disk/heat-map.js';
import { Prefetch } from '../disk/prefetch.js';
import type { QemuProcess } from '../qemu/process.js';
import type { DiskHeatView } from '../vm/disk-view.js';
import { type DiskSpec, diskBytes } from '../vm/spec.js';
import { readJson, writeFileAtomic } from './state-dir.js';
import type { VmCore } from './vm-core.js';

const LOOK_EVERY_MS = 1000;
const SAVE_EVERY_LOOKS = 30;
/** A label has 64 KiB for everything. */
const LABEL_EXTENTS_MAX = 256;
/** So many stripes a chart of a disk has. */
const STRIPES = 64;

type Stored = Record<string, StoredHeat>;

export class DiskHeat {
  private maps = new Map<string, HeatMap>();
  private timer: NodeJS.Timeout | undefined;
  private looks = 0;
  private changed = false;
  private saving: Promise<void> = Promise.resolve();
  private readonly ahead: Prefetch;
  private shadowReady: () => boolean = () => false;
  /** Where the guest is going to read: the shadow's files, or after a promotion the primary's own. */
  private role: 'disk' | 'twin' = 'twin';

  constructor(private readonly core: VmCore) {
    this.ahead = new Prefetch({
      budgetBytes: core.spec.prefetchBytes,
      maps: () => this.maps,
      open: (disk) => this.open(disk),
    });
  }

  /** There is a primary: its reads and writes are counted from now on. */
  start(shadowReady: () => boolean): void {
    if (this.disks.length === 0) return;
    this.shadowReady = shadowReady;
    this.timer ??= setInterval(() => this.look(), LOOK_EVERY_MS);
    if (this.maps.size === 0) void this.load();
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    this.timer = undefined;
    if (this.changed) this.save();
    await this.saving;
    await this.ahead.close();
  }

  /** The guest runs from what was its shadow's files: what it will read first comes first. */
  promoted(): void {
    if (!this.reads) return;
    this.role = 'disk';
    void this.ahead.rush().finally(() => {
      this.role = 'twin';
    });
  }

  /** What a snapshot says of it; undefined when there is nothing to say. */
  toLabel(): Stored | undefined {
    const hot = [...this.maps].filter(([, map]) => map.hottest().length > 0);
    return hot.length === 0
      ? undefined
      : Object.fromEntries(hot.map(([name, map]) => [name, map.toStored(LABEL_EXTENTS_MAX)]));
  }

  /** Goes on from what was known of this VM, or of the one that it is a copy of. */
  take(stored: Stored): void {
    for (const disk of this.disks) {
      const known = stored[disk.name];
      if (known !== undefined) this.maps.set(disk.name, HeatMap.fromStored(sizeOf(disk), known));
    }
    this.changed = true;
  }

  /** A disk has another size from now on. */
  resized(): void {
    this.look();
    for (const disk of this.disks) {
      const map = this.maps.get(disk.name);
      if (map !== undefined && map.diskBytes !== sizeOf(disk))
        this.maps.set(disk.name, HeatMap.fromStored(sizeOf(disk), map.toStored()));
    }
    this.core.primary?.control.countDiskIo(this.disks.map((disk) => this.map(disk).extentBytes));
  }

  view(): DiskHeatView[] {
    return this.disks.map((disk) => {
      const map = this.map(disk);
      const hottest = map.hottest();
      const round = (value: number) => Math.round(value);
      const pages = (of: Float64Array) => round(of.reduce((sum, each) => sum + each, 0));
      return {
        disk: disk.name,
        sizeBytes: map.diskBytes,
        extentBytes: map.extentBytes,
        extentsUsed: hottest.length,
        pagesRead: pages(map.read),
        pagesWritten: pages(map.written),
        stripes: stripes(map),
        hottest: hottest.slice(0, 16).map((i) => ({
          offset: i * map.extentBytes,
          pagesRead: round(map.read[i] as number),
          pagesWritten: round(map.written[i] as number),
        })),
        prefetch: { budgetBytes: this.reads ? this.core.spec.prefetchBytes : 0, readBytes: this.ahead.totalBytes },
      };
    });
  }

  private get disks(): readonly DiskSpec[] {
    return this.core.spec.disks;
  }

  /** The page cache is of use only to a QEMU that reads through it. */
  private get reads(): boolean {
    const { prefetchBytes, diskCache } = this.core.spec;
    return this.disks.length > 0 && prefetchBytes > 0 && diskCache !== 'none';
  }

  private map(disk: DiskSpec): HeatMap {
    let map = this.maps.get(disk.name);
    if (map === undefined) {
      map = new HeatMap(sizeOf(disk));
      this.maps.set(disk.name, map);
    }
    return map;
  }

  private look(): void {
    const { primary, state } = this.core;
    if (primary === null || primary.hasDied || state !== 'running') return;
    const nowMs = monotonicMs();
    for (const [i, disk] of this.disks.entries()) this.count(primary, i, this.map(disk), nowMs);
    if (++this.looks % SAVE_EVERY_LOOKS === 0 && this.changed) this.save();
    if (this.reads && this.shadowReady()) this.ahead.look();
  }

  private count(primary: QemuProcess, index: number, map: HeatMap, nowMs: number): void {
    if (map.add(primary.control.takeDiskIo(index, map.extents), nowMs)) this.changed = true;
  }

  private open(name: string): number | null {
    const disk = this.disks.find((each) => each.name === name);
    try {
      return disk === undefined ? null : openSync(this.core.disks.pathOf(disk, this.role), 'r');
    } catch {
      return null; // the shadow has not made it yet
    }
  }

  private async load(): Promise<void> {
    const schema = z.record(z.string(), storedHeatSchema);
    // What is lost with a file that can not be read is some minutes of counting.
    const stored = await readJson(this.path, schema).catch((error: unknown) => {
      this.core.logError(error, 'reading what is used of the disks');
      return null;
    });
    if (stored === null) return;
    for (const disk of this.disks) {
      const counted = this.maps.get(disk.name);
      const known = stored[disk.name];
      if (known === undefined) continue;
      const map = HeatMap.fromStored(sizeOf(disk), known);
      if (counted !== undefined && counted.extents === map.extents) map.add(counted, monotonicMs());
      this.maps.set(disk.name, map);
    }
  }

  private save(): void {
    this.changed = false;
    const stored = Object.fromEntries([...this.maps].map(([name, map]) => [name, map.toStored()]));
    this.saving = this.saving.then(() =>
      writeFileAtomic(this.path, JSON.stringify(stored)).catch((error: unknown) =>
        this.core.logError(error, 'keeping what is used of the disks'),
      ),
    );
  }

  private get path(): string {
    return join(this.core.host.options.stateDir.vmDir(this.core.name), 'heat.json');
  }
}

function sizeOf(disk: DiskSpec): number {
  return diskBytes([{ ...disk, readOnly: false }]);
}

/** The disk from its begin to its end in equal parts, each with the pages that are read and written in it. */
function stripes(map: HeatMap): DiskHeatView['stripes'] {
  const count = Math.min(STRIPES, map.extents);
  const parts = Array.from({ length: count }, () => ({ pagesRead: 0, pagesWritten: 0 }));
  for (let i = 0; i < map.extents; i++) {
    const part = parts[Math.floor((i * count) / map.extents)];
    if (part === undefined) continue;
    part.pagesRead += map.read[i] as number;
    part.pagesWritten += map.written[i] as number;
  }
  return parts.map(({ pagesRead, pagesWritten }) => ({
    pagesRead: Math.round(pagesRead),
    pagesWritten: Math.round(pagesWritten),
  }));
}
