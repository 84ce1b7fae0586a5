/** Strict mode with real guests: nothing leaves before it is committed, and nothing that left is ever taken back. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { RedisConnection } from '../harness/redis.js';
import { MIB } from '../src/vm/spec.js';

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: `svs${process.pid.toString(36)}`, subnet: '10.214.90.0/24' });
});
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

const strict = () => manager.port.showVm('a').strict;

async function connect(): Promise<RedisConnection> {
  for (const until = performance.now() + 10_000; ; await sleep(50)) {
    const redis = await RedisConnection.connect(manager.port.showVm('a').address as string, 6379, 3000).catch(
      () => null,
    );
    if (redis !== null || performance.now() > until) return redis as RedisConnection;
  }
}

test('is refused where QEMU itself speaks for the guest', async () => {
  for (const network of ['user', 'none'] as const)
    await expect(manager.runVm({ name: 'b', network, mode: 'strict' })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      attempted: 'protect the VM in strict mode',
    });
});

test('is suspended without a shadow, and active once an epoch is committed', async () => {
  await manager.runVm({ name: 'a', ramBytes: 192 * MIB, mode: 'strict' });
  expect(strict()).toBe('suspended');
  const redis = await connect();
  expect(await redis.send('PING')).toBe('PONG');
  const active = manager.nextEvent('a', 'strict.active');
  await manager.port.createShadow('a', () => {});
  await active;
  expect(strict()).toBe('active');
  expect(await redis.send('SET', 'key', 'value')).toBe('OK');
  redis.close();
});

/** One client that keeps one connection: what it was told, and how long it was told nothing. */
class Account {
  acknowledged = 0;
  silenceMs = 0;
  private stopping = false;
  private readonly done: Promise<void>;

  constructor(private readonly redis: RedisConnection) {
    this.done = this.run();
  }

  private async run(): Promise<void> {
    for (let number = this.acknowledged + 1, lastMs = performance.now(); !this.stopping; number++) {
      expect(await this.redis.send('SET', 'count', `${number}`)).toBe('OK');
      this.acknowledged = number;
      this.silenceMs = Math.max(this.silenceMs, performance.now() - lastMs);
      lastMs = performance.now();
    }
  }

  async stop(): Promise<void> {
    this.stopping = true;
    await this.done;
  }
}

test.each(['panic', 'kill', 'hang', 'kill', 'kill'] as const)(
  'a %s costs no acknowledged write and no connection',
  async (fault) => {
    await manager.shadowReady('a');
    await manager.until('strict mode', () => strict() === 'active');
    const redis = await connect();
    const account = new Account(redis);
    await sleep(500);
    account.silenceMs = 0;
    const promoted = manager.nextPromotion('a');
    await manager.port.injectFault('a', fault);
    const { generation } = await promoted;
    expect(strict()).toBe('active');
    await sleep(1000);
    await account.stop();
    console.log(fault, account.silenceMs);
  expect(await redis.send('GET', 'count')).toBe(`${account.acknowledged}`);
    expect(manager.events.list({ vm: 'a' }).at(-1)?.data).not.toMatchObject({ breaksStrict: true });
    expect(manager.port.showVm('a').generation).toBe(generation);
    redis.close();
  },
);
