/** What a VM has of the network outlives its manager, without a gap, and its promotions after that. Needs root. */
import { execFileSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { Daemon } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import { RedisConnection } from '../harness/redis.js';
import { nftSupport } from '../src/network/nft.js';
import { MIB } from '../src/vm/spec.js';
import { freePort, pingRedis } from './redis-port.js';

let daemon: Daemon | undefined;
afterEach(async () => {
  const { stateDir } = daemon as Daemon;
  await daemon?.stop();
  expect(leftovers(stateDir)).toEqual([]);
});

const ID = process.pid.toString(36);
const start = async (stateDir?: string): Promise<Daemon> => {
  const options = { bridge: `sva${ID}`, subnet: '10.214.87.0/24', ...(stateDir === undefined ? {} : { stateDir }) };
  daemon = await Daemon.start(options);
  return daemon;
};
/** Without the numbers that the kernel counts. */
const rules = (): string =>
  execFileSync('nft', ['list', 'ruleset'], { encoding: 'utf8' }).replace(/counter packets .*/g, '');
const rulesOf = (address: string): string[] =>
  rules().match(new RegExp(`.*${address.replaceAll('.', '\\.')}\\b.*`, 'g')) ?? [];
const shaped = (tap: string): boolean =>
  execFileSync('tc', ['qdisc', 'show', 'dev', tap], { encoding: 'utf8' }).includes('tbf');

test('in strict mode the guest is reached without a manager, and the next one holds its packets again', {
  timeout: 90_000,
}, async () => {
  const { client, stateDir } = await start();
  const { address } = await client.runVm({
    ...{ name: 'web', ramBytes: 192 * MIB, mode: 'strict', shadow: { kind: 'always' } },
  });
  const isStrict = (by: Daemon) =>
    vi.waitFor(async () => expect((await by.client.showVm('web')).strict).toBe('active'), { timeout: 20_000 });
  await isStrict(daemon as Daemon);
  const redis = await vi.waitFor(() => RedisConnection.connect(address as string, 6379, 3000), { timeout: 10_000 });
  await sleep(1500); // it is filled
  expect(await redis.send('PING')).toBe('PONG');
  await (daemon as Daemon).kill();
  const goneMs = performance.now();
  expect(await redis.send('PING')).toBe('PONG');
  expect(performance.now() - goneMs).toBeGreaterThan(1000);
  const [againMs] = [performance.now(), await redis.send('PING')];
  expect(performance.now() - againMs).toBeLessThan(500);
  const next = await start(stateDir);
  await isStrict(next);
  const types = (await next.client.listEvents({ vm: 'web' })).map(({ type }) => type);
  expect(types.slice(types.indexOf('vm.adopted'))).toEqual(
    expect.arrayContaining(['strict.suspended', 'strict.active']),
  );
  await next.client.injectFault('web', 'kill');
  await vi.waitFor(async () => expect((await next.client.showVm('web')).generation).toBe(1), { timeout: 20_000 });
  expect(await redis.send('PING')).toBe('PONG');
  redis.close();
});

describe.skipIf((await nftSupport()).translate !== null)('a VM on a declared network', () => {
  test('keeps guards, published ports, bandwidth and probes when its manager is killed', {
    timeout: 90_000,
  }, async () => {
    const { client, stateDir } = await start();
    await client.createNetwork({ name: 'one', subnet: '10.214.88.0/24', nat: true });
    const hostPort = await freePort();
    await client.runVm({
      ...{ name: 'web', net: 'one', ramBytes: 192 * MIB, bandwidthBitsPerSecond: 200_000_000 },
      publish: [{ hostPort, guestPort: 6379 }],
      probes: [{ check: { kind: 'redis', port: 6379 }, periodMs: 200, timeoutMs: 1000, failures: 3 }],
      shadow: { kind: 'always' },
    });
    const ready = { timeout: 20_000, interval: 50 };
    const protectedNow = async (by: Daemon, generation: number) =>
      vi.waitFor(async () => {
        const vm = await by.client.showVm('web');
        expect(vm).toMatchObject({
          state: 'running',
          generation,
          // With its QEMU, whose tap has a guard of its own.
          shadow: { state: 'ready', pid: expect.any(Number) },
          probes: [{ health: 'well' }],
        });
        return vm;
      }, ready);
    const before = await protectedNow(daemon as Daemon, 0);
    const open = await RedisConnection.connect('127.0.0.1', hostPort, 5000);
    expect(await open.send('PING')).toBe('PONG');
    const [address, tap] = [before.address as string, before.tap as string];
    const own = rulesOf(address);
    expect(own.length).toBeGreaterThan(2);

    // Until it is filled, a guest that woke up waits for pages that only a manager can give it.
    await sleep(1500);
    await (daemon as Daemon).kill();
    await sleep(300);
    expect(await open.send('PING')).toBe('PONG');
    const next = await start(stateDir);
    const adopted = await protectedNow(next, 0);
    expect(adopted).toMatchObject({ pid: before.pid, address, tap });
    expect(await open.send('PING')).toBe('PONG');
    open.close();
    // The shadow's tap has its guard again as well, so the rules are as many as before.
    await vi.waitFor(() => expect(rulesOf(address).sort()).toEqual(own.sort()), ready);
    expect(shaped(tap)).toBe(true);
    expect(await pingRedis('127.0.0.1', hostPort)).toBe('PONG');

    await next.client.injectFault('web', 'kill');
    const promoted = await protectedNow(next, 1);
    expect(promoted.tap).not.toBe(tap);
    expect(shaped(promoted.tap as string)).toBe(true);
    expect(await pingRedis('127.0.0.1', hostPort)).toBe('PONG');
    await vi.waitFor(() => expect(rulesOf(address).sort()).toEqual(own.sort()), ready);
  });
});
