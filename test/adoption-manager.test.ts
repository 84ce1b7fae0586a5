/** A manager is killed while its VMs run: they go on, and the next manager takes them over and protects them again. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import type { VmSpecInput } from '../src/vm/spec.js';
import type { VmView } from '../src/vm/view.js';
import { isAlive } from './bare-qemu.js';
import { MortalDaemon } from './mortal-daemon.js';

const spec: VmSpecInput = { name: 'web', ramBytes: 160 * 1024 * 1024, accelerator: 'tcg', shadow: { kind: 'always' } };
/** Each place at which a promotion can be cut off; src/manager/takeover.ts. */
const PROMOTION_STEPS = 7;

const daemon = new MortalDaemon({ bridge: 'svtad1', subnet: '10.214.41.0/24' });
afterEach(() => daemon.stop());

/** What the guest wrote down before anything happened is still in its memory. */
const expectMemory = () => daemon.run('grep -q kept /dev/shm/note');

async function runProtected(): Promise<VmView> {
  await daemon.start();
  await daemon.client.runVm(spec);
  await daemon.run('echo kept > /dev/shm/note');
  await daemon.untilProtected();
  await sleep(700); // an epoch with the note
  return daemon.look();
}

test('VMs never stop for it, and a failure afterwards is survived', async () => {
  const vm = await runProtected();
  const before = vm.guest!.uptimeMs;
  await daemon.kill();
  await sleep(500);
  expect(isAlive(vm.pid!)).toBe(true);
  await daemon.start();
  const adopted = await daemon.untilProtected();
  expect(adopted).toMatchObject({ pid: vm.pid, address: vm.address, mac: vm.mac, generation: 0, origin: vm.origin });
  const heard = await daemon.until('heartbeats', ({ guest }) => guest !== null);
  expect(heard.guest!.uptimeMs).toBeGreaterThan(before + 400);
  await expectMemory();
  const { client } = daemon;
  expect((await client.listEvents({ vm: 'web' })).map(({ type }) => type)).toContain('vm.adopted');
  await client.injectFault('web', 'kill');
  await daemon.until('the promotion', ({ generation, state }) => generation === 1 && state === 'running');
  await expectMemory();
  // Its epochs go through all of that.
  const epochs = await client.listEpochs('web');
  expect(epochs.map(({ generation }) => generation)).toEqual(expect.arrayContaining([0]));
  expect(epochs[0]!.epoch).toBeLessThan(vm.shadow!.epoch);
});

test('a VM that dies while no manager is there wakes up from its image', async () => {
  const vm = await runProtected();
  await daemon.kill();
  process.kill(vm.pid!, 'SIGKILL');
  await daemon.start();
  const revived = await daemon.untilProtected();
  expect(revived).toMatchObject({ generation: 1, address: vm.address, origin: 'snapshot' });
  await expectMemory();
});

test('cut off at any step of a promotion, the next manager brings it to an end', { timeout: 240_000 }, async () => {
  await runProtected();
  let { generation } = await daemon.look();
  for (let step = 1; step <= PROMOTION_STEPS; step++) {
    await daemon.kill();
    await daemon.start(`promotion:${step}`);
    await daemon.untilProtected();
    const epoch = (await daemon.look()).shadow!.epoch;
    // It dies in the middle of this.
    await expect(daemon.client.promoteShadow('web')).rejects.toThrow();
    await daemon.kill();
    await daemon.start();
    const vm = await daemon.untilProtected();
    await expectMemory();
    expect(vm.generation).toBeGreaterThanOrEqual(generation);
    // Nothing that was committed is gone.
    expect(vm.shadow!.epoch).toBeGreaterThanOrEqual(epoch);
    generation = vm.generation;
  }
});

test('cut off at any step of an adoption, the next manager adopts', { timeout: 120_000 }, async () => {
  const vm = await runProtected();
  for (const step of [1, 2, 3]) {
    await daemon.kill();
    await expect(daemon.start(`adoption:${step}`)).rejects.toThrow();
    expect(isAlive(vm.pid!)).toBe(true);
    await daemon.start();
    expect(await daemon.untilProtected()).toMatchObject({ pid: vm.pid, generation: 0 });
    await expectMemory();
  }
});
