/** What disks cost: the pause of an epoch, a guest's writes, a promotion. Protected and not, in turn. */
import { Daemon, sleep } from '../harness/daemon.js';
import { MIB } from '../src/vm/spec.js';
import { benchPrefetch, type PrefetchResult } from './disk-prefetch.js';
import { alternate, countPerS, ratio, type Windows } from './overhead.js';
import { p50, round } from './statistics.js';

export interface DiskResult {
  /** Pauses of VMs whose disks are not written: no disk; one that nobody uses; one that is read. */
  pauseWithoutDiskMsP50: number;
  pauseUnusedMsP50: number;
  pauseReadMsP50: number;
  /** Random writes in every epoch. */
  pauseWrittenMsP50: number;
  pauseWrittenMsP99: number;
  /** Written less read. */
  pauseExtraMsP50: number;
  sequentialProtectedMiBPerS: number;
  sequentialUnprotectedMiBPerS: number;
  sequentialRatio: number;
  randomProtectedMiBPerS: number;
  randomUnprotectedMiBPerS: number;
  randomRatio: number;
  /** Decision → vCPUs run, under random writes. */
  resumeMsP50: number;
  prefetch: PrefetchResult;
}

const PREFETCH_ROUNDS_MAX = 3;

const RAM_BYTES = 160 * MIB;
const DISK_BYTES = 256 * MIB;
const SETTLE_MS = 700;
const PAUSE_WINDOW_MS = 5000;
const PROMOTIONS = 8;

export async function benchDisk(rounds: number): Promise<DiskResult> {
  const prefetch = await benchPrefetch(Math.min(rounds, PREFETCH_ROUNDS_MAX));
  const daemon = await Daemon.start();
  try {
    const bare = { ramBytes: RAM_BYTES, network: 'none' } as const;
    await daemon.client.runVm({ ...bare, name: 'nodisk' });
    const pauseWithoutDisk = await pauses(daemon, 'nodisk');
    await daemon.client.killVm('nodisk');
    await daemon.client.runVm({ ...bare, name: 'disk', disks: [{ name: 'data', sizeBytes: DISK_BYTES }] });
    const pauseUnused = await pauses(daemon, 'disk');
    await load(daemon, 'read');
    const pauseRead = await pauses(daemon, 'disk');
    const sequential = await alternateLoad(daemon, 'sequential', rounds);
    const random = await alternateLoad(daemon, 'random', rounds);
    const pauseWritten = await pauses(daemon, 'disk');
    const resumeMs = await promotions(daemon);
    return {
      pauseWithoutDiskMsP50: round(pauseWithoutDisk.p50),
      pauseUnusedMsP50: round(pauseUnused.p50),
      pauseReadMsP50: round(pauseRead.p50),
      pauseWrittenMsP50: round(pauseWritten.p50),
      pauseWrittenMsP99: round(pauseWritten.p99),
      pauseExtraMsP50: round(pauseWritten.p50 - pauseRead.p50),
      sequentialProtectedMiBPerS: p50(sequential.protectedPerS),
      sequentialUnprotectedMiBPerS: p50(sequential.unprotectedPerS),
      sequentialRatio: ratio(sequential),
      randomProtectedMiBPerS: p50(random.protectedPerS),
      randomUnprotectedMiBPerS: p50(random.unprotectedPerS),
      randomRatio: ratio(random),
      resumeMsP50: p50(resumeMs),
      prefetch,
    };
  } finally {
    await daemon.stop();
  }
}

type Load = 'read' | 'sequential' | 'random';

/** In the place of the one before. */
async function load(daemon: Daemon, how: Load): Promise<void> {
  const command = `kill -9 $(cat /run/load); shadowvm-guest diskload /dev/disk/data ${how} & echo $! > /run/load`;
  await daemon.client.guestExec('disk', command);
  await sleep(SETTLE_MS);
}

/** Those of a shadow that lives for a while. */
async function pauses(daemon: Daemon, vm: string): Promise<{ p50: number; p99: number }> {
  await daemon.client.createShadow(vm);
  await sleep(PAUSE_WINDOW_MS);
  const { shadow } = await daemon.client.showVm(vm);
  await daemon.client.removeShadow(vm);
  return { p50: shadow?.pauseMs.p50 ?? Number.NaN, p99: shadow?.pauseMs.p99 ?? Number.NaN };
}

async function alternateLoad(daemon: Daemon, how: Load, rounds: number): Promise<Windows> {
  await load(daemon, how);
  const mibPerS = async () => round((await countPerS(daemon, 'disk', /diskload bytes=(\d+)/)) / MIB);
  return alternate(daemon, 'disk', rounds, mibPerS);
}

/** Kills the VM under its load, again and again. */
async function promotions(daemon: Daemon): Promise<number[]> {
  const { client } = daemon;
  const resumeMs: number[] = [];
  await client.createShadow('disk');
  for (let i = 0; i < PROMOTIONS; i++) {
    await sleep(2 * SETTLE_MS);
    const { generation } = await client.showVm('disk');
    await client.injectFault('disk', 'kill');
    for (;;) {
      const vm = await client.showVm('disk');
      if (vm.generation > generation && vm.state === 'running' && vm.shadow?.state === 'ready') break;
      await sleep(20);
    }
    const done = (await client.listEvents({ vm: 'disk' })).filter(({ type }) => type === 'promotion.done').at(-1);
    resumeMs.push(done?.data.resumeMs as number);
  }
  return resumeMs;
}
