/** Strict mode with real guests: nothing leaves before it is committed, and nothing that left is ever taken back. */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { RedisConnection } from '../harness/redis.js';
import { canAskForWakeLatency, wakeLatencyInForceUs } from '../harness/wake-latency.js';
import { hostWakeLatencyUs } from '../src/host/awake-cpus.js';
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
    expect(await redis.send('GET', 'count')).toBe(`${account.acknowledged}`);
    expect(manager.events.list({ vm: 'a' }).at(-1)?.data).not.toMatchObject({ breaksStrict: true });
    expect(manager.port.showVm('a').generation).toBe(generation);
    redis.close();
  },
);

/** How long a PING takes, ms. */
async function pingMs(redis: RedisConnection): Promise<number> {
  const startMs = performance.now();
  expect(await redis.send('PING')).toBe('PONG');
  return performance.now() - startMs;
}

test('nothing leaves before its epoch is committed', async () => {
  await manager.shadowReady('a');
  const redis = await connect();
  await pingMs(redis);
  await manager.port.vmForTest('a').shadow?.hold(800);
  expect(await pingMs(redis)).toBeGreaterThan(700);
  redis.close();
});

test('whoever waits for an epoch that does not come gets an answer without it, and that is told', async () => {
  const redis = await connect();
  await pingMs(redis);
  const suspended = manager.nextEvent('a', 'strict.suspended');
  const active = manager.nextEvent('a', 'strict.active');
  await manager.port.vmForTest('a').shadow?.hold(3500);
  const waitedMs = await pingMs(redis);
  expect(waitedMs).toBeGreaterThan(1500);
  expect(waitedMs).toBeLessThan(3000);
  expect((await suspended).message).toMatch(/strict mode is suspended, .*no epoch was committed for 2\d{3} ms/);
  expect(strict()).toBe('suspended');
  expect(await pingMs(redis)).toBeLessThan(500);
  await active;
  expect(strict()).toBe('active');
  redis.close();
});

test('of a guest that nothing more is heard of, nothing leaves that is not committed: its shadow takes over', async () => {
  await manager.shadowReady('a');
  await manager.until('strict mode', () => strict() === 'active');
  const redis = await connect();
  expect(await redis.send('SET', 'heard', 'yes')).toBe('OK');
  const promoted = manager.nextPromotion('a');
  manager.processes('a').primary.agent.close();
  expect((await promoted).reason).toMatch(/^guest-hung/);
  expect(await redis.send('GET', 'heard')).toBe('yes');
  redis.close();
});

test('is changed while the guest runs, and a connection lives through it', async () => {
  const redis = await connect();
  expect(await manager.port.changeMode('a', 'async')).toMatchObject({ strict: null, spec: { mode: 'async' } });
  await manager.port.vmForTest('a').shadow?.hold(800);
  expect(await pingMs(redis)).toBeLessThan(500);
  const active = manager.nextEvent('a', 'strict.active');
  expect(await manager.port.changeMode('a', 'strict')).toMatchObject({ strict: 'suspended' });
  await active;
  expect(await pingMs(redis)).toBeLessThan(500);
  const suspended = manager.nextEvent('a', 'strict.suspended');
  await manager.port.removeShadow('a');
  expect((await suspended).message).toContain('its shadow was removed');
  expect(await pingMs(redis)).toBeLessThan(500);
  redis.close();
});

test('a planned switchover keeps the connection', async () => {
  const active = manager.nextEvent('a', 'strict.active');
  await manager.port.createShadow('a', () => {});
  await active;
  const redis = await connect();
  const account = new Account(redis);
  await sleep(300);
  await manager.port.promoteShadow('a', null);
  await sleep(500);
  await account.stop();
  expect(await redis.send('GET', 'count')).toBe(`${account.acknowledged}`);
  redis.close();
});

test('idle CPUs stay awake while its client waits for one epoch after the other, and not for longer', async () => {
  if (!canAskForWakeLatency) return;
  const asked = hostWakeLatencyUs();
  const before = wakeLatencyInForceUs();
  await manager.shadowReady('a');
  await manager.until('strict mode', () => strict() === 'active');
  const redis = await connect();
  const account = new Account(redis);
  await expect.poll(wakeLatencyInForceUs, { timeout: 5000 }).toBe(asked === null ? before : Math.min(asked, before));
  await account.stop();
  await expect.poll(wakeLatencyInForceUs, { timeout: 5000 }).toBe(before);
  redis.close();
});

test('an epoch whose output died with its QEMU is not the one that its shadow wakes up from', async () => {
  await manager.shadowReady('a');
  await manager.until('strict mode', () => strict() === 'active');
  const redis = await connect();
  expect(await redis.send('SET', 'key', 'before')).toBe('OK');
  const { agent, control, pid } = manager.processes('a').primary;
  // The release comes from the event loop, and QEMU dies when it is told of it.
  agent.nextSign = () => new Promise(() => {});
  const releaseHolds = control.releaseHolds.bind(control);
  const releaseAndDie = (holds: number) => {
    process.kill(pid, 'SIGSTOP');
    while (!/^State:\tT/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')));
    releaseHolds(holds);
    process.kill(pid, 'SIGKILL');
    return false;
  };
  Object.defineProperty(control, 'releaseHolds', { value: releaseAndDie });
  const rewound = manager.nextEvent('a', 'promotion.rewound');
  const promoted = manager.nextPromotion('a');
  const answer = redis.send('SET', 'key', 'after');
  expect(await rewound).toMatchObject({
    message: expect.stringContaining('died with its QEMU'),
    data: { breaksStrict: false },
  });
  const { epoch } = await promoted;
  expect((await rewound).data).toMatchObject({ from: epoch + 1, to: epoch });
  expect(await answer).toBe('OK'); // not the dead one's, which nobody has heard
  expect(await redis.send('GET', 'key')).toBe('after');
  redis.close();
});

test('a guest that dies of its own state goes back further than strict mode allows, and that is told', async () => {
  await manager.shadowReady('a');
  await sleep(1500); // for an epoch to go back to
  const first = manager.nextPromotion('a');
  await manager.port.injectFault('a', 'kill');
  await first;
  const rewound = manager.nextEvent('a', 'promotion.rewound');
  const second = manager.nextPromotion('a');
  await manager.shadowReady('a');
  await manager.port.injectFault('a', 'panic');
  expect(await rewound).toMatchObject({
    level: 'warn',
    message: expect.stringContaining('which strict mode had promised not to do'),
    data: { breaksStrict: true },
  });
  await second;
});
