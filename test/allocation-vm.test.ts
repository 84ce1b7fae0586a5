/** What real VMs are given by a real manager, as their cgroups and balloons have it. */
import { readFileSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { Daemon, sleep } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import type { AllocationView } from '../src/vm/usage-view.js';
import type { Event } from '../src/vm/view.js';

const network = { bridge: 'svallo', subnet: '10.246.0.0/24' };
/** Seconds instead of minutes, so that a test has seasons. */
const quick = ['--forecast-interval', '1s', '--season', '8s', '--cool-down', '2s'];
/** Whether the program lives; the shell that asks has its words too, but does not begin with them. */
const WRITES = `for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | grep -q '^shadowvm-guest memwriter' && exit 0; done; exit 1`;
let daemon: Daemon;
afterEach(async () => {
  await daemon.stop();
  expect(leftovers(daemon.stateDir)).toEqual([]);
});

async function start(argv: string[], ...specs: VmSpecInput[]): Promise<void> {
  daemon = await Daemon.start({ ...network, argv });
  for (const spec of specs) await daemon.client.runVm(spec);
}

/** Percent of one CPU that the kernel lets the VM's QEMU use; null: no quota. */
async function quotaOf(vm: string): Promise<number | null> {
  const { pid } = await daemon.client.showVm(vm);
  const lines = readFileSync(`/proc/${pid}/cgroup`, 'utf8').trim().split('\n');
  const v1 = lines.find((line) => line.split(':')[1]!.split(',').includes('cpu'));
  if (v1 !== undefined) {
    const folder = `/sys/fs/cgroup/cpu${v1.split(':')[2]}`;
    const quotaUs = Number(readFileSync(`${folder}/cpu.cfs_quota_us`, 'utf8'));
    return quotaUs < 0 ? null : quotaUs / 1000;
  }
  const [quotaUs] = readFileSync(`/sys/fs/cgroup${lines[0]!.split(':')[2]}/cpu.max`, 'utf8').split(' ');
  return quotaUs === 'max' ? null : Number(quotaUs) / 1000;
}

async function allocationOf(vm: string): Promise<AllocationView> {
  return (await daemon.client.allocations()).find((each) => each.vm === vm)!;
}

const changed = (what: string, resource: string, matches: (data: Event['data']) => boolean, since = 0) =>
  daemon.waitEvent(
    what,
    ({ type, data }) => type === 'allocation.changed' && data.resource === resource && matches(data),
    { since },
  );

test('auto: the quota follows the forecast, pressure goes before it, and a promoted shadow has the same', async () => {
  await start(quick, { name: 'web', shadow: { kind: 'always' }, allocation: { mode: 'auto', cpuMinPercent: 20 } });
  expect(await quotaOf('web')).toBe(400);
  const lowered = await changed('a lower quota', 'cpu', ({ cause, to }) => cause === 'forecast' && Number(to) < 90);
  expect(lowered.message).toMatch(/^cpu from .* to .* \(forecast\): .* is expected and at most/);
  expect(lowered.data.forecast).toMatchObject({ bound: expect.any(Number) });
  expect(await quotaOf('web')).toBeLessThan(90);
  expect((await allocationOf('web')).cpu.weight).toBeLessThan(90);

  await daemon.client.guestExec('web', 'shadowvm-guest cpuloop 4 &');
  const raised = await changed('pressure', 'cpu', ({ cause }) => cause === 'pressure', lowered.seq);
  expect(Number(raised.data.to)).toBeGreaterThan(Number(lowered.data.to));
  await changed('calm', 'cpu', ({ to }) => Number(to) < 90, raised.seq + 1);

  // The next manager knows nothing yet, and takes nothing back: what is in force stays, and goes on to the shadow.
  const inForce = await quotaOf('web');
  await daemon.kill();
  daemon = await Daemon.start({ ...network, stateDir: daemon.stateDir, argv: ['--cool-down', '2s'] });
  await daemon.waitEvent('a shadow', ({ type }) => type === 'shadow.ready', { since: raised.seq });
  expect(await quotaOf('web')).toBe(inForce);
  expect((await allocationOf('web')).cpu.quotaPercent).toBe(inForce);

  const { seq } = (await daemon.client.listEvents({ limit: 1 }))[0]!;
  await daemon.client.injectFault('web', 'kill');
  await daemon.waitEvent('a promotion', ({ type }) => type === 'promotion.done', { since: seq });
  await sleep(700); // until it beats it has a whole CPU
  const now = (await allocationOf('web')).cpu.quotaPercent;
  expect(now).toBeLessThan(100);
  expect(await quotaOf('web')).toBe(now);
});

test('auto: the balloon leaves what is needed, and gives back at once to a guest in need', async () => {
  await start(quick, { name: 'web', allocation: { mode: 'auto' }, shadow: { kind: 'always' } });
  const taken = await changed('a smaller balloon', 'memory', ({ from, to }) => Number(to) < Number(from));
  const left = Number(taken.data.to);
  expect(left).toBeGreaterThanOrEqual(64 * MIB);
  expect(left).toBeLessThan(200 * MIB);
  const balloon = async () => (await daemon.client.history('web', { metric: 'balloon' })).points.at(-1)!.mean;
  await expect.poll(balloon, { timeout: 15_000 }).toBeLessThanOrEqual(left + 8 * MIB);
  // Not known while the balloon moves.
  const workingSet = async () => (await allocationOf('web')).memory.workingSetBytes;
  await expect.poll(workingSet, { timeout: 5000 }).not.toBeNull();
  expect(await workingSet()).toBeLessThan(left);

  // More than the balloon leaves: without what it gives back, the kernel would end the program.
  await daemon.client.guestExec(
    'web',
    `(shadowvm-guest memwriter ${Math.round(left / MIB)} 200; dmesg >/dev/console) &`,
  );
  await changed('memory given back', 'memory', ({ cause }) => cause === 'pressure', taken.seq);
  await sleep(4000);
  expect(await daemon.client.guestExec('web', WRITES)).toEqual({ exitCode: 0 });
  expect(await daemon.client.readLog('web')).toMatchObject({
    text: expect.not.stringContaining('Out of memory: Killed'),
  });

  const { seq } = (await daemon.client.listEvents({ limit: 1 }))[0]!;
  await daemon.client.injectFault('web', 'kill');
  await daemon.waitEvent('a promotion', ({ type }) => type === 'promotion.done', { since: seq });
  await sleep(1500);
  expect(await daemon.client.guestExec('web', WRITES)).toEqual({ exitCode: 0 });
});

test('recommend: it is told and nothing is changed; off and a maximum hold from the start', async () => {
  await start(
    quick,
    { name: 'told', allocation: { mode: 'recommend' } },
    { name: 'fixed', allocation: { mode: 'off', cpuMaxPercent: 40, priority: 10 } },
  );
  expect(await quotaOf('fixed')).toBe(40);
  const told = await daemon.waitEvent('a recommendation', ({ type }) => type === 'allocation.recommended');
  expect(told).toMatchObject({ vm: 'told', message: expect.stringMatching(/^cpu should go from 100.0% to/) });
  expect(await quotaOf('told')).toBe(400);
  const { decisions } = await allocationOf('told');
  expect(decisions[0]).toMatchObject({ resource: 'cpu', applied: false });

  await daemon.client.allocate('told', { mode: 'off', cpuMaxPercent: 50 });
  expect(await quotaOf('told')).toBe(50);
  expect((await daemon.client.showVm('told')).spec.allocation).toMatchObject({ mode: 'off', cpuMaxPercent: 50 });
  await expect(daemon.client.allocate('told', { cpuMinPercent: 60 })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  });
});

test('a shadow is made readier when its VM has failed, and a host that is short admits no more VMs', async () => {
  await start([...quick, '--memory-capacity', '800M'], {
    ...{ name: 'web', shadow: { kind: 'always' } },
    allocation: { mode: 'auto', cpuMinPercent: 20 },
  });
  await daemon.waitEvent('a shadow', ({ type }) => type === 'shadow.ready');
  await daemon.client.injectFault('web', 'kill');
  const raised = await changed('a readier standby', 'standby', () => true);
  expect(raised.message).toMatch(/^standby from process with .* to resident=25 .*it failed, or seemed to/);
  expect((await daemon.client.showVm('web')).shadow?.standby).toBe('resident=25');

  const { cpu, memory, vms } = await daemon.client.capacity();
  expect({ vms, memory: memory.capacity }).toEqual({ vms: 1, memory: 800 * MIB });
  expect(cpu.limits).toBeLessThanOrEqual(100);
  expect(memory.used).toBeGreaterThan(50 * MIB);
  await expect(daemon.client.runVm({ name: 'big', ramBytes: 768 * MIB })).rejects.toMatchObject({
    code: 'NO_SPACE',
    reason: expect.stringMatching(/short of memory in the next hour with a chance of/),
  });
  await expect(daemon.client.runVm({ name: 'greedy', allocation: { cpuMinPercent: 800 } })).rejects.toMatchObject({
    code: 'NO_SPACE',
    reason: expect.stringMatching(/minimums of all VMs are 820\.0% of a CPU/),
  });
  expect((await daemon.client.listVms()).map(({ name }) => name)).toEqual(['web']);
});
