/** Disks of a VM that runs: what its guest uses of them, growing, and what they were at an epoch. Needs root. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';

const scratch = mkdtempSync(join(tmpdir(), 'shadowvm-disk-features-'));
let manager: InProcessManager;

beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: 'svtdkf0', subnet: '10.233.3.0/24' });
  await manager.runVm(spec);
  await manager.shadowReady('a');
}, 120_000);
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  rmSync(scratch, { recursive: true, force: true });
  expect(leftovers(root)).toEqual([]);
});

const spec: VmSpecInput = {
  name: 'a',
  ramBytes: 128 * MIB,
  network: 'none',
  shadow: { kind: 'always' },
  disks: [{ name: 'data', sizeBytes: 64 * MIB }],
};

async function run(vm: string, command: string): Promise<void> {
  expect({ command, ...(await manager.port.guestExec(vm, command)) }).toEqual({ command, exitCode: 0 });
}

const heatOf = (vm: string) => {
  const [data] = manager.port.disks.heat(vm);
  if (data === undefined) throw new Error(`${vm} has no disk`);
  return data;
};
/** The stripe of the disk in which this MiB lies; of 64 MiB each has one of its own. */
const extent = (vm: string, mib: number) => {
  const { stripes, sizeBytes } = heatOf(vm);
  const stripe = stripes[Math.floor((mib * stripes.length) / (sizeBytes / MIB))];
  if (stripe === undefined) throw new Error(`${mib} MiB is behind the end`);
  return stripe;
};

async function promotedByKill(): Promise<void> {
  await manager.shadowReady('a');
  const promoted = manager.nextPromotion('a');
  await manager.port.injectFault('a', 'kill');
  await promoted;
}

/** An epoch from after now is committed. */
async function committed(): Promise<number> {
  const before = manager.port.showVm('a').shadow?.epoch ?? 0;
  await manager.until('two epochs', () => (manager.port.showVm('a').shadow?.epoch ?? 0) >= before + 2);
  return manager.port.showVm('a').shadow?.epoch as number;
}

test('what a guest reads and writes is counted where it is, and what QEMU reads for itself is not', async () => {
  await run('a', 'dd if=/dev/urandom of=/dev/disk/data bs=1M seek=16 count=4 conv=notrunc,fsync 2>/dev/null');
  await run('a', 'dd if=/dev/disk/data of=/dev/null bs=1M skip=40 count=3 iflag=direct 2>/dev/null');
  await manager.until('the counts', () => extent('a', 42).pagesRead > 250);
  for (const mib of [16, 17, 18, 19]) {
    expect(extent('a', mib).pagesWritten).toBeGreaterThan(250);
    expect(extent('a', mib).pagesRead).toBe(0); // although jobs have read it for the shadow
  }
  for (const mib of [40, 41, 42]) expect(extent('a', mib).pagesRead).toBeGreaterThan(250);
  expect(extent('a', 44).pagesRead).toBe(0);
});

test('what it uses is brought into the page cache for the shadow, and with it what comes next', async () => {
  const twin = join(manager.stateDir.vmDir('a'), 'disks', 'data.twin');
  await run('a', 'dd if=/dev/urandom of=/dev/disk/data bs=1M count=24 conv=notrunc,fsync 2>/dev/null');
  await committed();
  const cachedBytes = () => Number(execFileSync('fincore', ['-b', '-n', '-o', 'RES', twin]).toString());
  await manager.until('a cold cache', () => {
    execFileSync('sync', [twin]);
    execFileSync('dd', [`if=${twin}`, 'iflag=nocache', 'count=0', 'status=none']);
    return cachedBytes() < MIB;
  });
  await manager.until('what is hot', () => cachedBytes() > 20 * MIB);
  expect(heatOf('a').prefetch.readBytes).toBeGreaterThan(20 * MIB);
});

test('the map goes where the guest goes: a promotion, a stop and a start, a clone', async () => {
  const known = () => extent('a', 40).pagesRead > 100;
  await promotedByKill();
  expect(known()).toBe(true);
  await run('a', 'dd if=/dev/disk/data of=/dev/null bs=1M skip=50 count=1 iflag=direct 2>/dev/null');
  await manager.until('the counts of the new primary', () => extent('a', 50).pagesRead > 0);
  await manager.shadowReady('a');
  await manager.port.cloneVm('a', { name: 'b', wanted: null }, () => {});
  expect(extent('b', 40).pagesRead).toBeGreaterThan(100);
  await manager.port.removeVm('b', { force: true });
  await manager.port.stopVm('a', { timeoutMs: 10_000, how: 'suspend', snapshot: true }, () => {});
  await manager.port.startVm('a', { boot: false }, () => {});
  await manager.until('the map', known);
}, 60_000);

test('a disk of a running guest grows, and is protected as it is then', async () => {
  await manager.shadowReady('a');
  const before = new Date().toISOString();
  await run('a', 'echo before | dd of=/dev/disk/data bs=4k conv=notrunc,fsync 2>/dev/null');
  const view = await manager.port.disks.resize('a', { disk: 'data', sizeBytes: 96 * MIB }, () => {});
  expect(view).toMatchObject({ disk: 'data', sizeBytes: 96 * MIB });
  await run('a', `[ $(blockdev --getsize64 /dev/disk/data) = ${96 * MIB} ]`);
  await run('a', 'echo behind | dd of=/dev/disk/data bs=1M seek=95 conv=notrunc,fsync 2>/dev/null');
  await manager.shadowReady('a');
  await committed();
  await expect(manager.port.promoteShadow('a', { beforeMs: Date.parse(before) })).rejects.toMatchObject({
    code: 'EPOCH_NOT_FOUND',
    reason: expect.stringContaining('ended when a disk was resized'),
  });
  await promotedByKill();
  const read = (skip: string) => `$(dd if=/dev/disk/data ${skip} count=1 iflag=direct 2>/dev/null | head -n1)`;
  await run('a', `[ "${read('bs=4k')}" = before ] && [ "${read('bs=1M skip=95')}" = behind ]`);
  await manager.until('the counts of what is new', () => extent('a', 95).pagesRead > 0);
  expect(extent('a', 40).pagesRead).toBeGreaterThan(100);

  const refused = (disk: string, sizeBytes: number) =>
    expect(manager.port.disks.resize('a', { disk, sizeBytes }, () => {})).rejects;
  await refused('data', 64 * MIB).toMatchObject({
    code: 'INVALID_ARGUMENT',
    reason: expect.stringMatching(/only grows/),
  });
  await refused('data', 100 * MIB + 1).toMatchObject({ code: 'INVALID_ARGUMENT' });
  await refused('other', 64 * MIB).toMatchObject({ code: 'DISK_NOT_FOUND' });
  expect(manager.port.disks.list()[0]).toMatchObject({ disk: 'data', sizeBytes: 96 * MIB, readOnly: false });
}, 60_000);

test('a disk is exported as it was at an epoch, whole or not at all', async () => {
  await manager.shadowReady('a');
  await run('a', 'echo older | dd of=/dev/disk/data bs=4k seek=5 conv=notrunc,fsync 2>/dev/null');
  const epoch = await committed();
  await run('a', 'echo newer | dd of=/dev/disk/data bs=4k seek=5 conv=notrunc,fsync 2>/dev/null');
  await committed();
  const [older, newest] = [join(scratch, 'older.img'), join(scratch, 'newest.img')];
  const steps: string[] = [];
  const done = await manager.port.disks.export('a', { disk: 'data', path: older, epoch }, (step) =>
    steps.push(step.message),
  );
  expect(done).toMatchObject({ vm: 'a', disk: 'data', path: older, epoch, sizeBytes: 96 * MIB });
  expect(steps).toEqual(expect.arrayContaining([`epoch ${epoch} is packed`, 'the disk is written']));
  await manager.port.disks.export('a', { disk: 'data', path: newest, epoch: null }, () => {});
  const wordOf = (path: string) =>
    readFileSync(path)
      .subarray(5 * 4096, 5 * 4096 + 5)
      .toString();
  expect([wordOf(older), wordOf(newest)]).toEqual(['older', 'newer']);
  expect(statSync(older).size).toBe(96 * MIB);
  expect(done.hostBytes).toBeLessThan(70 * MIB);
  expect(
    readFileSync(older)
      .subarray(95 * MIB, 95 * MIB + 6)
      .toString(),
  ).toBe('behind');

  const refused = (what: { disk?: string; path?: string; epoch?: number }) =>
    expect(
      manager.port.disks.export('a', { disk: 'data', path: join(scratch, 'no.img'), epoch: null, ...what }, () => {}),
    ).rejects;
  await refused({ path: older }).toMatchObject({ code: 'INVALID_ARGUMENT', reason: 'there is such a file already' });
  await refused({ path: 'relative' }).toMatchObject({ code: 'INVALID_ARGUMENT' });
  await refused({ path: join(scratch, 'missing', 'no.img') }).toMatchObject({ code: 'SNAPSHOT_NOT_FOUND' });
  await refused({ disk: 'other' }).toMatchObject({ code: 'DISK_NOT_FOUND' });
  await refused({ epoch: 1_000_000 }).toMatchObject({ code: 'EPOCH_NOT_FOUND' });
  expect(readdirSync(scratch).sort()).toEqual(['newest.img', 'older.img']);
  expect(readdirSync(manager.stateDir.vmDir('a')).filter((name) => name.startsWith('.export'))).toEqual([]);
  expect(existsSync(join(scratch, 'no.img'))).toBe(false);
}, 60_000);
