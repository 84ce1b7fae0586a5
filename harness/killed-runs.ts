/**
 * What a run that was killed left on the host: VMs live on without their manager, as they should, and nobody will ever
 * take these over again. Demo, bench, soak and tests begin with this, so that the next run finds the host as the first did.
 */
import { readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { openCgroups } from '../src/allocate/cgroup.js';
import { startTicks } from '../src/host/process-stat.js';
import { stateTag } from '../src/network/address.js';
import { Firewall } from '../src/network/firewall.js';
import { networkOwners, sweepNetwork, tapsPermitted } from '../src/network/network.js';
import { leftovers, qemusOf, readText } from './leftovers.js';

const DAEMON_END_MS = 20_000;

/** All state directories of this process begin like this. Its start is in it, as process numbers come again. */
export function statePrefix(): string {
  const start = startTicks(process.pid) as number;
  return join(tmpdir(), `shadowvm-${process.pid.toString(36)}.${start.toString(36)}-`);
}

/** Of a process that is no more. */
function isKilled(stateDir: string): boolean {
  const [, pid, start] = /^shadowvm-([0-9a-z]+)\.([0-9a-z]+)-/.exec(basename(stateDir)) ?? [];
  if (pid === undefined || start === undefined) return false;
  return startTicks(Number.parseInt(pid, 36)) !== Number.parseInt(start, 36);
}

/** Says what it takes away. @returns what was there */
export async function sweepKilledRuns(): Promise<string[]> {
  const inTmp = readdirSync(tmpdir()).map((name) => join(tmpdir(), name));
  // Interfaces can be all that is left.
  const owners = tapsPermitted().ok ? networkOwners() : [];
  const found: string[] = [];
  for (const dir of new Set([...inTmp, ...owners].filter(isKilled))) {
    await endDaemon(dir);
    found.push(...leftovers(dir));
    await sweepState(dir);
  }
  if (found.length > 0) process.stderr.write(`a run that was killed had left: ${found.join(', ')}; that is gone now\n`);
  return found;
}

/** A manager is a process of its own, and lives on without the one that started it. */
async function endDaemon(dir: string): Promise<void> {
  const pid = Number.parseInt(readText(join(dir, 'daemon.lock')), 10);
  const lives = () => readText(`/proc/${pid}/cmdline`).includes(dir);
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (lives()) process.kill(pid, signal);
    for (const untilMs = performance.now() + DAEMON_END_MS; lives() && performance.now() < untilMs; ) await sleep(20);
  }
}

async function sweepState(dir: string): Promise<void> {
  for (const pid of qemusOf(dir)) process.kill(pid, 'SIGKILL');
  if (tapsPermitted().ok) sweepNetwork(dir);
  await new Firewall(stateTag(dir), () => {}).sweep();
  const { driver } = openCgroups(`shadowvm-${stateTag(dir)}`);
  // A process that was killed leaves its cgroup only when it is reaped.
  for (let tries = 0; tries < 100 && driver !== null && (await driver.sweep('')).busy.length > 0; tries++)
    await sleep(10);
  driver?.close();
  rmSync(dir, { recursive: true, force: true });
}
