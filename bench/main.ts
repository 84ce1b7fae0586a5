/**
 * Ours against the peers, in one run: npm run bench [-- --rounds 20] [--only pause,switchover,scan,overhead,image,network,disk]
 * Results go to out/bench.json; SPECIFICATION.md says which of them are promises.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { outPath } from '../harness/checkout.js';
import { sweepKilledRuns } from '../harness/killed-runs.js';
import { type AllocateResult, benchAllocate } from './allocate.js';
import { benchDisk, type DiskResult } from './disk.js';
import { BenchGuests } from './guest.js';
import { benchImage, type ImageResult } from './image.js';
import { benchNetwork, type NetworkResult } from './network.js';
import { benchOverhead, type OverheadResult } from './overhead.js';
import { benchPause, type PauseResult } from './pause.js';
import { type Check, checkPromises } from './promises.js';
import { benchScan, type ScanResult } from './scan.js';
import { benchSwitchover, type DetectResult, type SwitchoverResult } from './switchover.js';

/** Keyed by RAM in MiB where the size matters. */
export interface BenchResults {
  pause: Record<string, PauseResult>;
  switchover: Record<string, SwitchoverResult>;
  detect: Record<string, DetectResult>;
  scan: Record<string, ScanResult>;
  overhead: OverheadResult | null;
  image: ImageResult | null;
  allocate: AllocateResult | null;
  network: NetworkResult | null;
  disk: DiskResult | null;
}

const RAM_MIB = [256, 1024];
const SECTIONS = ['pause', 'switchover', 'scan', 'overhead', 'image', 'network', 'disk', 'allocate'] as const;
const HANG_ROUNDS = 5;
const OVERHEAD_ROUNDS_MAX = 10;

const usage = `usage: npm run bench [-- --rounds N] [--only ${SECTIONS.join(',')}]`;

function readOptions(): { rounds: number; only: string[] } {
  try {
    const { values } = parseArgs({
      options: { rounds: { type: 'string', default: '20' }, only: { type: 'string' }, help: { type: 'boolean' } },
    });
    if (values.help) {
      console.log(usage);
      process.exit(0);
    }
    const rounds = Number(values.rounds);
    const only = values.only?.split(',') ?? [...SECTIONS];
    if (!Number.isInteger(rounds) || rounds < 1 || rounds > 200) throw new Error('--rounds takes 1 to 200');
    const unknown = only.find((section) => !(SECTIONS as readonly string[]).includes(section));
    if (unknown !== undefined) throw new Error(`there is no section "${unknown}"`);
    return { rounds, only };
  } catch (error) {
    console.error(`bench: ${(error as Error).message}\n${usage}`);
    process.exit(2);
  }
}

function progress(what: string): void {
  process.stderr.write(`bench: ${what} (load ${loadavg()[0]?.toFixed(1)})\n`);
}

async function run(rounds: number, only: string[]): Promise<BenchResults> {
  const results: BenchResults = {
    ...{ pause: {}, switchover: {}, detect: {}, scan: {} },
    ...{ overhead: null, image: null, network: null, disk: null, allocate: null },
  };
  await sweepKilledRuns();
  const guests = await BenchGuests.open();
  try {
    for (const ramMiB of RAM_MIB) {
      if (only.includes('pause')) {
        progress(`pause, ${ramMiB} MiB`);
        results.pause[ramMiB] = await benchPause(guests, ramMiB, rounds);
      }
      if (only.includes('switchover')) {
        progress(`switchover and detection, ${ramMiB} MiB`);
        const { switchover, detect } = await benchSwitchover(guests, ramMiB, rounds, HANG_ROUNDS);
        results.switchover[ramMiB] = switchover;
        results.detect[ramMiB] = detect;
      }
      if (only.includes('scan')) {
        progress(`scan, ${ramMiB} MiB`);
        results.scan[ramMiB] = benchScan(ramMiB, rounds);
      }
    }
    if (only.includes('overhead')) {
      progress('overhead');
      results.overhead = await benchOverhead(Math.min(rounds, OVERHEAD_ROUNDS_MAX));
    }
    if (only.includes('image')) {
      progress('image');
      results.image = await benchImage(guests, rounds);
    }
    if (only.includes('disk')) {
      progress('disk');
      results.disk = await benchDisk(Math.min(rounds, OVERHEAD_ROUNDS_MAX));
    }
    if (only.includes('network')) {
      progress('network');
      results.network = await benchNetwork(rounds);
    }
    if (only.includes('allocate')) {
      progress('allocate: four VMs, some 8 minutes');
      results.allocate = await benchAllocate();
    }
    return results;
  } finally {
    await guests.close();
  }
}

function print(results: BenchResults, checks: Check[]): void {
  for (const [section, figures] of Object.entries(results)) {
    if (figures === null || Object.keys(figures).length === 0) continue;
    console.log(`\n${section}`);
    printFigures(figures, '');
  }
  console.log('\npromises');
  for (const { promise, measured, kept } of checks)
    console.log(`  ${kept ? 'kept  ' : 'BROKEN'} ${promise.padEnd(58)} ${measured}`);
}

const ALLOCATION_WAYS = new Set(['fixed', 'reactive', 'auto']);

/** Numbers as they are; groups of them under the RAM that they are of. */
function printFigures(figures: object, group: string): void {
  for (const [key, value] of Object.entries(figures)) {
    if (typeof value === 'object' && value !== null)
      printFigures(value, /^\d+$/.test(key) ? `${key} MiB` : ALLOCATION_WAYS.has(key) ? key : group);
    else console.log(`  ${group.padEnd(9)} ${key.padEnd(26)} ${value}`);
  }
}

/** A partial run renews its sections and leaves the others. */
function merge(before: BenchResults, fresh: BenchResults): BenchResults {
  const renewed = Object.entries(fresh).filter(([, figures]) => figures !== null && Object.keys(figures).length > 0);
  return { ...before, ...Object.fromEntries(renewed) };
}

const { rounds, only } = readOptions();
const fresh = await run(rounds, only);
const path = outPath('bench.json');
const results =
  only.length < SECTIONS.length && existsSync(path) ? merge(JSON.parse(readFileSync(path, 'utf8')), fresh) : fresh;
writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`);
print(results, checkPromises(results));
console.log('\nresult: out/bench.json');
