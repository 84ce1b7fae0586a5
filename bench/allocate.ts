/**
 * What acting before the need is worth: four VMs whose CPU demand repeats, on CPU for one of them at a time. Fixed quotas,
 * quotas that follow what was used (reactive), and quotas that follow the forecast (auto), of the same sum. And what the
 * history and forecasts of ten thousand VMs take, in simulation.
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sleep } from '../harness/daemon.js';
import { InProcessManager } from '../harness/in-process.js';
import { RedisConnection } from '../harness/redis.js';
import { VmForecasts } from '../src/forecast/outlook.js';
import { FORECAST_METRICS } from '../src/history/metrics.js';
import { HistoryStore } from '../src/history/store.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import { p50, p99, round } from './statistics.js';

export interface AllocateResult {
  /** By way of allocation. */
  live: Record<'fixed' | 'reactive' | 'auto', LiveResult>;
  scale: ScaleResult;
}

interface LiveResult {
  /** Of all VMs, per period of their load: how long their threads were held back by quotas. */
  throttledMsPerPeriod: number;
  redisMsP50: number;
  redisMsP99: number;
  /** Per VM and period. */
  quotaChanges: number;
}

interface ScaleResult {
  vms: number;
  /** Seconds of VMs that are taken, rolled up and written, per second. */
  samplesPerS: number;
  bytesPerSample: number;
  /** What stays of a day once it is rolled up to 5 minutes. */
  keptBytesPerVmAndDay: number;
  /** With its hour of seconds, week of minutes and 90 days. */
  bytesPerVm: number;
  /** One interval of all VMs and metrics, with their outlooks; extrapolated from {@link FORECAST_VMS}. */
  forecastAllMs: number;
  /** Of one metric of one VM. */
  forecastUsPerSample: number;
  forecastKiBPerVm: number;
}

const VMS = ['a', 'b', 'c', 'd'];
const PERIOD_S = 24;
const PEAK_S = 4;
const QUOTA_PERCENT = 40;
const IDLE_PERCENT = 15;
const COOL_DOWN_MS = 2000;
/** A forecast needs some periods before it knows them; the others need none. */
const LEARN_PERIODS = { fixed: 1, reactive: 1, auto: 4 };
const MEASURED_PERIODS = 3;
const REDIS_EVERY_MS = 50;
const REDIS_PORT = 6379;

const SCALE_VMS = 10_000;
const SCALE_SECONDS = 61;
const FORECAST_VMS = 100;
const FORECAST_WARM_SAMPLES = 600;
const FORECAST_SAMPLES = 12;

export async function benchAllocate(): Promise<AllocateResult> {
  return {
    live: { fixed: await live('fixed'), reactive: await live('reactive'), auto: await live('auto') },
    scale: scale(),
  };
}

export async function live(way: keyof AllocateResult['live']): Promise<LiveResult> {
  const manager = await InProcessManager.open({
    forecasts: { intervalS: 1, seasonS: PERIOD_S },
    allocation: {
      capacity: { cpuPercent: VMS.length * QUOTA_PERCENT },
      coolDownMs: COOL_DOWN_MS,
      foresight: way === 'auto',
    },
  });
  const timers: NodeJS.Timeout[] = [];
  const connections: RedisConnection[] = [];
  try {
    const allocation: VmSpecInput['allocation'] =
      way === 'fixed' ? { mode: 'off', cpuMaxPercent: QUOTA_PERCENT } : { mode: 'auto', cpuMinPercent: IDLE_PERCENT };
    let latenciesMs: number[] = [];
    for (const [i, name] of VMS.entries()) {
      const { address } = await manager.runVm({ name, ramBytes: 128 * MIB, allocation });
      const redis = await RedisConnection.connect(address as string, REDIS_PORT, 10_000);
      connections.push(redis);
      timers.push(setInterval(() => void timed(redis, (ms) => latenciesMs.push(ms)), REDIS_EVERY_MS));
      const offsetMs = (i * PERIOD_S * 1000) / VMS.length;
      timers.push(
        setTimeout(() => {
          const peak = () => void manager.port.guestExec(name, `shadowvm-guest cpuloop ${PEAK_S} &`).catch(() => {});
          peak();
          timers.push(setInterval(peak, PERIOD_S * 1000));
        }, offsetMs),
      );
    }
    await sleep(LEARN_PERIODS[way] * PERIOD_S * 1000);
    latenciesMs = [];
    const before = throttledMs(manager);
    const { seq } = manager.events.list({ limit: 1 })[0]!;
    await sleep(MEASURED_PERIODS * PERIOD_S * 1000);
    const changes = manager.events
      .list({ since: seq })
      .filter(({ type, data }) => type === 'allocation.changed' && data.resource === 'cpu').length;
    return {
      throttledMsPerPeriod: round((throttledMs(manager) - before) / MEASURED_PERIODS),
      redisMsP50: p50(latenciesMs),
      redisMsP99: p99(latenciesMs),
      quotaChanges: round(changes / VMS.length / MEASURED_PERIODS),
    };
  } finally {
    for (const timer of timers) clearInterval(timer);
    for (const connection of connections) connection.close();
    await manager.close();
  }
}

/** Sent when it is due, whatever became of those before: a VM that stands still is not asked less. */
async function timed(redis: RedisConnection, told: (ms: number) => void): Promise<void> {
  const sentMs = performance.now();
  try {
    await redis.send('SET', 'key', 'value');
    told(performance.now() - sentMs);
  } catch {
    // The end of the run; one before it would show as missing figures.
  }
}

function throttledMs(manager: InProcessManager): number {
  return VMS.reduce((sum, name) => {
    const { core } = manager.port.vmForTest(name);
    return sum + (core.sides.groupUsage(core.side)?.throttledNs ?? Number.NaN) / 1e6;
  }, 0);
}

export function scale(): ScaleResult {
  const dir = mkdtempSync(join(tmpdir(), 'shadowvm-bench-history-'));
  try {
    const path = join(dir, 'history.db');
    const store = HistoryStore.open(path);
    const T0 = 1_700_006_400;
    const take = (s: number) => {
      for (let vm = 0; vm < SCALE_VMS; vm++) store.append(`vm-${vm}`, T0 + s, usage(vm, s));
      store.flush();
    };
    take(0); // names every VM
    const startMs = performance.now();
    for (let s = 1; s <= SCALE_SECONDS; s++) take(s);
    const samplesPerS = (SCALE_SECONDS * SCALE_VMS) / ((performance.now() - startMs) / 1000);
    store.close();
    const rows = (SCALE_SECONDS + 1) * SCALE_VMS + 2 * SCALE_VMS;
    const bytesPerSample = statSync(path).size / rows;
    return {
      vms: SCALE_VMS,
      samplesPerS: round(samplesPerS),
      bytesPerSample: round(bytesPerSample),
      keptBytesPerVmAndDay: round(bytesPerSample * 288),
      bytesPerVm: round(bytesPerSample * (3600 + 7 * 1440 + 90 * 288)),
      ...forecastCost(T0),
    };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

function forecastCost(T0: number) {
  const residentBefore = process.memoryUsage().rss;
  const forecasts = Array.from({ length: FORECAST_VMS }, () => new VmForecasts({ intervalS: 300, seasonS: 86_400 }));
  const feed = (from: number, to: number) => {
    for (let i = from; i < to; i++)
      for (const [vm, each] of forecasts.entries()) {
        const values = usage(vm, i * 5);
        if (each.take(T0 + 300 * i, (metric) => values[metric as 'demand'] ?? Number.NaN)) each.outlooks();
      }
  };
  feed(0, FORECAST_WARM_SAMPLES);
  const kib = (process.memoryUsage().rss - residentBefore) / 1024 / FORECAST_VMS;
  const startMs = performance.now();
  feed(FORECAST_WARM_SAMPLES, FORECAST_WARM_SAMPLES + FORECAST_SAMPLES);
  const msPerVm = (performance.now() - startMs) / FORECAST_SAMPLES / FORECAST_VMS;
  return {
    forecastAllMs: round(msPerVm * SCALE_VMS),
    forecastUsPerSample: round((msPerVm * 1000) / FORECAST_METRICS.length),
    forecastKiBPerVm: round(kib),
  };
}

/** Every metric, as a real VM has. */
function usage(vm: number, s: number) {
  const busy = 30 + 25 * Math.sin((s + 37 * vm) / 50) + ((vm * 7919 + s * 104_729) % 13);
  return {
    ...{
      cpu: busy,
      demand: busy,
      stolen: 1,
      throttled: 0,
      memory: 1e8 + vm * 1000,
      balloon: 2.7e8,
      'guest-memory': 2e8,
    },
    ...{ 'network-bytes': 1e5 * busy, 'network-packets': busy, 'dirty-rate': 1e6, pause: 2, lag: 90 },
  };
}
