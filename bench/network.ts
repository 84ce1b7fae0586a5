/**
 * What strict mode costs a client of Redis, against async mode and no protection in the same run; and how long a client
 * with one connection hears nothing when its server's VM is killed.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Daemon } from '../harness/daemon.js';
import { RedisConnection } from '../harness/redis.js';
import { MIB, type Mode } from '../src/vm/spec.js';
import type { VmView } from '../src/vm/view.js';
import { countRedis, REDIS_PORT } from './overhead.js';
import { p50, p99, round } from './statistics.js';

export interface NetworkResult {
  /** A SET of one client, ms. */
  latency: Record<Protection, { msP50: number; msP99: number }>;
  addedByStrictMsP50: number;
  /** p99 in strict mode less that of the unprotected guest. */
  addedByStrictMsP99: number;
  addedByAsyncMsP50: number;
  /** SETs per second of 50 clients. */
  throughputPerS: Record<Protection, number>;
  /** To the unprotected guest, of neighbouring windows, median. */
  strictRatio: number;
  asyncRatio: number;
  kills: number;
  /** Longest time between two replies at a kill, one client, strict mode. */
  silenceMsP50: number;
  silenceMsMax: number;
  connectionsBroken: number;
  writesLost: number;
}

const PROTECTIONS = ['unprotected', 'async', 'strict'] as const;
type Protection = (typeof PROTECTIONS)[number];

const VM = 'network';
const WINDOW_MS = 2000;
const SETTLE_MS = 500;
const TIMEOUT_MS = 30_000;
const KILL_SPREAD_MS = 200;

export async function benchNetwork(rounds: number): Promise<NetworkResult> {
  const daemon = await Daemon.start();
  try {
    const vm = await daemon.client.runVm({ name: VM, ramBytes: 256 * MIB });
    const host = vm.address as string;
    const latency = { unprotected: [] as number[], async: [] as number[], strict: [] as number[] };
    const perS = { unprotected: [] as number[], async: [] as number[], strict: [] as number[] };
    await countRedis(host, WINDOW_MS); // warms caches and translated code up
    for (let i = 0; i < rounds; i++)
      for (const protection of PROTECTIONS) {
        await protect(daemon, protection);
        await sleep(SETTLE_MS);
        latency[protection].push(...(await latencies(host)));
        perS[protection].push(await countRedis(host, WINDOW_MS));
      }
    const kills = await measureKills(daemon, host, rounds);
    const figures = (values: number[]) => ({ msP50: p50(values), msP99: p99(values) });
    const ratio = (of: Protection) => round(p50(perS[of].map((each, i) => each / (perS.unprotected[i] as number))));
    return {
      latency: {
        unprotected: figures(latency.unprotected),
        async: figures(latency.async),
        strict: figures(latency.strict),
      },
      addedByStrictMsP50: round(p50(latency.strict) - p50(latency.unprotected)),
      addedByStrictMsP99: round(p99(latency.strict) - p99(latency.unprotected)),
      addedByAsyncMsP50: round(p50(latency.async) - p50(latency.unprotected)),
      throughputPerS: { unprotected: p50(perS.unprotected), async: p50(perS.async), strict: p50(perS.strict) },
      strictRatio: ratio('strict'),
      asyncRatio: ratio('async'),
      kills: kills.silenceMs.length,
      silenceMsP50: p50(kills.silenceMs),
      silenceMsMax: round(Math.max(...kills.silenceMs)),
      connectionsBroken: kills.broken,
      writesLost: kills.lost,
    };
  } finally {
    await daemon.stop();
  }
}

async function protect({ client }: Daemon, protection: Protection): Promise<void> {
  if ((await client.showVm(VM)).shadow !== null) await client.removeShadow(VM);
  if (protection === 'unprotected') return;
  const mode: Mode = protection;
  await client.changeMode(VM, mode);
  await client.createShadow(VM);
  if (mode === 'strict') await until(client, (vm) => vm.strict === 'active');
}

async function until(client: Daemon['client'], holds: (vm: VmView) => boolean): Promise<VmView> {
  for (const untilMs = performance.now() + TIMEOUT_MS; performance.now() < untilMs; await sleep(10)) {
    const vm = await client.showVm(VM);
    if (holds(vm)) return vm;
  }
  throw new Error('the VM was not protected in time');
}

async function latencies(host: string): Promise<number[]> {
  const connection = await RedisConnection.connect(host, REDIS_PORT, TIMEOUT_MS);
  const times: number[] = [];
  for (const untilMs = performance.now() + WINDOW_MS; performance.now() < untilMs; ) {
    const startMs = performance.now();
    await connection.send('SET', 'key', `${startMs}`);
    times.push(performance.now() - startMs);
  }
  connection.close();
  return times;
}

async function measureKills(daemon: Daemon, host: string, rounds: number) {
  const { client } = daemon;
  const result = { silenceMs: [] as number[], broken: 0, lost: 0 };
  await protect(daemon, 'strict');
  for (let i = 0; i < rounds; i++) {
    const before = await until(client, (vm) => vm.strict === 'active' && vm.shadow?.pid != null);
    const connection = await RedisConnection.connect(host, REDIS_PORT, TIMEOUT_MS);
    const run = { stop: false, silenceMs: 0, acknowledged: 0 };
    const writing = (async () => {
      for (let lastMs = performance.now(); !run.stop; ) {
        await connection.send('SET', 'count', `${run.acknowledged + 1}`);
        run.acknowledged++;
        run.silenceMs = Math.max(run.silenceMs, performance.now() - lastMs);
        lastMs = performance.now();
      }
    })();
    writing.catch(() => {}); // awaited below
    await sleep(SETTLE_MS + Math.random() * KILL_SPREAD_MS);
    run.silenceMs = 0;
    process.kill(before.pid as number, 'SIGKILL');
    await until(client, (vm) => vm.generation > before.generation && vm.state === 'running');
    await sleep(SETTLE_MS);
    run.stop = true;
    try {
      await writing;
      if ((await connection.send('GET', 'count')) !== `${run.acknowledged}`) result.lost++;
    } catch {
      result.broken++;
    }
    connection.close();
    result.silenceMs.push(run.silenceMs);
  }
  return result;
}
