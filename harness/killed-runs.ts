/**
 * What a run that was killed left on the host: VMs live on without their manager, as they should, and nobody will ever
 * take these over again. Demo, bench, soak and tests begin with this, so that the next run finds the host as the first did.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openCgroups } from '../src/allocate/cgroup.js';
import { ShadowVmError } from '../src/errors.js';
import { StateDir } from '../src/manager/state-dir.js';
import { stateTag } from '../src/network/address.js';
import { Firewall } from '../src/network/firewall.js';
import { networkOwners, sweepNetwork, tapsPermitted } from '../src/network/network.js';
import { leftovers, qemusOf } from './leftovers.js';

/** All state directories of the harness begin like this, and nobody else's do. */
export const statePrefix = (): string => join(tmpdir(), 'shadowvm-');

/** Says what it takes away. A state whose manager runs is left as it is. @returns what was there */
export async function sweepKilledRuns(): Promise<string[]> {
  const found: string[] = [];
  for (const dir of stateDirs()) found.push(...(await sweepState(dir)));
  if (found.length > 0) process.stderr.write(`a run that was killed had left: ${found.join(', ')}; that is gone now\n`);
  return found;
}

function stateDirs(): Set<string> {
  const inTmp = readdirSync(tmpdir()).map((name) => join(tmpdir(), name));
  const owners = tapsPermitted().ok ? networkOwners() : [];
  return new Set([
    ...inTmp.filter((dir) => dir.startsWith(statePrefix()) && existsSync(join(dir, 'daemon.lock'))),
    ...owners.filter((dir) => dir.startsWith(statePrefix())),
  ]);
}

async function sweepState(dir: string): Promise<string[]> {
  // Interfaces can be all that is left.
  const state = existsSync(dir) ? openUnlessInUse(dir) : undefined;
  if (state === null) return [];
  const found = leftovers(dir);
  for (const pid of qemusOf(dir)) process.kill(pid, 'SIGKILL');
  if (tapsPermitted().ok) sweepNetwork(dir);
  await new Firewall(stateTag(dir), () => {}).sweep();
  await sweepCgroups(dir);
  await state?.close();
  rmSync(dir, { recursive: true, force: true });
  return found;
}

/** null when a manager has it, or another user. */
function openUnlessInUse(dir: string): StateDir | null {
  try {
    return StateDir.open(dir);
  } catch (error) {
    if (error instanceof ShadowVmError && ['STATE_LOCKED', 'NOT_ROOT', 'INVALID_ARGUMENT'].includes(error.code))
      return null;
    throw error;
  }
}

async function sweepCgroups(dir: string): Promise<void> {
  const { driver } = openCgroups(`shadowvm-${stateTag(dir)}`);
  if (driver === null) return;
  // A process that was killed leaves its cgroup only when it is reaped.
  for (let tries = 0; tries < 100 && (await driver.sweep('')).busy.length > 0; tries++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  driver.close();
}
