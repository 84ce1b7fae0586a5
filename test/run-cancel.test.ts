/** Taking a VM back while it starts or boots: whoever waits is told, and nothing of it is left. On the real QEMU. */
import { existsSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { openCgroups } from '../src/allocate/cgroup.js';
import { stateTag } from '../src/network/address.js';
import type { Progress } from '../src/vm/view.js';

const STARTING = 'starting QEMU (tcg)';
const BOOTING = 'the guest boots';
const WAKING = 'the guest wakes up';

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: 'svcancel0', subnet: '10.219.7.0/24' });
});
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

/** Runs a VM and acts when it has come to this step. */
async function runUntil(
  start: 'boot' | 'golden',
  step: string,
  act: () => unknown,
  signal?: AbortSignal,
): Promise<unknown> {
  const acts: unknown[] = [];
  const onProgress = ({ message }: Progress) => {
    if (message === step) acts.push(act());
  };
  const error = await manager.port
    .runVm({ name: 'web', accelerator: 'tcg', start }, onProgress, signal)
    .then(() => null)
    .catch((error: unknown) => error);
  expect(acts).toHaveLength(1);
  await Promise.all(acts);
  return error;
}

async function expectNothingLeft(): Promise<void> {
  const { root, vmsDir } = manager.stateDir;
  expect(manager.port.listVms()).toEqual([]);
  expect(existsSync(`${vmsDir}/web`)).toBe(false);
  // The bridge, the tables of rules and the manager's own cgroup live as long as the manager.
  const shared = /svcancel0|^table |^\/sys\/fs\/cgroup/;
  expect(leftovers(root).filter((what) => !shared.test(what))).toEqual([]);
  const { driver } = openCgroups(`shadowvm-${stateTag(root)}`);
  if (driver !== null) expect((await driver.sweep('')).removed).toEqual([]);
}

describe.each([
  ['while QEMU starts', 'boot', STARTING],
  ['while the guest boots', 'boot', BOOTING],
  ['while the guest wakes up', 'golden', WAKING],
] as const)('%s', (_, start, step) => {
  test('a caller that hangs up takes the VM back at once', async () => {
    const hangUp = new AbortController();
    let hungUpMs = 0;
    const error = await runUntil(
      start,
      step,
      () => {
        hungUpMs = performance.now();
        hangUp.abort();
      },
      hangUp.signal,
    );
    expect(error).toMatchObject({ code: 'CANCELLED', subject: 'web', reason: expect.stringContaining('did not wait') });
    expect(performance.now() - hungUpMs).toBeLessThan(1000);
    await expectNothingLeft();
  });

  test('so does a kill', async () => {
    const error = await runUntil(start, step, async () => {
      expect((await manager.port.killVm('web')).state).toBe('stopped');
    });
    expect(error).toMatchObject({ code: 'CANCELLED', reason: expect.stringContaining('killed') });
    await expectNothingLeft();
    const last = manager.events.list({ vm: 'web', limit: 1 })[0]!;
    expect(last).toMatchObject({ type: 'vm.stopped', message: expect.stringMatching(/taken back while .*killed/) });
  });

  test('so does a removal by force, and its name is free again', async () => {
    const error = await runUntil(start, step, () => manager.port.removeVm('web', { force: true }));
    expect(error).toMatchObject({ code: 'CANCELLED' });
    await expectNothingLeft();
    await expect(runUntil(start, step, () => manager.port.killVm('web'))).resolves.toMatchObject({ code: 'CANCELLED' });
  });

  test('without force it is refused and the VM comes up', async () => {
    let refusal: unknown;
    const error = await runUntil(start, step, () =>
      manager.port.removeVm('web', { force: false }).catch((thrown: unknown) => {
        refusal = thrown;
      }),
    );
    expect(error).toBeNull();
    expect(refusal).toMatchObject({ code: 'VM_BUSY' });
    expect(manager.port.showVm('web').state).toBe('running');
    await manager.port.removeVm('web', { force: true });
    await expectNothingLeft();
  });
});

test('a caller that hung up before it asked gets nothing', async () => {
  await expect(
    manager.port.runVm({ name: 'web', accelerator: 'tcg' }, () => {}, AbortSignal.abort()),
  ).rejects.toMatchObject({ code: 'CANCELLED' });
  await expectNothingLeft();
});

test('a manager that closes takes back what still boots', async () => {
  const closing = await InProcessManager.open({ bridge: 'svcancel1', subnet: '10.219.8.0/24' });
  const { root } = closing.stateDir;
  let refused: Promise<void> = Promise.resolve();
  await new Promise<void>((resolve) => {
    const running = closing.port.runVm({ name: 'web', accelerator: 'tcg', start: 'boot' }, ({ message }) => {
      if (message === BOOTING) resolve();
    });
    refused = expect(running).rejects.toMatchObject({
      code: 'CANCELLED',
      reason: expect.stringContaining('shutting down'),
    });
  });
  await closing.close();
  await refused;
  expect(leftovers(root)).toEqual([]);
});

test('a manager that closes refuses what has only just been asked for', async () => {
  const closing = await InProcessManager.open({ bridge: 'svcancel1', subnet: '10.219.8.0/24' });
  const { root } = closing.stateDir;
  // The image is being looked for: the manager knows of no VM yet.
  const running = closing.port.runVm({ name: 'web', accelerator: 'tcg' }, () => {});
  const refused = expect(running).rejects.toMatchObject({ code: 'DAEMON_STOPPING' });
  await closing.close();
  await refused;
  expect(leftovers(root)).toEqual([]);
});
