/** Guests in strict mode that send as much as they can, of any length and with any content: limits hold, the host stays well. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { RedisConnection } from '../harness/redis.js';
import { privateBytes } from '../src/host/process-stat.js';
import { nativeNetwork } from '../src/network/native.js';
import type { OutputHold } from '../src/protect/output-hold.js';
import { MIB } from '../src/vm/spec.js';

const NAME = 'flood';
/** A hold takes 10,000 packets, and one more hold is filled while the last one is being committed. */
const HELD_MIB_MAX = 200;

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: `svf${process.pid.toString(36)}`, subnet: '10.214.91.0/24' });
  await manager.runVm({ name: NAME, ramBytes: 256 * MIB, mode: 'strict', shadow: { kind: 'always' } });
});
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

async function protectedClient(): Promise<RedisConnection> {
  await manager.shadowReady(NAME);
  await manager.until('strict mode', () => manager.port.showVm(NAME).strict === 'active');
  return RedisConnection.connect(manager.port.showVm(NAME).address as string, 6379, 5000);
}

const flood = (how: string, seconds: number) =>
  manager.port.guestExec(NAME, `shadowvm-guest netload eth0 ${how} ${seconds} &`);
const sentByGuest = () => Number(/sent=(\d+)/.exec(manager.processes(NAME).primary.agent.last?.app ?? '')?.[1] ?? 0);
const suspensions = () => manager.events.list({ vm: NAME }).filter(({ type }) => type === 'strict.suspended');

/** Looks at the guest and its QEMU for a while. */
async function watch(forMs: number, redis: RedisConnection): Promise<{ pingMsMax: number; heldMiBMax: number }> {
  const { pid } = manager.processes(NAME).primary;
  const usual = privateBytes(pid) as number;
  let [pingMsMax, heldMiBMax] = [0, 0];
  for (const untilMs = performance.now() + forMs; performance.now() < untilMs; await sleep(20)) {
    const startMs = performance.now();
    expect(await redis.send('PING')).toBe('PONG');
    pingMsMax = Math.max(pingMsMax, performance.now() - startMs);
    heldMiBMax = Math.max(heldMiBMax, ((privateBytes(pid) ?? 0) - usual) / MIB);
  }
  return { pingMsMax, heldMiBMax };
}

test.each(['small', 'garbage', 'large'])(
  'of %s frames is served on, uses no memory without limit, and loses nothing when it dies',
  async (how) => {
    const redis = await protectedClient();
    const before = suspensions().length;
    const { tap } = manager.port.showVm(NAME);
    const { rxPackets } = nativeNetwork().counters(tap as string);
    await flood(how, 6);
    await manager.until('frames', () => sentByGuest() > 0);
    const { pingMsMax, heldMiBMax } = await watch(2500, redis);
    expect(heldMiBMax).toBeLessThan(HELD_MIB_MAX);
    expect(pingMsMax).toBeLessThan(2000);
    expect(sentByGuest()).toBeGreaterThan(300);
    // They do leave, epoch by epoch, and none before its own.
    expect(nativeNetwork().counters(tap as string).rxPackets - rxPackets).toBeGreaterThan(200);
    expect(suspensions().slice(before)).toEqual([]);
    await redis.send('SET', 'how', how);
    const promoted = manager.nextPromotion(NAME);
    await manager.port.injectFault(NAME, 'kill');
    await promoted;
    expect(await redis.send('GET', 'how')).toBe(how);
    redis.close();
    await manager.port.guestExec(NAME, "pkill -f 'netloa[d]'; ip link set eth0 mtu 1500");
  },
);

test('that has sent too much when no epoch is committed is not held any longer, and that is told', async () => {
  const redis = await protectedClient();
  const vm = manager.port.vmForTest(NAME);
  const hold = vm.outputHold as OutputHold;
  hold.heldBytesMax = 24 * MIB;
  const suspended = manager.nextEvent(NAME, 'strict.suspended');
  const active = manager.nextEvent(NAME, 'strict.active');
  await flood('large', 4);
  await manager.until('frames', () => sentByGuest() > 0);
  await vm.shadow?.hold(1900);
  const [{ heldMiBMax }, { message }] = await Promise.all([watch(1900, redis), suspended, active]);
  expect(message).toMatch(/strict mode is suspended, .*its guest has sent \d{2,3} MiB in one epoch/);
  expect(heldMiBMax).toBeLessThan(HELD_MIB_MAX);
  redis.close();
});
