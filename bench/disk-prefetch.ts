/** How fast a promoted guest reads what it was reading before, from a cold page cache: with prefetch and without, in turn. */
import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Daemon, sleep } from '../harness/daemon.js';
import { MIB } from '../src/vm/spec.js';
import { p50, round } from './statistics.js';

export interface PrefetchResult {
  /** Mean latency of reads of 4 KiB, all over the working set, in the first second after a promotion. */
  firstSecondReadMsWith: number;
  firstSecondReadMsWithout: number;
  /** Before the promotion, from a warm cache. */
  warmReadMs: number;
}

const WORKING_SET_BYTES = 64 * MIB;
const READ_BYTES = 4096;
const SETTLE_MS = 3000;
/** For what was dropped to be read ahead again, or not. */
const REWARM_MS = 12_000;
const SECOND_MS = 1000;

export async function benchPrefetch(rounds: number): Promise<PrefetchResult> {
  const daemon = await Daemon.start();
  const file = join(daemon.stateDir, 'working-set.img');
  try {
    writeFileSync(file, randomFillSync(Buffer.alloc(WORKING_SET_BYTES)));
    const vms = { with: 256 * MIB, without: 0 };
    const latencies = { with: [] as number[], without: [] as number[], warm: [] as number[] };
    for (const [name, prefetchBytes] of Object.entries(vms))
      await daemon.client.runVm({
        ...{ name, prefetchBytes, ramBytes: 160 * MIB, network: 'none', shadow: { kind: 'always' } },
        disks: [{ name: 'data', path: file }],
      });
    for (let round = 0; round < rounds; round++)
      for (const name of ['with', 'without'] as const) {
        const { warmMs, firstMs } = await oneRound(daemon, name);
        latencies[name].push(firstMs);
        latencies.warm.push(warmMs);
      }
    return {
      firstSecondReadMsWith: p50(latencies.with),
      firstSecondReadMsWithout: p50(latencies.without),
      warmReadMs: p50(latencies.warm),
    };
  } finally {
    rmSync(file, { force: true });
    await daemon.stop();
  }
}

async function oneRound(daemon: Daemon, vm: string): Promise<{ warmMs: number; firstMs: number }> {
  const { client } = daemon;
  const load = 'until [ -b /dev/disk/data ]; do sleep 0.1; done; shadowvm-guest diskload /dev/disk/data read &';
  await client.guestExec(vm, `${load} echo $! > /run/load`);
  await sleep(SETTLE_MS);
  const warmMs = await readMs(daemon, vm);
  const twin = join(daemon.stateDir, 'vms', vm, 'disks', 'data.twin');
  execFileSync('sync', [twin]);
  execFileSync('dd', [`if=${twin}`, 'iflag=nocache', 'count=0', 'status=none']);
  await sleep(REWARM_MS);
  const { generation } = await client.showVm(vm);
  await client.injectFault(vm, 'kill');
  for (;;) {
    const now = await client.showVm(vm);
    if (now.generation > generation && now.state === 'running' && now.guest !== null) break;
    await sleep(2);
  }
  const firstMs = await readMs(daemon, vm);
  await client.guestExec(vm, 'kill -9 $(cat /run/load)');
  return { warmMs, firstMs };
}

/** Mean time of a read in the next second, by the guest's own count. */
async function readMs(daemon: Daemon, vm: string): Promise<number> {
  const readBytes = async () =>
    Number(/diskload bytes=(\d+)/.exec((await daemon.client.showVm(vm)).guest?.app ?? '')?.[1] ?? Number.NaN);
  const [from, startMs] = [await readBytes(), performance.now()];
  await sleep(SECOND_MS);
  const reads = ((await readBytes()) - from) / READ_BYTES;
  return round((performance.now() - startMs) / reads);
}
