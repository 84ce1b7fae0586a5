/** The numbers of SPECIFICATION.md that the benchmark holds, against what was measured. */
import type { BenchResults } from './main.js';

export interface Check {
  promise: string;
  measured: number;
  kept: boolean;
}

export function checkPromises(results: BenchResults): Check[] {
  const checks: Check[] = [];
  const atMost = (promise: string, measured: number | undefined, limit: number) => {
    if (measured !== undefined) checks.push({ promise: `${promise} ≤ ${limit}`, measured, kept: measured <= limit });
  };
  const atLeast = (promise: string, measured: number | undefined, limit: number) => {
    if (measured !== undefined) checks.push({ promise: `${promise} ≥ ${limit}`, measured, kept: measured >= limit });
  };
  const { pause, switchover, detect, scan, overhead, image, network, disk, allocate } = results;
  atMost('pause p50, 256 MiB, ms', pause[256]?.oursMsP50, 6);
  atMost('pause p99, 256 MiB, ms', pause[256]?.oursMsP99, 25);
  const growth = pause[1024] && pause[256] && pause[1024].oursMsP50 / pause[256].oursMsP50;
  atMost('pause p50 at 1 GiB ÷ at 256 MiB', growth && Math.round(growth * 100) / 100, 1.3);
  for (const ram of ['256', '1024']) {
    atLeast(`migrate to a file ÷ pause, ${ram} MiB`, pause[ram]?.timesShorterThanFile, 20);
    atMost(`detection of a killed QEMU p50, ${ram} MiB, ms`, detect[ram]?.futexMsP50, 2);
    atMost(`detection of a hang max, ${ram} MiB, ms`, detect[ram]?.hangMsMax, 500);
    atMost(`switchover p50, ${ram} MiB, ms`, switchover[ram]?.oursMsP50, 60);
    atLeast(`cold boot ÷ switchover, ${ram} MiB`, switchover[ram]?.timesFasterThanColdBoot, 50);
    atLeast(`checksum scan ÷ memcpy, ${ram} MiB`, scan[ram]?.ratio, 0.7);
  }
  atLeast('Redis throughput protected ÷ unprotected', overhead?.redisRatio, 0.9);
  atLeast('CPU loop protected ÷ unprotected', overhead?.cpuRatio, 0.95);
  for (const [ram, cost] of Object.entries(image?.cost ?? {})) {
    atMost(`memory of a shadow, idle, ${ram} MiB, % of RAM`, cost.idlePercentOfRam, 1);
    atMost(`memory of a shadow, loaded, ${ram} MiB, % of RAM`, cost.loadedPercentOfRam, 1);
    atMost(`CPU of a shadow, idle, ${ram} MiB, % of a core`, cost.idleCpuPercent, 1);
  }
  atMost('lazy switchover p50, 256 MiB, ms', image?.cost[256]?.switchoverMsP50, 60);
  atMost('lazy switchover p50 at 4 GiB ÷ at 256 MiB', image?.switchoverGrowth, 1.3);
  atMost('stored per changed page under Redis, %', image?.storedPercentOfPage, 35);
  atLeast('append, MiB/s of changed pages on one core', image?.appendMiBPerS, 500);
  atLeast('cold boot ÷ start from the golden snapshot', image?.timesFasterThanBoot, 20);
  atMost('restore of a snapshot of 1 GiB p50, ms', image?.snapshotRestoreMsP50, 150);
  if (allocate !== null && allocate !== undefined) {
    const { fixed, reactive, auto } = allocate.live;
    const share = (part: number, whole: number) => Math.round((100 * part) / whole) / 100;
    atMost('throttled time, auto ÷ fixed quotas', share(auto.throttledMsPerPeriod, fixed.throttledMsPerPeriod), 0.4);
    atMost('throttled time, auto ÷ reactive', share(auto.throttledMsPerPeriod, reactive.throttledMsPerPeriod), 1);
    atMost('Redis p99, auto ÷ fixed quotas', share(auto.redisMsP99, fixed.redisMsP99), 0.8);
    atLeast('history taken in, seconds of VMs per second', allocate.scale.samplesPerS, 10_000);
    atMost('forecasts of one metric of a VM per sample, µs', allocate.scale.forecastUsPerSample, 1000);
  }
  atMost('extra pause of an epoch whose disk was written p50, ms', disk?.pauseExtraMsP50, 3);
  atLeast('sequential writes to a disk protected ÷ unprotected', disk?.sequentialRatio, 0.85);
  atLeast('random writes to a disk protected ÷ unprotected', disk?.randomRatio, 0.85);
  atMost('latency added by strict mode p50, ms', network?.addedByStrictMsP50, 15);
  atMost('latency added by strict mode p99, ms', network?.addedByStrictMsP99, 60);
  atLeast('Redis throughput of 50 clients, strict ÷ unprotected', network?.strictRatio, 0.5);
  atLeast('Redis throughput of 50 clients, async ÷ unprotected', network?.asyncRatio, 0.9);
  atMost('silence seen by a client at a kill p50, ms', network?.silenceMsP50, 150);
  atMost('connections broken by kills in strict mode', network?.connectionsBroken, 0);
  atMost('acknowledged writes lost by kills in strict mode', network?.writesLost, 0);
  return checks;
}
