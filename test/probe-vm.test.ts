/** Liveness probes of a real guest: one that does not do what it is for is replaced, and nobody else. Needs root. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB } from '../src/vm/spec.js';

const PROBE = { periodMs: 200, timeoutMs: 300, failures: 3 };
const REDIS = { check: { kind: 'redis' as const, port: 6379 }, ...PROBE };

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: `svp${process.pid.toString(36)}`, subnet: '10.214.86.0/24' });
});
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

const health = (vm: string) => manager.port.showVm(vm).probes.map((probe) => probe.health);
const typesSince = (seq: number, vm: string) => manager.events.list({ since: seq, vm }).map(({ type }) => type);
const lastSeq = () => manager.events.list({ limit: 1 })[0]?.seq ?? 0;

test('a service that hangs in a guest that beats: the shadow takes over, once', async () => {
  const probes = [REDIS, { check: { kind: 'exec' as const, command: 'test -e /dev/null' }, ...PROBE, timeoutMs: 1000 }];
  await manager.runVm({ name: 'a', ramBytes: 192 * MIB, shadow: { kind: 'always' }, probes });
  await manager.until('a guest that is well', () => health('a').every((each) => each === 'well'));
  await manager.shadowReady('a');
  const seq = lastSeq();
  const promoted = manager.nextPromotion('a');
  const detected = manager.nextEvent('a', 'failure.detected');
  // Else an epoch may be cut while the command is under way, and the probe be answered after it: it would stop the service
  // again in the guest that wakes up from it.
  await manager.port.vmForTest('a').shadow?.hold(400);
  await manager.port.guestExec('a', 'kill -STOP $(pidof redis-server)');
  expect(await detected).toMatchObject({
    data: { cause: 'probe-failed', wellAtMs: expect.any(Number) },
    message: expect.stringMatching(
      /the guest is not well .*redis:6379 failed 3 times in a row: no answer within 300 ms/,
    ),
  });
  expect((await promoted).generation).toBe(1);
  // The newest epochs hold the service as it was, stopped: it wakes up from one of before.
  await manager.until('a guest that is well again', () => health('a').every((each) => each === 'well'));
  expect(manager.events.list({ since: seq, vm: 'a' })).toContainEqual(
    expect.objectContaining({
      type: 'promotion.rewound',
      message: expect.stringContaining('its probes last found it'),
    }),
  );
  await manager.shadowReady('a');
  await new Promise((resolve) => setTimeout(resolve, 1500));
  expect(manager.port.showVm('a')).toMatchObject({ generation: 1, state: 'running' });
  expect(typesSince(seq, 'a').filter((type) => type === 'failure.detected')).toHaveLength(1);
  await manager.port.removeVm('a', { force: true });
});

test('without a shadow it is told, once, and the guest is left alone', async () => {
  await manager.runVm({ name: 'b', ramBytes: 192 * MIB, probes: [REDIS] });
  await manager.until('a guest that is well', () => health('b')[0] === 'well');
  const seq = lastSeq();
  const told = manager.nextEvent('b', 'failure.no-shadow');
  await manager.port.guestExec('b', 'kill -STOP $(pidof redis-server)');
  await told;
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(manager.port.showVm('b')).toMatchObject({ state: 'running', probes: [{ health: 'failed' }] });
  // The next probe can be answered before the agent has told how the command ended.
  const well = manager.nextEvent('b', 'probe.well');
  await manager.port.guestExec('b', 'kill -CONT $(pidof redis-server)');
  await well;
  expect(typesSince(seq, 'b')).toEqual(['probe.failing', 'probe.failed', 'failure.no-shadow', 'probe.well']);
  await manager.port.removeVm('b', { force: true });
});

test('a guest that is busy to the full and protected all the while is not taken for a failed one', async () => {
  await manager.runVm({ name: 'c', ramBytes: 192 * MIB, shadow: { kind: 'always' }, probes: [REDIS] });
  await manager.until('a guest that is well', () => health('c')[0] === 'well');
  await manager.shadowReady('c');
  const seq = lastSeq();
  await manager.port.guestExec('c', 'shadowvm-guest memcheck 8 8000 &');
  await new Promise((resolve) => setTimeout(resolve, 4000));
  expect(typesSince(seq, 'c').filter((type) => type.startsWith('failure.d'))).toEqual([]);
  expect(manager.port.showVm('c')).toMatchObject({ generation: 0, state: 'running' });
  await manager.port.removeVm('c', { force: true });
});

test('a probe that could say nothing is refused before anything is made', async () => {
  const spec = { name: 'd', network: 'user' as const, probes: [REDIS] };
  await expect(manager.runVm(spec)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', subject: 'd, redis:6379' });
  expect(manager.port.listVms()).toEqual([]);
});
