/** What protection costs the guest: Redis requests/s and a CPU-bound loop, protected and not, in turn. */
import { Daemon, sleep } from '../harness/daemon.js';
import { RedisConnection } from '../harness/redis.js';
import { MIB } from '../src/vm/spec.js';
import { p50, round } from './statistics.js';

export interface OverheadResult {
  redisProtectedPerS: number;
  redisUnprotectedPerS: number;
  /** protected ÷ unprotected of neighbouring windows, median. */
  redisRatio: number;
  cpuProtectedPerS: number;
  cpuUnprotectedPerS: number;
  cpuRatio: number;
}

const VM = 'overhead';
const WINDOW_MS = 3000;
const SETTLE_MS = 500;
export const REDIS_PORT = 6379;
const REDIS_CLIENTS = 50;
const REDIS_KEYS = 20_000;

export async function benchOverhead(rounds: number): Promise<OverheadResult> {
  const daemon = await Daemon.start();
  try {
    const vm = await daemon.client.runVm({ name: VM, ramBytes: 256 * MIB });
    const redis = await alternate(daemon, VM, rounds, () => countRedis(vm.address as string));
    await daemon.client.guestExec(VM, 'shadowvm-guest cpuloop 0 &');
    await sleep(2000);
    const cpu = await alternate(daemon, VM, rounds, () => countPerS(daemon, VM, /cpuloop n=(\d+)/));
    return {
      redisProtectedPerS: p50(redis.protectedPerS),
      redisUnprotectedPerS: p50(redis.unprotectedPerS),
      redisRatio: ratio(redis),
      cpuProtectedPerS: p50(cpu.protectedPerS),
      cpuUnprotectedPerS: p50(cpu.unprotectedPerS),
      cpuRatio: ratio(cpu),
    };
  } finally {
    await daemon.stop();
  }
}

export interface Windows {
  protectedPerS: number[];
  unprotectedPerS: number[];
}

/** One window with a shadow, one without, and so on: a drift of the machine's speed hits both alike. */
export async function alternate(
  daemon: Daemon,
  vm: string,
  rounds: number,
  measure: () => Promise<number>,
): Promise<Windows> {
  const windows: Windows = { protectedPerS: [], unprotectedPerS: [] };
  await measure(); // warms caches and translated code up
  for (let i = 0; i < rounds; i++) {
    await sleep(SETTLE_MS);
    windows.unprotectedPerS.push(await measure());
    await daemon.client.createShadow(vm);
    await sleep(SETTLE_MS);
    windows.protectedPerS.push(await measure());
    await daemon.client.removeShadow(vm);
  }
  return windows;
}

export function ratio({ protectedPerS, unprotectedPerS }: Windows): number {
  return round(p50(protectedPerS.map((p, i) => p / (unprotectedPerS[i] as number))));
}

/** SETs per second of closed-loop clients over one connection each. */
export async function countRedis(host: string, windowMs = WINDOW_MS): Promise<number> {
  const connections = await Promise.all(
    Array.from({ length: REDIS_CLIENTS }, () => RedisConnection.connect(host, REDIS_PORT, 10_000)),
  );
  let count = 0;
  const startMs = performance.now();
  const untilMs = startMs + windowMs;
  await Promise.all(
    connections.map(async (connection, client) => {
      for (let i = client; performance.now() < untilMs; i += REDIS_CLIENTS) {
        await connection.send('SET', `key:${i % REDIS_KEYS}`, `value-${i}`);
        count++;
      }
    }),
  );
  for (const connection of connections) connection.close();
  return round(count / ((performance.now() - startMs) / 1000));
}

/** How fast a number rises that a program in the guest reports, per second. */
export async function countPerS(daemon: Daemon, vm: string, reported: RegExp): Promise<number> {
  const count = async () => {
    const { guest } = await daemon.client.showVm(vm);
    const match = reported.exec(guest?.app ?? '');
    if (match === null) throw new Error(`the load in the guest reports nothing: ${guest?.app}`);
    return Number(match[1]);
  };
  const [from, startMs] = [await count(), performance.now()];
  await sleep(WINDOW_MS);
  return round(((await count()) - from) / ((performance.now() - startMs) / 1000));
}
