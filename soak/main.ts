/**
 * Long runs that try to break the promises: npm run soak [-- --seed N --rounds 200 --only failover]
 * The seed decides what is done and when; it is printed first. Results go to out/soak.json; exit code 1 when a promise
 * was broken.
 */
import { randomInt } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { outPath } from '../harness/checkout.js';
import { sweepKilledRuns } from '../harness/killed-runs.js';
import { messageOf } from '../src/errors.js';
import { parseBytes } from '../src/vm/quantity-text.js';
import { MIB, VCPUS_MAX } from '../src/vm/spec.js';
import { type DisksResult, soakDisks } from './disks.js';
import type { Distribution } from './distribution.js';
import { type FailoverOptions, type FailoverResult, soakFailover } from './failover.js';
import { FAULTS } from './plan.js';
import { type StrictResult, soakStrict } from './strict.js';

const SOAKS = ['failover', 'disks', 'strict'] as const;
const TRACKINGS = ['auto', 'write', 'checksum'] as const;
const SEED_MAX = 2 ** 31;
const ROUNDS_MAX = 100_000;
/** memcheck and Redis have to fit in. */
const RAM_BYTES_MIN = 160 * MIB;
const NETWORK = { bridge: 'svsoak0', subnet: '10.215.0.0/24' };

const usage = `usage: npm run soak [-- --seed N --rounds N --ram 256M --vcpus N --tracking ${TRACKINGS.join('|')} --only ${SOAKS.join('|')}]`;

interface Options {
  only: readonly string[];
  seed: number;
  rounds: number;
  vm: FailoverOptions['vm'];
}

function readOptions(): Options {
  try {
    const { values } = parseArgs({
      options: {
        seed: { type: 'string' },
        rounds: { type: 'string', default: '200' },
        ram: { type: 'string', default: '256M' },
        vcpus: { type: 'string', default: '1' },
        tracking: { type: 'string', default: 'auto' },
        only: { type: 'string' },
        help: { type: 'boolean' },
      },
    });
    if (values.help) {
      console.log(usage);
      process.exit(0);
    }
    const only: readonly string[] = values.only?.split(',') ?? SOAKS;
    const unknown = only.find((name) => !(SOAKS as readonly string[]).includes(name));
    if (unknown !== undefined) throw new Error(`there is no soak "${unknown}"`);
    const ramBytes = parseBytes(values.ram, '--ram');
    if (ramBytes < RAM_BYTES_MIN || ramBytes % MIB !== 0)
      throw new Error(`--ram takes whole MiB from ${RAM_BYTES_MIN / MIB}M on`);
    const tracking = TRACKINGS.find((way) => way === values.tracking);
    if (tracking === undefined) throw new Error(`--tracking takes ${TRACKINGS.join(', ')}`);
    return {
      seed: values.seed === undefined ? randomInt(SEED_MAX) : wholeNumber('--seed', values.seed, 0, SEED_MAX - 1),
      rounds: wholeNumber('--rounds', values.rounds, 1, ROUNDS_MAX),
      only,
      vm: { ramBytes, vcpus: wholeNumber('--vcpus', values.vcpus, 1, VCPUS_MAX), tracking },
    };
  } catch (error) {
    console.error(`soak: ${(error as Error).message}\n${usage}`);
    process.exit(2);
  }
}

function wholeNumber(what: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < min || value > max) throw new Error(`${what} takes ${min} to ${max}`);
  return value;
}

const row = (what: string, d: Distribution) =>
  `  ${what.padEnd(30)} p50 ${text(d.p50)}  p99 ${text(d.p99)}  max ${text(d.max)}`;

function disksSummary(result: DisksResult): string {
  return [
    `${result.rounds} kills of a VM with databases on its disks, ${result.strictRounds} of them in strict mode`,
    `  SQLite transactions            ${result.sqliteTransactions}`,
    `  Redis writes                   ${result.redisWrites}`,
    row('decision to running, ms', result.resumeMs),
    row('rolled back, ms', result.lagMs),
    row('pause, median of a shadow, ms', result.pauseMs),
    ...result.failures.map(({ round, what }) => `  VIOLATION in round ${round}: ${what}`),
  ].join('\n');
}

function summary(result: FailoverResult): string {
  const faults = FAULTS.map((fault) => `${result.faults[fault]} ${fault}`).join(', ');
  const phases = Object.entries(result.phases).map(([phase, count]) => `${count} ${phase}`);
  return [
    `${result.rounds} rounds in ${result.seconds} s: ${faults}`,
    `  hit: ${phases.join(', ')}; ${result.aims.ready ?? 0} of them right after a shadow was ready`,
    `  promotions failed              ${result.promotionsFailed}`,
    `  memory                         ${result.memcheckVerifications} whole verifications, ${result.memcheckBad} wrong, ${result.memcheckForgot} forgot a write older than the lag`,
    `  Redis writes acknowledged      ${result.writesAcknowledged}`,
    `  lost within the lag            ${result.writesLostWithinLag}`,
    `  lost though older than the lag ${result.writesLostOlderThanLag}`,
    ...FAULTS.map((fault) => row(`fault to decision, ${fault}, ms`, result.detectMs[fault])),
    row('decision to running, ms', result.resumeMs),
    row('lag at the fault, ms', result.lagAtFaultMs),
    row('until protected again, ms', result.reprotectMs),
    `  manager's open files           ${result.openFiles.first}, at the end ${result.openFiles.last}`,
    `  manager's resident memory      ${result.residentMiB.first} MiB, at the end ${result.residentMiB.last} MiB`,
    ...result.failures.map(({ round, what }) => `  VIOLATION in round ${round}: ${what}`),
  ].join('\n');
}

function strictSummary(result: StrictResult): string {
  return [
    `strict mode: ${result.rounds} rounds in ${result.seconds} s: ${result.faults.kill} kill, ${result.faults.hang} hang`,
    `  operations on the register     ${result.operations}, ${result.acknowledgedWrites} writes acknowledged`,
    `  bytes streamed                 ${result.streamedBytes}`,
    `  suspended by itself            ${result.suspensions} times`,
    row('silence at a kill, ms', result.silenceMs.kill),
    row('silence at a hang, ms', result.silenceMs.hang),
    ...result.violations.map((what) => `  VIOLATION: ${what}`),
    ...(result.violations.length === 0 ? ['  no write lost, no connection broken, no byte wrong'] : []),
  ].join('\n');
}

const text = (value: number | null) => (value === null ? '-' : value.toFixed(1)).padStart(7);

const options = readOptions();
console.log(`seed ${options.seed} (the same again: npm run soak -- --seed ${options.seed})`);
const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => {
    if (!abort.signal.aborted) console.log('ending: the VM and what belongs to it go');
    process.exitCode = signal === 'SIGINT' ? 130 : 143;
    abort.abort();
  });
try {
  await sweepKilledRuns();
  const run = { ...options, ...NETWORK, signal: abort.signal, onProgress: console.log };
  const failover = options.only.includes('failover') ? await soakFailover(run) : null;
  // Held back packets are a tap's, and a tap is root's.
  const strict = options.only.includes('strict') && process.getuid?.() === 0 ? await soakStrict(run) : null;
  // Half as many: each of them reads two databases.
  const disks = options.only.includes('disks')
    ? await soakDisks({ ...run, rounds: Math.ceil(options.rounds / 2) })
    : null;
  const path = outPath('soak.json');
  writeFileSync(path, `${JSON.stringify({ seed: options.seed, failover, disks, strict }, null, 2)}\n`);
  if (failover !== null) console.log(`\n${summary(failover)}`);
  if (disks !== null) console.log(`\n${disksSummary(disks)}`);
  if (strict !== null) console.log(`\n${strictSummary(strict)}`);
  console.log('\nresult: out/soak.json');
  if ((failover?.failures.length ?? 0) + (disks?.failures.length ?? 0) + (strict?.violations.length ?? 0) > 0)
    process.exitCode = 1;
} catch (error) {
  console.error(`soak: ${messageOf(error)}`);
  process.exitCode = 1;
}
