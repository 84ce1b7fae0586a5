/** What a shadow image is at rest: snapshots, clones, files for other hosts, and older epochs to go back to. */
import {
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import type { VmSpecInput } from '../src/vm/spec.js';

const spec: VmSpecInput = { name: 'web', ramBytes: 160 * 1024 * 1024, accelerator: 'tcg' };
const ignore = () => {};

let manager: InProcessManager;
const folder = mkdtempSync(join(tmpdir(), 'shadowvm-exports-'));
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: 'svtsn1', subnet: '10.214.42.0/24' });
  await manager.runVm(spec);
});
afterAll(async () => {
  await manager.close();
  rmSync(folder, { recursive: true, force: true });
  expect(leftovers(manager.stateDir.root)).toEqual([]);
});

const guest = async (vm: string, command: string) => (await manager.port.guestExec(vm, command)).exitCode;
const write = (vm: string, text: string) => guest(vm, `echo ${text} > /dev/shm/note`);
const has = (vm: string, text: string) => guest(vm, `grep -q '^${text}$' /dev/shm/note`);

describe('a VM that starts from the golden snapshot of its image', () => {
  test('is somebody of its own, and its shadow holds only what differs', async () => {
    const vm = manager.port.showVm('web');
    expect(vm).toMatchObject({ origin: 'golden', address: '10.214.42.2', state: 'running' });
    expect(await guest('web', 'test "$(hostname)" = web')).toBe(0);
    expect(await guest('web', `ip addr show eth0 | grep -q ${vm.mac}`)).toBe(0);
    expect(await guest('web', `ip addr show eth0 | grep -q 'inet ${vm.address}/24'`)).toBe(0);
    expect(await guest('web', 'ip route | grep -q "default via 10.214.42.1"')).toBe(0);
    expect(await guest('web', `test $(( $(date +%s) - ${Math.floor(Date.now() / 1000)} )) -le 2`)).toBe(0);
    await manager.port.createShadow('web', ignore);
    await sleep(5500); // the image is looked at
    const { image, standby } = manager.port.showVm('web').shadow!;
    expect(standby).toBe('process');
    // A tenth of what the guest has in its memory.
    expect(image!.liveBytes).toBeLessThan(4 * 1024 * 1024);
    expect(image!.indexBytes).toBeLessThanOrEqual(160 * 1024 * 1024 * 0.005);
  });

  test('draws other random numbers than its sisters', async () => {
    await manager.runVm({ ...spec, name: 'sister' });
    for (const vm of ['web', 'sister']) await guest(vm, 'head -c 16 /dev/urandom | od -x > /dev/console');
    await sleep(100);
    const drawn = async (vm: string) =>
      (await manager.port.readLog(vm, 'console', { maxBytes: 200 })).text.match(/0000000( \w{4}){8}/)?.[0];
    expect(await drawn('web')).toBeDefined();
    expect(await drawn('web')).not.toBe(await drawn('sister'));
    await manager.port.killVm('sister');
    await manager.port.removeVm('sister', { force: true });
  });
});

describe('the standby', () => {
  test.each(['image', 'resident', 'resident=30', 'process'])(
    '%s: the VM survives, and nothing is lost that was committed',
    async (text) => {
      const level =
        text === 'image' || text === 'process'
          ? { level: text as 'image' }
          : { level: 'resident' as const, percent: text === 'resident' ? 100 : 30 };
      expect((await manager.port.changeStandby('web', level)).standby).toBe(text);
      await write('web', text);
      await manager.epochFromNowOn('web');
      const { shadow } = manager.processes('web');
      expect(shadow === null).toBe(text === 'image');
      if (text === 'resident') {
        await manager.until('a filled standby', () => shadow!.ram.residentBytes() > 20 * 1024 * 1024);
      } else if (text === 'process') expect(shadow!.ram.residentBytes()).toBeLessThan(1024 * 1024);
      const promotion = manager.nextPromotion('web');
      manager.processes('web').primary.kill();
      await promotion;
      expect(await has('web', text)).toBe(0);
      await manager.shadowReady('web');
    },
  );
});

describe('older epochs', () => {
  test('can be gone back to by number and by moment, and what came after is given up', async () => {
    await write('web', 'first');
    const first = await manager.epochFromNowOn('web');
    await sleep(50);
    const beforeMs = Date.now();
    await write('web', 'second');
    const second = await manager.epochFromNowOn('web');
    expect(manager.port.listEpochs('web').map(({ epoch }) => epoch)).toEqual(expect.arrayContaining([first, second]));
    const promotion = await manager.port.promoteShadow('web', { epoch: first });
    expect(promotion).toMatchObject({ epoch: first, planned: true });
    expect(await has('web', 'first')).toBe(0);
    await manager.shadowReady('web');
    expect(manager.port.listEpochs('web').map(({ epoch }) => epoch)).not.toContain(second);
    await write('web', 'third');
    await manager.epochFromNowOn('web');
    await manager.port.promoteShadow('web', { beforeMs });
    expect(await has('web', 'first')).toBe(0);
    await manager.shadowReady('web');
  });

  test('that are not there are refused, and the VM goes on', async () => {
    const { pid } = manager.port.showVm('web');
    for (const wanted of [{ epoch: 999_999 }, { beforeMs: 1 }])
      await expect(manager.port.promoteShadow('web', wanted)).rejects.toMatchObject({ code: 'EPOCH_NOT_FOUND' });
    expect(manager.port.showVm('web')).toMatchObject({ state: 'running', pid });
  });

  test('are gone back to step by step when a promoted guest dies again at once', async () => {
    await manager.until('epochs of some seconds', () => {
      const epochs = manager.port.listEpochs('web');
      return Date.parse(epochs.at(-1)!.cutAt) - Date.parse(epochs[0]!.cutAt) > 2500;
    });
    const taken: number[] = [];
    for (let death = 0; death < 3; death++) {
      const promotion = manager.nextPromotion('web');
      await manager.port.injectFault('web', 'panic');
      taken.push((await promotion).epoch);
      await manager.until('a guest that runs', () => manager.port.showVm('web').guest !== null);
    }
    expect(taken[1]).toBeLessThan(taken[0]!);
    expect(taken[2]).toBeLessThan(taken[1]!);
    const rewinds = manager.events
      .list({ vm: 'web' })
      .filter(({ type, data }) => type === 'promotion.rewound' && data.rewinds);
    const [first, second] = rewinds.slice(-2).map(({ data }) => Number(data.rewinds));
    expect(second).toBe(first! + 1);
    await manager.shadowReady('web');
  });
});

describe('a copy', () => {
  test('of a running VM goes on by itself, from now or from an older epoch', async () => {
    await write('web', 'original');
    const epoch = await manager.epochFromNowOn('web');
    await write('web', 'later');
    await manager.epochFromNowOn('web');
    const clone = await manager.port.cloneVm('web', { name: 'copy', wanted: { epoch } }, ignore);
    expect(clone).toMatchObject({ origin: 'clone', state: 'running' });
    expect(clone.address).not.toBe(manager.port.showVm('web').address);
    expect([await has('copy', 'original'), await has('web', 'later')]).toEqual([0, 0]);
    expect(await guest('copy', 'test "$(hostname)" = copy')).toBe(0);
    // It can be protected like any other.
    await manager.port.createShadow('copy', ignore);
    const promotion = manager.nextPromotion('copy');
    manager.processes('copy').primary.kill();
    await promotion;
    expect(await has('copy', 'original')).toBe(0);
    await expect(manager.port.cloneVm('web', { name: 'copy', wanted: null }, ignore)).rejects.toMatchObject({
      code: 'VM_EXISTS',
    });
    await expect(manager.port.cloneVm('web', { name: 'no', wanted: { epoch: 10 ** 9 } }, ignore)).rejects.toMatchObject(
      {
        code: 'EPOCH_NOT_FOUND',
      },
    );
    expect(manager.port.listVms().map(({ name }) => name)).toEqual(['web', 'copy']);
    await manager.port.removeVm('copy', { force: true });
  });

  test('proves that the shadow would come up, and leaves no trace', async () => {
    const before = manager.port.showVm('web').pid;
    expect(await manager.port.verifyShadow('web', ignore)).toMatchObject({ vm: 'web', damagedPages: 0 });
    expect(manager.port.showVm('web')).toMatchObject({ pid: before, state: 'running' });
  });
});

test('a guest never gets a page that its image has lost: it is taken back to an epoch that is whole', async () => {
  await manager.runVm({ ...spec, name: 'torn', shadow: { kind: 'always' } });
  await manager.shadowReady('torn');
  await write('torn', 'before');
  await manager.epochFromNowOn('torn');
  await sleep(1000); // a step back is half a second at least
  const log = join(manager.stateDir.vmDir('torn'), 'shadow');
  const sizes = new Map(readdirSync(log).map((file) => [file, statSync(join(log, file)).size]));
  await write('torn', 'after');
  expect(await guest('torn', 'dd if=/dev/urandom of=/dev/shm/noise bs=65536 count=128')).toBe(0);
  await manager.epochFromNowOn('torn');
  for (const file of readdirSync(log)) {
    const fd = openSync(join(log, file), 'r+');
    for (let at = sizes.get(file) ?? 4096; at < fstatSync(fd).size; at += 1024) writeSync(fd, 'torn', at);
    closeSync(fd);
  }
  const corrupt = manager.nextEvent('torn', 'image.corrupt');
  const promoted = manager.nextPromotion('torn');
  await manager.port.injectFault('torn', 'kill');
  expect((await corrupt).message).toMatch(
    /^page \d+ of the shadow image can not be given to the guest, which is ended: /,
  );
  await promoted;
  await manager.until('a guest that is whole', () => {
    const { state, guest: figures } = manager.port.showVm('torn');
    return state === 'running' && figures !== null && figures.beats > 20;
  });
  expect(await has('torn', 'before')).toBe(0);
  expect(await guest('torn', 'test ! -e /dev/shm/noise')).toBe(0);
  expect(manager.events.list({ vm: 'torn' }).map((event) => event.type)).toContain('promotion.rewound');
  await manager.port.removeVm('torn', { force: true });
});

describe('a snapshot', () => {
  const file = join(folder, 'web.shadow');

  test.each(['suspend', 'shutdown'] as const)('is left by a %s, whole, and started from', async (how) => {
    await write('web', how);
    const { snapshot, state } = await manager.port.stopVm('web', { timeoutMs: 10_000, how, snapshot: true }, ignore);
    expect(state).toBe('stopped');
    expect(manager.port.listSnapshots()).toEqual([snapshot]);
    expect(await manager.port.verifySnapshot('web', ignore)).toMatchObject({ epoch: snapshot!.epoch, damagedPages: 0 });
    const started = await manager.port.startVm('web', { boot: false }, ignore);
    expect(started).toMatchObject({ origin: 'snapshot', state: 'running', snapshot: null });
    expect(await has('web', how)).toBe(0);
    await manager.port.createShadow('web', ignore);
  });

  test('goes as one file to another manager', async () => {
    await write('web', 'travels');
    await manager.epochFromNowOn('web');
    expect(await manager.port.exportSnapshot('web', file, ignore)).toMatchObject({ vm: 'web', path: file });
    await expect(manager.port.exportSnapshot('web', file, ignore)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const other = await InProcessManager.open({ bridge: 'svtsn2', subnet: '10.214.43.0/24' });
    try {
      expect(await other.port.importSnapshot(file, null, ignore)).toMatchObject({ vm: 'web' });
      await expect(other.port.importSnapshot(file, null, ignore)).rejects.toMatchObject({ code: 'VM_EXISTS' });
      await other.port.importSnapshot(file, 'web-2', ignore);
      expect(await other.port.verifySnapshot('web', ignore)).toMatchObject({ damagedPages: 0 });
      const started = await other.port.startVm('web-2', { boot: false }, ignore);
      expect(started).toMatchObject({ origin: 'snapshot', address: '10.214.43.2' });
      const { exitCode } = await other.port.guestExec('web-2', `grep -q '^travels$' /dev/shm/note`);
      expect(exitCode).toBe(0);
    } finally {
      await other.close();
    }
  });

  test.each([
    ['cut short', (bytes: Buffer) => bytes.subarray(0, bytes.length - 1), /^SNAPSHOT_(CORRUPT|FOREIGN)$/],
    ['cut to nothing', () => Buffer.alloc(0), /^SNAPSHOT_(CORRUPT|FOREIGN)$/],
    ['altered in the middle', (bytes: Buffer) => flip(bytes, bytes.length >> 1), /^SNAPSHOT_CORRUPT$/],
    ['something else', () => Buffer.from('#!/bin/sh\n'.repeat(1000)), /^SNAPSHOT_FOREIGN$/],
  ])('%s is refused, and nothing is left of it', async (_what, change, code) => {
    const path = join(folder, 'bad.shadow');
    writeFileSync(path, change(readFileSync(file)));
    await expect(manager.port.importSnapshot(path, 'bad', ignore)).rejects.toMatchObject({
      code: expect.stringMatching(code),
    });
    await expect(manager.port.importSnapshot(join(folder, 'nowhere'), 'bad', ignore)).rejects.toMatchObject({
      code: 'SNAPSHOT_NOT_FOUND',
    });
    await expect(manager.port.importSnapshot('relative', 'bad', ignore)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    expect(manager.port.listVms().map(({ name }) => name)).toEqual(['web']);
  });

  test('that was not wanted is not there: the VM can only boot', async () => {
    await manager.port.removeShadow('web');
    await manager.port.stopVm('web', { timeoutMs: 10_000, how: 'shutdown', snapshot: false }, ignore);
    await expect(manager.port.startVm('web', { boot: false }, ignore)).rejects.toMatchObject({
      code: 'SNAPSHOT_NOT_FOUND',
    });
    expect(manager.port.showVm('web').state).toBe('stopped');
    expect(await manager.port.startVm('web', { boot: true }, ignore)).toMatchObject({
      origin: 'boot',
      state: 'running',
    });
    expect(await guest('web', 'test ! -e /dev/shm/note')).toBe(0);
  });
});

function flip(bytes: Buffer, at: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] = copy[at]! ^ 0x10;
  return copy;
}
