/** A disk's way into epochs and out of them, below the manager: QEMU's dirty blocks, the image, the files that follow. */
import { closeSync, copyFileSync, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { areMarksWhole } from '../src/disk/marked-epoch.js';
import { type DiskPlace, diskPlaces } from '../src/disk/place.js';
import { DiskTwin, lockDisk } from '../src/native/disk.js';
import { ShadowImage } from '../src/native/image.js';
import { type CommitResult, EpochSource } from '../src/native/memory.js';
import { type CutEpoch, cutEpoch } from '../src/protect/epoch.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { diskSpecSchema, MIB } from '../src/vm/spec.js';
import { BareQemus } from './bare-qemu.js';
import { qemuVersions } from './qemu10.js';

const RAM_BYTES = 128 * MIB;
const DISK_BYTES = 64 * MIB;
/** Writes here and there for as long as the guest lives, and now and then gives some back. */
const WRITER = [
  'dd if=/dev/urandom of=/dev/vda bs=4k count=16 seek=$((RANDOM % 16000)) conv=notrunc,fsync',
  '[ $((RANDOM % 4)) = 0 ] && dd if=/dev/zero of=/dev/vda bs=64k count=2 seek=$((RANDOM % 1000)) conv=notrunc,fsync',
].join('; ');
const KEEP_WRITING = `(while :; do ${WRITER}; done) > /dev/null 2>&1 &`;

describe.each(qemuVersions)('QEMU %s', (_name, use) => {
  let putBack: () => void;
  let qemus: BareQemus;
  beforeAll(async () => {
    putBack = use();
    qemus = await BareQemus.open();
  });
  afterAll(async () => {
    await qemus.close();
    putBack();
  });

  test('every epoch has the disk as it was in its pause, and the twin follows through aborts and rewinds', async () => {
    const vm = await Protected.start(qemus);
    try {
      await vm.run(KEEP_WRITING);
      const copies = new Map<number, Buffer>();
      for (let round = 0; round < 4; round++) {
        await sleep(300);
        const { epoch, diskPages } = await vm.commit(await vm.cut(true));
        expect(diskPages).toBeGreaterThan(0);
        const disk = readFileSync(vm.path('disk'));
        copies.set(epoch, disk);
        expect(readFileSync(vm.path('twin')).equals(disk)).toBe(true);
        await vm.primary.qmp.execute('cont');
        // Given up: what it had is in the next one.
        await sleep(200);
        await vm.cut(false);
        await vm.source.abort();
      }
      // Whatever was going on in the pause.
      for (let round = 0; round < 10; round++) await vm.commit(await vm.cut(false));
      const last = await vm.commit(await vm.cut(true));
      copies.set(last.epoch, readFileSync(vm.path('disk')));
      expect(readFileSync(vm.path('twin')).equals(readFileSync(vm.path('disk')))).toBe(true);
      // Nothing is left of one that nobody writes.
      expect(await vm.cut(true)).toMatchObject({ diskPages: 0 });
      await vm.source.abort();

      for (const epoch of [...copies.keys()].reverse()) {
        await vm.source.rewind(epoch, null, vm.twins);
        expect(readFileSync(vm.path('twin')).equals(copies.get(epoch) as Buffer)).toBe(true);
        expect((await vm.restored()).equals(copies.get(epoch) as Buffer)).toBe(true);
      }
      await vm.image.compact({ keepFromWallMs: Date.now(), force: true });
      expect((await vm.image.verify()).damagedPages).toEqual([]);
    } finally {
      await vm.close();
    }
  }, 120_000);

  test('a protection that comes later finds what was written since, also in the middle of an epoch', async () => {
    const vm = await Protected.start(qemus);
    try {
      await vm.run(KEEP_WRITING);
      await vm.commit(await vm.cut(false));
      await vm.cut(false); // as a manager leaves it that is killed
      await sleep(300);
      await vm.protectAgain();
      const { diskPages } = await vm.commit(await vm.cut(true));
      expect(diskPages).toBeGreaterThan(0);
      expect(diskPages).toBeLessThan(DISK_BYTES / 4096 / 2);
      expect(readFileSync(vm.path('twin')).equals(readFileSync(vm.path('disk')))).toBe(true);
      // Of an image that has lost that epoch the marks say nothing.
      const { headEpoch } = vm.image.describe();
      await vm.source.rewind(headEpoch - 1, null, vm.twins);
      await vm.primary.qmp.execute('cont');
      await vm.protectAgain();
      await vm.commit(await vm.cut(true));
      expect(readFileSync(vm.path('twin')).equals(readFileSync(vm.path('disk')))).toBe(true);
    } finally {
      await vm.close();
    }
  }, 60_000);
});

class Protected {
  private readonly place: DiskPlace;
  readonly twins: DiskTwin[];
  source!: EpochSource;

  private constructor(
    readonly primary: QemuProcess,
    readonly image: ShadowImage,
    private readonly folder: string,
  ) {
    const disks = [diskSpecSchema.parse({ name: 'data', sizeBytes: DISK_BYTES })];
    [this.place] = diskPlaces({ ramBytes: RAM_BYTES, disks }) as [DiskPlace];
    const fd = sized(this.path('twin'));
    this.twins = [new DiskTwin({ fd, ...this.place })];
    closeSync(fd);
  }

  static async start(qemus: BareQemus): Promise<Protected> {
    const folder = join(qemus.dir, `${Math.random()}`.slice(2));
    const image = await ShadowImage.create(folder, { vm: 'test', ramBytes: RAM_BYTES, diskBytes: DISK_BYTES });
    const fd = sized(join(folder, 'disk'));
    // Not empty: the first epoch has to have all of it.
    for (let at = 0; at < DISK_BYTES; at += MIB) writeSync(fd, `block ${at}`, at);
    const disks = [{ name: 'data', readOnly: false, cache: 'writeback', fd }] as const;
    const primary = await qemus.boot(RAM_BYTES, { disks: [...disks] });
    closeSync(fd);
    const vm = new Protected(primary, image, folder);
    await vm.protectAgain();
    await vm.commit(await vm.cut(false));
    while ((await vm.source.advanceTwins(vm.twins, 1000)) > 0);
    return vm;
  }

  /** From what the primary and the image alone know. */
  async protectAgain(): Promise<void> {
    const { ram, control, pid } = this.primary;
    this.source?.close();
    this.source = new EpochSource({ ram, control, pid, tracking: 'write', image: this.image.native });
    await this.source.sync();
    const fd = openSync(this.path('disk'), 'r');
    const known = areMarksWhole(control.read().marked, this.image.describe());
    await this.source.attachDisks([{ fd, ...this.place }], known);
    closeSync(fd);
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  async run(command: string): Promise<void> {
    expect(await this.primary.agent.exec(command)).toBe(0);
  }

  cut(keepStopped: boolean): Promise<CutEpoch> {
    return cutEpoch(this.primary, this.source, keepStopped);
  }

  commit(cut: CutEpoch): Promise<CommitResult> {
    const when = { generation: 0, cutAtWallMs: cut.cutAtMs, cutAtNs: cut.cutAtNs };
    return this.source.commit(when, cut.deviceState, null, this.twins);
  }

  /** The head as a file that was something else before. */
  async restored(): Promise<Buffer> {
    copyFileSync(this.path('disk'), this.path('restored'));
    const fd = openSync(this.path('restored'), 'r+');
    const { firstPage, bytes } = this.place;
    await this.image.fillDisk(fd, firstPage, bytes);
    closeSync(fd);
    return readFileSync(this.path('restored'));
  }

  async close(): Promise<void> {
    for (const twin of this.twins) twin.close();
    await this.primary.dispose();
    this.source.close();
    await this.image.close();
  }
}

function sized(path: string): number {
  const fd = openSync(path, 'w+');
  ftruncateSync(fd, DISK_BYTES);
  return fd;
}

test('a disk is not lent to readers while somebody writes it', () => {
  const path = join('/tmp', `shadowvm-lock-${process.pid}`);
  const fd = openSync(path, 'w+');
  lockDisk(fd);
  const other = openSync(path, 'r+');
  lockDisk(other); // readers do not mind each other
  closeSync(fd);
  closeSync(other);
  rmSync(path);
});
