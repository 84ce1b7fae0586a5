/**
 * The main job, to watch: a Redis server in a VM survives the death of its VM.
 *
 *   npm run demo [-- --fault kill|hang|panic] [--mode strict|async]
 */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { outPath } from '../harness/checkout.js';
import { Daemon, nowMs, sleep } from '../harness/daemon.js';
import { readImage } from '../harness/image.js';
import { sweepKilledRuns } from '../harness/killed-runs.js';
import { leftovers } from '../harness/leftovers.js';
import { messageOf } from '../src/errors.js';
import { MIB, type Mode } from '../src/vm/spec.js';
import type { Event, PromotionView, VmView } from '../src/vm/view.js';
import { NumberedWriter } from './writer.js';

const FAULTS = {
  kill: 'SIGKILL to the QEMU of the primary, in full traffic',
  hang: 'SIGSTOP to the QEMU of the primary: its vCPUs stand still',
  panic: 'a kernel panic in the guest',
} as const;
type Fault = keyof typeof FAULTS;

const PROTECTED_TRAFFIC_MS = 4000;
const TRAFFIC_AFTER_MS = 2000;
const REDIS_PORT = 6379;
const PUBLISHED_PORT = 16379;
const SIGNALS = { kill: 'SIGKILL', hang: 'SIGSTOP' } as const;

const AS_ROOT = process.getuid?.() === 0;
/** In strict mode the client keeps its one connection through all of it. */
const PATIENT_MS = 10_000;

const startedMs = nowMs();

function say(what: string, figures = ''): void {
  const seconds = ((nowMs() - startedMs) / 1000).toFixed(2).padStart(6);
  console.log(`${seconds} s  ${what.padEnd(62)} ${figures}`.trimEnd());
}

function readArguments(): { fault: Fault; mode: Mode } {
  const usage = `usage: npm run demo [-- --fault ${Object.keys(FAULTS).join('|')}] [--mode strict|async]`;
  try {
    const { values } = parseArgs({
      options: {
        fault: { type: 'string', default: 'kill' },
        // Strict mode holds packets back at a tap, which takes root.
        mode: { type: 'string', default: AS_ROOT ? 'strict' : 'async' },
        help: { type: 'boolean' },
      },
    });
    if (values.help) {
      console.log(usage);
      process.exit(0);
    }
    const { fault, mode } = values;
    if (!(fault in FAULTS)) console.error(`demo: unknown fault "${fault}"\n${usage}`);
    else if (mode !== 'strict' && mode !== 'async') console.error(`demo: unknown mode "${mode}"\n${usage}`);
    else return { fault: fault as Fault, mode };
  } catch (error) {
    console.error(`demo: ${(error as Error).message}\n${usage}`);
  }
  process.exit(2);
}

/** Waits until Redis answers; a VM beats before its services are up. */
/** The moment, CLOCK_MONOTONIC ms, at which an epoch after this one is there; seen within some ms. */
async function nextEpoch(daemon: Daemon, after: number): Promise<number> {
  for (const until = nowMs() + 30_000; nowMs() < until; await sleep(5)) {
    const [shadow] = await daemon.client.listShadows();
    if (shadow !== undefined && shadow.epoch > after) return nowMs();
  }
  throw new Error('the new primary was not protected again');
}

async function redisUp(host: string, port: number): Promise<void> {
  const probe = new NumberedWriter(host, port);
  probe.start();
  await probe.firstReplyAfter(0, 30_000);
  await probe.stop();
}

async function injectFault(daemon: Daemon, vm: VmView, fault: Fault): Promise<number> {
  if (fault === 'panic') return Number((await daemon.client.injectFault(vm.name, 'panic')).atNs) / 1e6;
  const atMs = nowMs();
  process.kill(vm.pid as number, SIGNALS[fault]);
  return atMs;
}

async function demo(daemon: Daemon, fault: Fault, mode: Mode) {
  const { client } = daemon;
  const image = await readImage();
  say('ShadowVM Manager is up', `image ${image.imageMiB.toFixed(1)} MiB`);

  const booted = await client.runVm({
    name: 'redis',
    ramBytes: 256 * MIB,
    shadow: { kind: 'when', triggers: [{ metric: 'cpu', above: 60, heldMs: 2000 }] },
    mode,
    ...(AS_ROOT ? {} : { network: 'user' as const, publish: [{ hostPort: PUBLISHED_PORT, guestPort: REDIS_PORT }] }),
  });
  const [host, port] = booted.address === null ? ['127.0.0.1', PUBLISHED_PORT] : [booted.address, REDIS_PORT];
  say(
    `VM redis runs on ${booted.accelerator}, ${booted.networkMode} network ${host}:${port}`,
    `up in ${ms(booted.bootMs)}, from the ${booted.origin} state`,
  );

  await redisUp(host, port);
  const writer = new NumberedWriter(host, port, mode === 'strict' ? PATIENT_MS : undefined);
  writer.start();
  say('a client writes numbered keys as fast as they are acknowledged');

  const starting = await daemon.waitEvent('the shadow', (e) => e.type === 'shadow.starting');
  say('the load crosses the threshold, a shadow is made', String(starting.data.because));
  const ready = await daemon.waitEvent('the first epoch', (e) => e.type === 'shadow.ready', { since: starting.seq });
  say('the shadow is ready', `after ${ms(between(starting, ready))}`);
  await sleep(PROTECTED_TRAFFIC_MS);

  const before = await client.showVm('redis');
  const stats = before.shadow;
  if (stats === null) throw new Error('the shadow is gone before the fault');
  say(
    `${stats.epoch} epochs committed, ${writer.acknowledged.length} writes acknowledged`,
    `pause p50 ${ms(stats.pauseMs.p50)}, lag p50 ${ms(stats.lagMsAtCommit.p50)}`,
  );

  const connectionsBefore = writer.connections;
  const faultAtMs = await injectFault(daemon, before, fault);
  say(FAULTS[fault]);
  const promoted = await daemon.waitEvent('the promotion', (e) => e.type === 'promotion.done', { since: ready.seq });
  const promotion = promoted.data as PromotionView;
  const detectMs = Number(promotion.decidedAtNs) / 1e6 - faultAtMs;
  const resumedAtMs = Number(promotion.resumedAtNs) / 1e6;
  const firstReplyAtMs = await writer.firstReplyAfter(resumedAtMs, 30_000);
  say(`the manager decides: ${promotion.reason}`, `after ${ms(detectMs)}`);
  say(
    `the shadow runs, from epoch ${promotion.epoch}, generation ${promotion.generation}`,
    `${ms(promotion.resumeMs)} later`,
  );
  say('the first reply of Redis reaches the client', `${ms(firstReplyAtMs - faultAtMs)} after the fault`);

  // The image can be promoted from again at once; what counts is the first epoch of the new primary in it.
  const committed = await nextEpoch(daemon, promotion.epoch);
  const reprotectMs = committed - Number(promotion.resumedAtNs) / 1e6;
  say('the first epoch of the new primary is committed', `${ms(reprotectMs)} after the promotion`);
  await sleep(TRAFFIC_AFTER_MS);
  await writer.stop();

  const missing = await writer.readBack();
  const cutAtMs = Number(promotion.cutAtNs) / 1e6;
  const connectionSurvived = writer.connections === connectionsBefore;
  // Acknowledged by the old primary, and after the cut of the epoch that was promoted. A reply may be read some time
  // after its sender has died, so the connection tells whose it was, as far as there was a new one.
  const lostWithinLag = missing.every(
    ({ atMs, connection }) =>
      atMs >= cutAtMs && connection === connectionsBefore && (!connectionSurvived || atMs <= resumedAtMs),
  );
  say(
    `every key read back: ${writer.acknowledged.length} acknowledged, ${missing.length} lost`,
    missing.length === 0
      ? ''
      : `all lost ones younger than the lag of ${ms(promotion.lagMs)}: ${lostWithinLag ? 'yes' : 'NO'}`,
  );
  say(
    connectionSurvived ? 'the connection of the client survived' : 'the client had to connect anew',
    mode === 'strict' ? 'strict mode: what it was told was committed' : 'async mode',
  );
  await client.stopVm('redis');
  say('the VM has shut down');

  return {
    accelerator: booted.accelerator,
    imageMiB: image.imageMiB,
    // Of the image, from power-on; this VM may have started from the state after it.
    bootMs: (await readImage()).bootMs ?? booted.bootMs,
    startMs: booted.bootMs,
    trigger: starting.data.because,
    fault,
    mode,
    epochs: stats.epoch,
    pauseMsP50: stats.pauseMs.p50,
    pauseMsP99: stats.pauseMs.p99,
    lagMsP50: stats.lagMsAtCommit.p50,
    lagMsMax: stats.lagMsAtCommit.max,
    lagMsAtFault: promotion.lagMs,
    detectMs,
    resumeMs: promotion.resumeMs,
    firstReplyMs: firstReplyAtMs - faultAtMs,
    writesAcknowledged: writer.acknowledged.length,
    writesLost: missing.length,
    lostWithinLag,
    connectionSurvived,
    reprotectMs,
    networkMode: booted.networkMode,
    tracking: stats.tracking,
  };
}

const ms = (value: number | null) => (value === null ? '-' : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
const between = (from: Event, to: Event) => (Number(to.atNs) - Number(from.atNs)) / 1e6;

const { fault, mode } = readArguments();
await sweepKilledRuns();
const daemon = await Daemon.start();
try {
  const result = await demo(daemon, fault, mode);
  await daemon.stop();
  const left = leftovers(daemon.stateDir);
  say(left.length === 0 ? 'the manager has ended and left nothing behind' : `left behind: ${left.join(', ')}`);
  const path = outPath('demo.json');
  writeFileSync(path, `${JSON.stringify(result, null, 2)}\n`);
  console.log(`\nresult: out/demo.json`);
  const broken = mode === 'strict' && (result.writesLost > 0 || !result.connectionSurvived);
  if (broken || !result.lostWithinLag || left.length > 0) process.exitCode = 1;
} catch (error) {
  console.error(`demo: ${messageOf(error)}`);
  console.error(daemon.log().split('\n').slice(-15).join('\n'));
  process.exitCode = 1;
} finally {
  await daemon.stop();
}
