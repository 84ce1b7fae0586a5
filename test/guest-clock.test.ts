/** A guest's wall clock is right again after everything that made time stand still for it, or that took it back. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { RedisConnection } from '../harness/redis.js';
import { MIB } from '../src/vm/spec.js';

const NAME = 'clock';
/** How far back each of these takes the guest at least: far more than its clock may be wrong by. */
const BACK_MS = 1500;
const WRONG_MS_MAX = 300;

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: `svk${process.pid.toString(36)}`, subnet: '10.214.92.0/24' });
  await manager.runVm({ name: NAME, ramBytes: 192 * MIB, shadow: { kind: 'always' } });
});
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

/** By how much the guest's clock is before (-) or behind (+) the host's, ms: of the quickest of some answers. */
async function clockErrorMs(): Promise<number> {
  const redis = await RedisConnection.connect(manager.port.showVm(NAME).address as string, 6379, 5000);
  const answers: { tookMs: number; errorMs: number }[] = [];
  for (let i = 0; i < 5; i++) {
    const startMs = Date.now();
    const [seconds, microseconds] = ((await redis.send('TIME')) as unknown as string[]).map(Number);
    const endMs = Date.now();
    const guestMs = (seconds as number) * 1000 + (microseconds as number) / 1000;
    answers.push({ tookMs: endMs - startMs, errorMs: (startMs + endMs) / 2 - guestMs });
  }
  redis.close();
  return answers.sort((a, b) => a.tookMs - b.tookMs)[0]?.errorMs as number;
}

async function isRight(): Promise<void> {
  expect(Math.abs(await clockErrorMs())).toBeLessThan(WRONG_MS_MAX);
}

test('when it has started from a snapshot of a guest that was booted long ago', isRight);

test('after a promotion', async () => {
  await manager.shadowReady(NAME);
  await manager.port.vmForTest(NAME).shadow?.hold(60_000);
  await sleep(BACK_MS);
  const promoted = manager.nextPromotion(NAME);
  await manager.port.injectFault(NAME, 'kill');
  expect((await promoted).lagMs).toBeGreaterThan(BACK_MS);
  await isRight();
});

test('after a rewind', async () => {
  await manager.shadowReady(NAME);
  await sleep(BACK_MS + 500);
  await manager.port.promoteShadow(NAME, { beforeMs: Date.now() - BACK_MS });
  await isRight();
});

test('after a time as a snapshot', async () => {
  await manager.shadowReady(NAME);
  await manager.port.stopVm(NAME, { how: 'suspend', snapshot: true, timeoutMs: 10_000 }, () => {});
  await sleep(BACK_MS);
  await manager.port.startVm(NAME, { boot: false }, () => {});
  await isRight();
});
