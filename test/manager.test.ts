/** The manager: what it refuses, what it leaves behind (nothing), and what it finds after it was killed. Needs root. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { IMAGES_DIR } from '../harness/checkout.js';
import { Daemon } from '../harness/daemon.js';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { openCgroups } from '../src/allocate/cgroup.js';
import { stateTag } from '../src/network/address.js';
import { nativeNetwork } from '../src/network/native.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import { openFiles, until } from './bare-qemu.js';

const RAM_BYTES = 192 * MIB;
const any = (value: unknown) => value as never;
const ignore = () => {};

/** Of a manager that lives: everything but its bridge, its own cgroup and the tables of its rules. */
async function leftOfVms(manager: InProcessManager): Promise<string[]> {
  const { root, runDir, vmsDir } = manager.stateDir;
  const { driver } = openCgroups(`shadowvm-${stateTag(root)}`);
  const groups = (await driver?.sweep(''))?.removed ?? [];
  const found = leftovers(root).filter((what) => !/^(\/sys\/fs\/cgroup|interface svtmg|table )/.test(what));
  return [...found, ...groups, ...readdirSync(runDir), ...readdirSync(vmsDir)];
}

async function closed(manager: InProcessManager): Promise<void> {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
  expect(existsSync(root)).toBe(false);
}

describe('a request that is refused', () => {
  let manager: InProcessManager;
  let imagesDir: string;
  beforeAll(async () => {
    imagesDir = mkdtempSync(join(tmpdir(), 'shadowvm-images-'));
    const image = (name: string, vmlinuz: Buffer, initrd: Buffer) => {
      mkdirSync(join(imagesDir, name));
      const manifest = JSON.parse(readFileSync(join(IMAGES_DIR, 'default', 'manifest.json'), 'utf8')) as object;
      const sizes = { kernelBytes: vmlinuz.length, initrdBytes: initrd.length };
      writeFileSync(join(imagesDir, name, 'manifest.json'), JSON.stringify({ ...manifest, name, ...sizes }));
      writeFileSync(join(imagesDir, name, 'vmlinuz'), vmlinuz);
      writeFileSync(join(imagesDir, name, 'initrd'), initrd);
    };
    const junk = Buffer.from('this is neither a kernel nor an initrd');
    image('no-kernel', junk, junk);
    image('no-init', readFileSync(join(IMAGES_DIR, 'default', 'vmlinuz')), junk);
    manager = await InProcessManager.open({ bridge: 'svtmg1', subnet: '10.214.21.0/24', imagesDir });
  });
  afterAll(async () => {
    await closed(manager);
    rmSync(imagesDir, { recursive: true });
  });

  const refusal = (spec: unknown): Promise<unknown> =>
    manager.runVm(any(spec)).then(
      () => new Error('it ran'),
      (error: unknown) => error,
    );
  const expectNothing = async () => {
    expect([manager.port.listVms(), await leftOfVms(manager)]).toEqual([[], []]);
  };

  test.each<[string, unknown]>([
    ['no specification', undefined],
    ['a name alone', 'web'],
    ['no name', {}],
    ['an empty name', { name: '' }],
    ['a path for a name', { name: '../web' }],
    ['capitals', { name: 'Web' }],
    ['a hyphen at the end', { name: 'web-' }],
    ['a digit at the begin', { name: '1web' }],
    ['a long name', { name: 'w'.repeat(33) }],
    ['a line feed', { name: 'web\n' }],
    ['little RAM', { name: 'web', ramBytes: 63 * MIB }],
    ['RAM that is not whole', { name: 'web', ramBytes: 64 * MIB + 4096 }],
    ['RAM without end', { name: 'web', ramBytes: Number.POSITIVE_INFINITY }],
    ['no vCPU', { name: 'web', vcpus: 0 }],
    ['nine vCPUs', { name: 'web', vcpus: 9 }],
    ['half a vCPU', { name: 'web', vcpus: 1.5 }],
    ['port 0', { name: 'web', network: 'user', publish: [{ hostPort: 0, guestPort: 80 }] }],
    ['port 65536', { name: 'web', network: 'user', publish: [{ hostPort: 80, guestPort: 65536 }] }],
    ['an unknown network', { name: 'web', network: 'bridge' }],
    ['an image by its path', { name: 'web', image: '/etc' }],
    ['a rule without triggers', { name: 'web', shadow: { kind: 'when', triggers: [] } }],
    ['a declared network in user mode', { name: 'web', network: 'user', net: 'backend' }],
    ['a bandwidth without a network', { name: 'web', network: 'none', bandwidthBitsPerSecond: 1_000_000 }],
    ['a bandwidth of nothing', { name: 'web', bandwidthBitsPerSecond: 0 }],
  ])('%s', async (_what, spec) => {
    expect(await refusal(spec)).toMatchObject({ name: 'ShadowVmError', code: 'INVALID_ARGUMENT' });
    await expectNothing();
  });

  test('anything at all, in the words of an error that users know', () =>
    fc.assert(
      fc.asyncProperty(
        fc.oneof(
          fc.anything(),
          fc.record(
            { name: fc.anything(), ramBytes: fc.anything(), publish: fc.anything(), shadow: fc.anything() },
            { requiredKeys: [] },
          ),
        ),
        async (spec) => {
          expect(await refusal(spec)).toMatchObject({
            code: expect.stringMatching(/^(INVALID_ARGUMENT|IMAGE_NOT_FOUND)$/),
          });
        },
      ),
      { numRuns: 200 },
    ));

  test('an image that is not there, memory that the host has not, KVM that does not work', async () => {
    expect(await refusal({ name: 'web', image: 'nothing' })).toMatchObject({
      code: 'IMAGE_NOT_FOUND',
      subject: 'nothing',
    });
    expect(await refusal({ name: 'web', image: 'no-init', ramBytes: 65_536 * MIB })).toMatchObject({
      code: 'NO_SPACE',
      reason: expect.stringMatching(/^it needs \d+ MiB of memory and the host has \d+ MiB available$/),
    });
    await expectNothing();
  });

  test('a port that is taken, by somebody else or by the same request', async () => {
    const server = net.createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as net.AddressInfo;
    const spec = { name: 'web', image: 'no-init', network: 'user' as const };
    expect(await refusal({ ...spec, publish: [{ hostPort: port, guestPort: 80 }] })).toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: expect.stringContaining(`port ${port} of the host can not be used`),
    });
    await new Promise((resolve) => server.close(resolve));
    const twice = [80, 81].map((guestPort) => ({ hostPort: port, guestPort }));
    expect(await refusal({ ...spec, publish: twice })).toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'a port of the host is published once',
    });
    await expectNothing();
  });

  test('a kernel that is none, and a guest that panics while it boots, leave nothing but their words', async () => {
    // Once more than needed: what the first one opens for good (a netlink socket) is not what is left of it.
    for (const files of [null, openFiles]) {
      const before = files?.();
      expect(await refusal({ name: 'web', image: 'no-kernel' })).toMatchObject({ code: 'QEMU_START_FAILED' });
      await expectNothing();
      expect(await refusal({ name: 'web', image: 'no-init', ramBytes: RAM_BYTES, accelerator: 'tcg' })).toMatchObject({
        code: 'QEMU_START_FAILED',
        reason: 'the VM ended before its first heartbeat',
        remedy: expect.stringMatching(/end of its console: .*Kernel panic - not syncing: \w/),
      });
      await expectNothing();
      if (before === undefined) continue;
      await until('the closing of files', () => openFiles().length <= before.length, 2000).catch(ignore);
      expect(openFiles()).toEqual(before);
    }
    expect(manager.events.list({ vm: 'web', limit: 1 })[0]).toMatchObject({ type: 'vm.failed', level: 'error' });
  });

  test('a VM that is not there', async () => {
    const { port } = manager;
    for (const ask of [
      () => port.stopVm('web', { timeoutMs: 1, how: 'shutdown', snapshot: false }, ignore),
      () => port.killVm('web'),
      () => port.removeVm('web', { force: true }),
      () => port.openConsole('web'),
      async () => port.showVm('web'),
      async () => port.readLog('web', 'console', any({})),
      async () => port.injectFault('web', 'kill'),
      () => port.guestExec('web', 'true'),
      () => port.createShadow('web', ignore),
      () => port.promoteShadow('web', null),
      async () => port.removeShadow('web'),
      async () => port.showVm('__proto__'),
    ])
      await expect(ask()).rejects.toMatchObject({ code: 'VM_NOT_FOUND', remedy: expect.stringContaining('vm ls') });
    expect(port.listShadows()).toEqual([]);
  });

  test('a bridge or a subnet that somebody else has, which is left alone', async () => {
    const native = nativeNetwork();
    native.createBridge('svtmgx');
    try {
      const other = await InProcessManager.open({ bridge: 'svtmgx', subnet: '10.214.29.0/24', imagesDir });
      await expect(other.runVm({ name: 'web', image: 'no-init' })).rejects.toMatchObject({ code: 'NETWORK_CONFLICT' });
      await closed(other);
      expect(native.interfaceExists('svtmgx')).toBe(true);
    } finally {
      native.deleteBridge('svtmgx');
    }
    // The first VM of the first manager makes its bridge; the second manager wants a part of its subnet.
    await refusal({ name: 'web', image: 'nothing' });
    const other = await InProcessManager.open({ bridge: 'svtmgy', subnet: '10.214.21.128/25', imagesDir });
    await expect(other.runVm({ name: 'web', image: 'no-init' })).rejects.toMatchObject({ code: 'NETWORK_CONFLICT' });
    await closed(other);
    expect([native.interfaceExists('svtmgy'), native.interfaceExists('svtmg1')]).toEqual([false, true]);
  });
});

describe('a manager with VMs', () => {
  let manager: InProcessManager;
  beforeAll(async () => {
    manager = await InProcessManager.open({ bridge: 'svtmg2', subnet: '10.214.22.0/24' });
  });
  afterAll(() => closed(manager));
  const spec: VmSpecInput = { name: 'web', ramBytes: RAM_BYTES, accelerator: 'tcg' };

  test('of two runs of one name takes one; a name is free again when its VM was removed', async () => {
    const outcomes = await Promise.allSettled([manager.runVm(spec), manager.runVm(spec)]);
    expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    const refused = outcomes.find(({ status }) => status === 'rejected') as PromiseRejectedResult;
    expect(refused.reason).toMatchObject({ code: 'VM_EXISTS', remedy: expect.stringContaining('vm rm web') });
    await expect(manager.runVm(spec)).rejects.toMatchObject({ code: 'VM_EXISTS' });
    await expect(manager.port.removeVm('web', { force: false })).rejects.toMatchObject({ code: 'VM_BUSY' });
    expect(manager.port.showVm('web')).toMatchObject({ state: 'running', address: '10.214.22.2', failure: null });
  });

  test('tells what it is asked about a VM that runs, and ends it on demand', async () => {
    const { port } = manager;
    expect(await port.guestExec('web', 'exit 3')).toEqual({ exitCode: 3 });
    await expect(port.guestExec('web', 'two\nlines')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(port.promoteShadow('web', null)).rejects.toMatchObject({ code: 'SHADOW_NOT_FOUND' });
    const console_ = await port.openConsole('web');
    let text = '';
    console_.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    await port.guestExec('web', 'echo words of the guest > /dev/console');
    await until('the console', () => text.includes('words of the guest'));
    await until('usage', () => port.showVm('web').usage !== null);
    const stopping = port.stopVm('web', { timeoutMs: 20_000, how: 'shutdown', snapshot: false }, ignore);
    await expect(port.stopVm('web', { timeoutMs: 1, how: 'shutdown', snapshot: false }, ignore)).rejects.toMatchObject({
      code: 'VM_BUSY',
    });
    expect(await stopping).toMatchObject({ state: 'stopped', pid: null, tap: null, shadow: null });
    await until('the end of the console', () => console_.readableEnded);
    for (const ask of [
      () => port.stopVm('web', { timeoutMs: 1, how: 'shutdown', snapshot: false }, ignore),
      () => port.guestExec('web', 'true'),
      () => port.createShadow('web', ignore),
      () => port.injectFault('web', 'panic'),
      () => port.openConsole('web'),
    ])
      await expect(ask()).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await port.removeVm('web', { force: false });
    expect(await leftOfVms(manager)).toEqual([]);
  });

  test('kills a guest that does not shut down, and tells so', async () => {
    await manager.runVm({ ...spec, network: 'none' });
    manager.processes('web').primary.freeze();
    await manager.port.stopVm('web', { timeoutMs: 300, how: 'shutdown', snapshot: false }, ignore);
    const types = manager.events.list({ vm: 'web' }).map(({ type }) => type);
    expect(types.slice(-2)).toEqual(['vm.stop-timeout', 'vm.stopped']);
    await manager.port.removeVm('web', { force: false });
    expect(await leftOfVms(manager)).toEqual([]);
  });
});

test.each([0, 4, 15, 40])(
  'a manager may close %d ms after a fault, in the middle of the switchover',
  async (delayMs) => {
    const manager = await InProcessManager.open({ bridge: 'svtmg3', subnet: '10.214.23.0/24' });
    await manager.runVm({ name: 'web', ramBytes: RAM_BYTES, accelerator: 'tcg', shadow: { kind: 'always' } });
    await manager.shadowReady('web');
    manager.processes('web').primary.kill();
    if (delayMs > 0) await sleep(delayMs);
    await Promise.all([manager.port.close(), manager.port.close()]);
    await expect(manager.runVm({ name: 'late' })).rejects.toMatchObject({ code: 'DAEMON_STOPPING' });
    await expect(manager.port.createShadow('web', ignore)).rejects.toMatchObject({ code: 'DAEMON_STOPPING' });
    expect(leftovers(manager.stateDir.root)).toEqual([]);
    // No RAM of a VM is held any more, the old primary's included.
    await until('the end of all RAM', () => !openFiles().some((file) => file.includes('memfd:shadowvm')));
    await closed(manager);
  },
);

describe('a manager that is killed', () => {
  const network = { bridge: 'svtmg4', subnet: '10.214.24.0/24' };
  const spec: VmSpecInput = { name: 'web', ramBytes: RAM_BYTES, accelerator: 'tcg', shadow: { kind: 'always' } };

  test('at any moment of a start leaves nothing that the next one does not find', async () => {
    let stateDir: string | undefined;
    for (const delayMs of [20, 40, 60, 90, 150]) {
      const daemon: Daemon = await Daemon.start({ ...network, ...(stateDir === undefined ? {} : { stateDir }) });
      stateDir = daemon.stateDir;
      // One that ran already goes on; of one that did not, nothing is left.
      const adopted = (await daemon.client.listVms()).filter(({ state }) => state === 'running');
      if (adopted.length === 0)
        expect(leftovers(stateDir).filter((what) => !what.startsWith('/sys/fs/cgroup'))).toEqual([]);
      for (const { name } of await daemon.client.listVms()) await daemon.client.removeVm(name, { force: true });
      const running = daemon.client.runVm(spec).catch(ignore);
      await sleep(delayMs);
      await daemon.kill();
      await running;
    }
    const last = await Daemon.start({ ...network, stateDir: stateDir! });
    await last.stop();
    expect(leftovers(stateDir!)).toEqual([]);
  });
});
