/** Disks of real VMs: what a guest finds on them after a promotion is of the same moment as its memory. Needs root. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { buildDatabaseImage, Databases, databaseSpec } from '../harness/databases.js';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import type { ShadowView } from '../src/vm/view.js';
import { SmallDisk } from './test-image.js';

const scratch = mkdtempSync(join(tmpdir(), 'svdisks-'));
let manager: InProcessManager;

beforeAll(buildDatabaseImage, 240_000);
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

async function open(): Promise<void> {
  manager = await InProcessManager.open({ bridge: 'svtdisk0', subnet: '10.233.0.0/24' });
}

beforeEach(open);
afterEach(async ({ task }) => {
  if (task.result?.state === 'fail') console.log(manager.recent());
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

async function run(vm: string, command: string): Promise<void> {
  expect({ command, ...(await manager.port.guestExec(vm, command)) }).toEqual({ command, exitCode: 0 });
}

/** A guest that boots beats before it has found its disks. */
const hasDisk = (vm: string, disk: string) => run(vm, `until [ -b /dev/disk/${disk} ]; do sleep 0.1; done`);

const small = (name: string, more: Partial<VmSpecInput> = {}): VmSpecInput => ({
  name,
  ramBytes: 128 * MIB,
  network: 'none',
  disks: [{ name: 'data', sizeBytes: 64 * MIB }],
  ...more,
});
/** Writes a mark all over the disk, and reads all of it back past the caches. */
const mark = (text: string) =>
  `for i in $(seq 0 15); do echo ${text} | dd of=/dev/disk/data bs=4k seek=$((i * 999)) conv=notrunc 2>/dev/null; done; sync`;
const isMarked = (text: string) =>
  `echo 3 > /proc/sys/vm/drop_caches; for i in $(seq 0 15); do [ "$(dd if=/dev/disk/data bs=4k skip=$((i * 999)) count=1 2>/dev/null | head -n1)" = ${text} ] || exit 1; done`;

describe('databases under load', () => {
  test('are sound, and have all from before the epoch, after random kills and a planned switchover', async () => {
    await manager.runVm({ ...databaseSpec('db'), shadow: { kind: 'always' } });
    const databases = await Databases.start(manager, 'db');
    for (let round = 0; round < 4; round++) {
      await manager.shadowReady('db');
      if (round === 2) await manager.makeStrict('db');
      await sleep(300 + Math.random() * 1200);
      const promoted = manager.nextPromotion('db');
      if (round === 1) await manager.port.promoteShadow('db', null);
      else await manager.port.injectFault('db', 'kill');
      expect(await databases.check(await promoted, manager.wasStrict('db'))).toEqual([]);
    }
    const { committed, written } = databases.counts;
    expect(committed).toBeGreaterThan(50);
    expect(written).toBeGreaterThan(100);
    expect(await databases.checkRedisFile()).toEqual([]);
    // The plug is pulled: what is left has to be what journals are for.
    await manager.port.killVm('db');
    await manager.port.startVm('db', { boot: true }, () => {});
    await databases.startAgain();
    expect(await databases.checkRedisFile()).toEqual([]);
    await databases.stop();
  }, 240_000);
});

test('a disk goes where its guest goes: back in time, into a snapshot, a clone, another name, a power-on', async () => {
  await manager.runVm(small('a', { shadow: { kind: 'always' } }));
  await manager.shadowReady('a');
  await run('a', mark('first'));
  await sleep(1000);
  const past = new Date().toISOString();
  await run('a', mark('second'));
  await sleep(1000);
  await manager.port.promoteShadow('a', { beforeMs: Date.parse(past) });
  await run('a', isMarked('first'));
  await run('a', mark('third'));
  await manager.shadowReady('a');

  expect(await manager.port.verifyShadow('a', () => {})).toMatchObject({ damagedPages: 0 });
  await manager.port.promoteShadow('a', null);
  await run('a', isMarked('third'));
  await manager.shadowReady('a');

  await manager.port.stopVm('a', { timeoutMs: 10_000, how: 'suspend', snapshot: true }, () => {});
  await manager.port.startVm('a', { boot: false }, () => {});
  await run('a', isMarked('third'));
  await manager.shadowReady('a');

  await sleep(1000);
  await manager.port.cloneVm('a', { name: 'b', wanted: null }, () => {});
  await run('b', isMarked('third'));
  await run('b', mark('clone'));
  await run('a', isMarked('third'));

  const file = join(scratch, 'a.shadow');
  await manager.port.stopVm('a', { timeoutMs: 10_000, how: 'shutdown', snapshot: true }, () => {});
  await manager.port.exportSnapshot('a', file, () => {});
  await manager.port.importSnapshot(file, 'c', () => {});
  await manager.port.startVm('c', { boot: false }, () => {});
  await run('c', isMarked('third'));
  await run('c', mark('fourth'));
  await manager.port.killVm('c');
  await manager.port.startVm('c', { boot: true }, () => {});
  await hasDisk('c', 'data');
  await run('c', isMarked('fourth'));
  // Removed, its disks are gone.
  await manager.port.removeVm('c', { force: true });
  expect(existsSync(join(manager.stateDir.vmsDir, 'c'))).toBe(false);
}, 180_000);

test.each(['none', 'unsafe'] as const)(
  'with the cache %s a disk is of the epoch of its guest',
  async (diskCache) => {
    await manager.runVm(small('a', { shadow: { kind: 'always' }, diskCache }));
    await manager.shadowReady('a');
    await run('a', mark('first'));
    // Of any length and place, as an application does that knows nothing of blocks.
    await run(
      'a',
      'tr "\\0" x < /dev/zero | dd of=/dev/disk/data iflag=fullblock bs=777 seek=55555 count=999 conv=notrunc,fsync 2>/dev/null',
    );
    await manager.epochFromNowOn('a');
    const past = new Date().toISOString();
    await run('a', mark('second'));
    await manager.epochFromNowOn('a');
    const promoted = manager.nextPromotion('a');
    await manager.port.injectFault('a', 'kill');
    await promoted;
    await run('a', isMarked('second'));
    await manager.shadowReady('a');
    await manager.port.promoteShadow('a', { beforeMs: Date.parse(past) });
    await run('a', isMarked('first'));
    await run('a', `[ "$(dd if=/dev/disk/data bs=777 skip=55555 count=999 2>/dev/null | tr -d x | wc -c)" = 0 ]`);
  },
  60_000,
);

test('disks are copied from files, and read-only ones are used in place by several VMs', async () => {
  const base = join(scratch, 'base.img');
  // One that nobody may write is as good to be copied as another.
  writeFileSync(base, Buffer.alloc(3 * MIB + 512, 'base\n'), { mode: 0o444 });
  const disks = [
    { name: 'copy', path: base },
    { name: 'base', path: base, readOnly: true },
  ];
  await manager.runVm(small('a', { disks, shadow: { kind: 'always' } }));
  await manager.runVm(small('b', { disks }));
  for (const vm of ['a', 'b']) for (const disk of ['copy', 'base']) await hasDisk(vm, disk);
  await run('a', 'echo mine | dd of=/dev/disk/copy conv=notrunc,fsync 2>/dev/null');
  await run('a', '! dd if=/dev/zero of=/dev/disk/base bs=512 count=1 conv=fsync 2>/dev/null');
  await manager.shadowReady('a');
  await sleep(500);
  const promoted = manager.nextPromotion('a');
  await manager.port.injectFault('a', 'kill');
  await promoted;
  await run('a', '[ "$(head -n1 /dev/disk/copy)" = mine ] && [ "$(head -n1 /dev/disk/base)" = base ]');
  await run('b', '[ "$(head -n1 /dev/disk/copy)" = base ] && [ "$(head -n1 /dev/disk/base)" = base ]');
  // Nothing that is asked of a disk touches the user's file.
  for (const asked of [
    manager.port.disks.resize('b', { disk: 'base', sizeBytes: 8 * MIB }, () => {}),
    manager.port.disks.export('a', { disk: 'base', path: join(scratch, 'no.img'), epoch: null }, () => {}),
  ])
    await expect(asked).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', reason: expect.stringMatching(/read-only/) });
  expect(readFileSync(base).subarray(0, 5).toString()).toBe('base\n');
}, 90_000);

describe('what can not be a disk', () => {
  const refused = (disks: VmSpecInput['disks']) =>
    manager.runVm(small('no', { disks })).then(
      () => expect.fail('it runs'),
      (error: unknown) => error,
    );

  test('is refused with a reason, and nothing is left', async () => {
    const path = (name: string) => join(scratch, name);
    writeFileSync(path('empty'), '');
    writeFileSync(path('odd'), 'x'.repeat(1000));
    writeFileSync(path('big'), Buffer.alloc(2 * MIB));
    for (const [disk, code] of [
      [{ name: 'd', path: path('missing') }, 'DISK_NOT_FOUND'],
      [{ name: 'd', path: scratch }, 'INVALID_ARGUMENT'],
      [{ name: 'd', path: path('empty') }, 'INVALID_ARGUMENT'],
      [{ name: 'd', path: path('odd'), readOnly: true }, 'INVALID_ARGUMENT'],
      [{ name: 'd', path: path('big'), sizeBytes: MIB }, 'INVALID_ARGUMENT'],
      [{ name: 'd', path: 'relative' }, 'INVALID_ARGUMENT'],
      [{ name: 'd', sizeBytes: MIB + 1 }, 'INVALID_ARGUMENT'],
      [{ name: 'D', sizeBytes: MIB }, 'INVALID_ARGUMENT'],
      [{ name: 'd', sizeBytes: MIB, readOnly: true }, 'INVALID_ARGUMENT'],
    ] as const)
      expect(await refused([disk])).toMatchObject({ code });
    expect(await refused([1, 2].map(() => ({ name: 'd', sizeBytes: MIB })))).toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    expect(readdirSync(manager.stateDir.vmsDir)).toEqual([]);
  });

  test('is a file that another VM writes', async () => {
    const writer = await manager.runVm(small('writer', { disks: [{ name: 'data', sizeBytes: 4 * MIB }] }));
    const disk = join(manager.stateDir.vmsDir, writer.name, 'disks', 'data.disk');
    expect(await refused([{ name: 'd', path: disk }])).toMatchObject({ code: 'DISK_IN_USE' });
    expect(await refused([{ name: 'd', path: disk, readOnly: true }])).toMatchObject({ code: 'DISK_IN_USE' });
  }, 60_000);
});

test('a shadow whose disk can not be written costs the primary nothing, and follows when it can be again', async () => {
  const small128 = new SmallDisk(join(scratch, 'twin'), 128 * MIB);
  try {
    await manager.runVm(small('a'));
    // The shadow's disk lies on another file system than everything else.
    const twin = join(manager.stateDir.vmsDir, 'a', 'disks', 'data.twin');
    rmSync(twin, { force: true });
    symlinkSync(join(small128.folder, 'data.twin'), twin);
    small128.fill(8 * MIB);
    const trouble = manager.nextEvent('a', 'disk.twin-trouble');
    await manager.port.createShadow('a', () => {});
    await run('a', `dd if=/dev/urandom of=/dev/disk/data bs=1M count=40 conv=fsync 2>/dev/null`);
    await run('a', mark('kept'));
    await trouble;
    const { epoch } = manager.port.showVm('a').shadow as ShadowView;
    await manager.until('more epochs', () => (manager.port.showVm('a').shadow?.epoch ?? 0) > (epoch as number) + 2);
    await run('a', isMarked('kept'));
    expect(manager.port.showVm('a')).toMatchObject({ state: 'running', shadow: { state: 'ready' } });
    expect(
      manager.events.list({}).filter(({ type }) => /^(failure.detected|disk.full|disk.failed)/.test(type)),
    ).toEqual([]);
    small128.makeRoom();
    const promoted = manager.nextPromotion('a');
    await manager.port.injectFault('a', 'kill');
    await promoted;
    await run('a', isMarked('kept'));
  } finally {
    await manager.port.killVm('a');
    small128.close();
  }
}, 90_000);

test('a full host stops the guest, which goes on when there is room, and is not taken for dead', async () => {
  await manager.close();
  const before = process.env.TMPDIR;
  const disk = new SmallDisk(join(scratch, 'small'), 400 * MIB);
  process.env.TMPDIR = disk.folder;
  try {
    await open();
    await manager.runVm(small('a'));
    disk.fill(20 * MIB);
    const stopped = manager.nextEvent('a', 'disk.full');
    const writing = manager.port.guestExec(
      'a',
      'dd if=/dev/urandom of=/dev/disk/data bs=1M count=60 conv=fsync 2>/dev/null',
    );
    await stopped;
    await sleep(3000);
    expect(manager.port.showVm('a').state).toBe('running');
    const resumed = manager.nextEvent('a', 'disk.resumed');
    disk.makeRoom();
    await resumed;
    expect(await writing).toEqual({ exitCode: 0 });
    expect(manager.events.list({}).filter(({ type }) => type.startsWith('failure.detected'))).toEqual([]);
  } finally {
    await manager.close();
    process.env.TMPDIR = before;
    if (before === undefined) delete process.env.TMPDIR;
    disk.close();
    await open();
  }
}, 120_000);
