/** What a real VM uses is recorded by a real manager, and outlives its death. */
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Daemon, sleep } from '../harness/daemon.js';
import { statePrefix } from '../harness/killed-runs.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB } from '../src/vm/spec.js';

let daemon: Daemon;

beforeAll(async () => {
  daemon = await Daemon.start({ bridge: 'svhist', subnet: '10.231.0.0/24' });
});
afterAll(async () => {
  await daemon.stop();
  expect(leftovers(daemon.stateDir)).toEqual([]);
});

test('CPU, memory, network and epochs of a loaded, protected VM, across a crash of the manager', async () => {
  const disks = [{ name: 'data', sizeBytes: 16 * MIB }];
  await daemon.client.runVm({ name: 'web', ramBytes: 256 * MIB, disks, shadow: { kind: 'always' } });
  await daemon.client.guestExec('web', 'shadowvm-guest memwriter 32 10 &');
  const write = 'dd if=/dev/zero of=/dev/disk/data bs=4k count=256 conv=fsync 2>/dev/null';
  await daemon.client.guestExec('web', `while sleep 0.2; do ${write}; done &`);
  await sleep(5000);
  const cpu = await daemon.client.history('web', { metric: 'cpu' });
  expect(cpu).toMatchObject({ unit: '%', stepS: 1 });
  expect(cpu.points.length).toBeGreaterThanOrEqual(4);
  expect(Math.max(...cpu.points.map((point) => point.mean))).toBeGreaterThan(5);
  const newest = async (metric: Parameters<typeof daemon.client.history>[1]) =>
    (await daemon.client.history('web', metric)).points.at(-1)!.mean;
  const used = await newest({ metric: 'memory' });
  expect(used).toBeGreaterThan(20 * MIB);
  expect(used).toBeLessThan(256 * MIB);
  expect(await newest({ metric: 'guest-memory' })).toBeGreaterThan(32 * MIB);
  expect(await newest({ metric: 'balloon' })).toBe(256 * MIB);
  expect(await newest({ metric: 'dirty-rate' })).toBeGreaterThan(MIB);
  expect(await newest({ metric: 'pause' })).toBeGreaterThan(0);
  expect(await newest({ metric: 'lag' })).toBeGreaterThan(0);
  expect((await daemon.client.history('web', { metric: 'network-packets' })).points.length).toBeGreaterThan(0);
  const most = async (metric: 'disk-bytes' | 'disk-operations') =>
    Math.max(...(await daemon.client.history('web', { metric })).points.map((point) => point.mean));
  expect(await most('disk-bytes')).toBeGreaterThan(MIB / 2);
  expect(await most('disk-operations')).toBeGreaterThan(1);

  const before = (await daemon.client.history('web')).points;
  await daemon.kill();
  daemon = await Daemon.start({ stateDir: daemon.stateDir, bridge: 'svhist', subnet: '10.231.0.0/24' });
  await sleep(3500);
  const after = (await daemon.client.history('web')).points;
  expect(after.length).toBeGreaterThan(before.length);
  // What was flushed stays: at most the last second may be missing.
  expect(after.slice(0, before.length - 1)).toEqual(before.slice(0, -1));

  await expect(daemon.client.history('nobody')).rejects.toMatchObject({ code: 'VM_NOT_FOUND' });
  expect((await daemon.client.analysis('web')).class).toBe('unknown');
  await daemon.client.removeVm('web', { force: true });
  await expect(daemon.client.history('web')).rejects.toMatchObject({ code: 'VM_NOT_FOUND' });
});

test('a manager starts and runs VMs beside a file that is no history, and leaves it as it is', async () => {
  const stateDir = mkdtempSync(statePrefix());
  const foreign = 'this is no database, and long enough for the header of one. '.repeat(20);
  writeFileSync(join(stateDir, 'history.db'), foreign);
  const other = await Daemon.start({ stateDir });
  try {
    const told = await other.waitEvent('trouble', ({ type }) => type === 'history.trouble');
    expect(told.message).toMatch(/^usage is not recorded: could not open the usage history .*Move the file away/);
    await other.client.runVm({ name: 'web', network: 'none' });
    await expect(other.client.history('web')).rejects.toMatchObject({ code: 'STATE_CORRUPT' });
    expect(readFileSync(join(stateDir, 'history.db'), 'utf8')).toBe(foreign);
  } finally {
    await other.stop();
  }
});
