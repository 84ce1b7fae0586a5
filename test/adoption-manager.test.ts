/** A manager is killed while its VMs run: they go on, and the next manager takes them over and protects them again. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import { Daemon } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import type { VmSpecInput } from '../src/vm/spec.js';
import type { VmView } from '../src/vm/view.js';
import { isAlive } from './bare-qemu.js';

const network = { bridge: 'svtad1', subnet: '10.214.41.0/24' };
const spec: VmSpecInput = { name: 'web', ramBytes: 160 * 1024 * 1024, accelerator: 'tcg', shadow: { kind: 'always' } };
/** Each place at which a promotion can be cut off; src/manager/takeover.ts. */
const PROMOTION_STEPS = 7;

let daemon: Daemon | undefined;
afterEach(async () => {
  const { stateDir } = daemon as Daemon;
  await daemon?.stop();
  expect(leftovers(stateDir)).toEqual([]);
});

async function start(stateDir?: string, fault = ''): Promise<Daemon> {
  const env = { ...process.env, SHADOWVM_FAULT: fault };
  daemon = await Daemon.start({ ...network, env, ...(stateDir === undefined ? {} : { stateDir }) });
  return daemon;
}

const look = (): Promise<VmView> => (daemon as Daemon).client.showVm('web');

async function until(what: string, holds: (vm: VmView) => boolean): Promise<VmView> {
  for (const deadline = performance.now() + 30_000; performance.now() < deadline; await sleep(20)) {
    const vm = await look();
    if (holds(vm)) return vm;
  }
  throw new Error(`${what} did not come: ${JSON.stringify(await look())}`);
}
const protectedNow = (vm: VmView) => vm.state === 'running' && vm.shadow?.state === 'ready';

/** What the guest wrote down before anything happened is still in its memory. */
async function expectMemory(): Promise<void> {
  const { exitCode } = await (daemon as Daemon).client.guestExec('web', 'grep -q kept /dev/shm/note');
  expect(exitCode).toBe(0);
}

async function runProtected(): Promise<{ stateDir: string; vm: VmView }> {
  const { client, stateDir } = await start();
  await client.runVm(spec);
  expect((await client.guestExec('web', 'echo kept > /dev/shm/note')).exitCode).toBe(0);
  await until('a shadow', protectedNow);
  await sleep(700); // an epoch with the note
  return { stateDir, vm: await look() };
}

test('VMs never stop for it, and a failure afterwards is survived', async () => {
  const { stateDir, vm } = await runProtected();
  const before = vm.guest!.uptimeMs;
  await (daemon as Daemon).kill();
  await sleep(500);
  expect(isAlive(vm.pid!)).toBe(true);
  await start(stateDir);
  const adopted = await until('its protection', protectedNow);
  expect(adopted).toMatchObject({ pid: vm.pid, address: vm.address, mac: vm.mac, generation: 0, origin: vm.origin });
  const heard = await until('heartbeats', ({ guest }) => guest !== null);
  expect(heard.guest!.uptimeMs).toBeGreaterThan(before + 400);
  await expectMemory();
  const { client } = daemon as Daemon;
  expect((await client.listEvents({ vm: 'web' })).map(({ type }) => type)).toContain('vm.adopted');
  await client.injectFault('web', 'kill');
  await until('the promotion', ({ generation, state }) => generation === 1 && state === 'running');
  await expectMemory();
  // Its epochs go through all of that.
  const epochs = await client.listEpochs('web');
  expect(epochs.map(({ generation }) => generation)).toEqual(expect.arrayContaining([0]));
  expect(epochs[0]!.epoch).toBeLessThan(vm.shadow!.epoch);
});

test('a VM that dies while no manager is there wakes up from its image', async () => {
  const { stateDir, vm } = await runProtected();
  await (daemon as Daemon).kill();
  process.kill(vm.pid!, 'SIGKILL');
  await start(stateDir);
  const revived = await until('its protection', protectedNow);
  expect(revived).toMatchObject({ generation: 1, address: vm.address, origin: 'snapshot' });
  await expectMemory();
});

test('cut off at any step of a promotion, the next manager brings it to an end', { timeout: 240_000 }, async () => {
  const { stateDir } = await runProtected();
  let { generation } = await look();
  for (let step = 1; step <= PROMOTION_STEPS; step++) {
    await (daemon as Daemon).kill();
    const faulty = await start(stateDir, `promotion:${step}`);
    await until('its protection', protectedNow);
    const epoch = (await look()).shadow!.epoch;
    // It dies in the middle of this.
    await expect(faulty.client.promoteShadow('web')).rejects.toThrow();
    await faulty.kill();
    await start(stateDir);
    const vm = await until('its protection', protectedNow);
    await expectMemory();
    expect(vm.generation).toBeGreaterThanOrEqual(generation);
    // Nothing that was committed is gone.
    expect(vm.shadow!.epoch).toBeGreaterThanOrEqual(epoch);
    generation = vm.generation;
  }
});

test('cut off at any step of an adoption, the next manager adopts', { timeout: 120_000 }, async () => {
  const { stateDir, vm } = await runProtected();
  for (const step of [1, 2, 3]) {
    await (daemon as Daemon).kill();
    await expect(start(stateDir, `adoption:${step}`)).rejects.toThrow();
    expect(isAlive(vm.pid!)).toBe(true);
    await start(stateDir);
    expect(await until('its protection', protectedNow)).toMatchObject({ pid: vm.pid, generation: 0 });
    await expectMemory();
  }
});
