/** A demo, a soak or these tests were killed: the next run finds a host without what was theirs. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { CHECKOUT } from '../harness/checkout.js';
import { Daemon } from '../harness/daemon.js';
import { statePrefix, sweepKilledRuns } from '../harness/killed-runs.js';
import { leftovers } from '../harness/leftovers.js';
import { Network, tapsPermitted } from '../src/network/network.js';
import { MIB } from '../src/vm/spec.js';

const permitted = tapsPermitted().ok;

/** Starts a manager with a VM from another process, which then is killed; with its manager, if so wanted. */
async function killedRun(withManager: boolean): Promise<string> {
  const program = `
    const { Daemon } = await import(${JSON.stringify(join(CHECKOUT, 'dist/harness/daemon.js'))});
    const daemon = await Daemon.start({ bridge: 'svkilled2', subnet: '10.214.45.0/24' });
    await daemon.client.runVm({ name: 'web', ramBytes: ${160 * MIB}, accelerator: 'tcg' });
    ${withManager ? 'await daemon.kill();' : ''}
    console.log(daemon.stateDir);
    setInterval(() => {}, 1000);`;
  const run = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(run.stdout, 'data')) as [Buffer];
  run.kill('SIGKILL');
  await once(run, 'exit');
  return line.toString().trim();
}

afterEach(async () => expect(await sweepKilledRuns()).toEqual([]));

test.skipIf(!permitted)('what a killed run left is gone, and a run that goes on keeps what it has', async () => {
  const living = await Daemon.start({ bridge: 'svkilled1', subnet: '10.214.44.0/24' });
  try {
    await living.client.runVm({ name: 'web', ramBytes: 160 * MIB, accelerator: 'tcg' });
    const kept = leftovers(living.stateDir);
    const killed = await killedRun(true);
    const left = leftovers(killed);
    expect(left.map((what) => what.split(' ')[0])).toEqual(expect.arrayContaining(['QEMU', 'interface', 'table']));

    expect(await sweepKilledRuns()).toEqual(left);
    expect(leftovers(killed)).toEqual([]);
    expect(existsSync(killed)).toBe(false);
    expect(leftovers(living.stateDir)).toEqual(kept);
    expect((await living.client.showVm('web')).state).toBe('running');
  } finally {
    await living.stop();
  }
});

test.skipIf(!permitted)('a manager that lives on without its run is ended', async () => {
  const killed = await killedRun(false);
  expect(leftovers(killed)).not.toEqual([]);
  await sweepKilledRuns();
  expect(leftovers(killed)).toEqual([]);
  expect(existsSync(killed)).toBe(false);
});

test.skipIf(!permitted)('interfaces whose state directory was deleted go too', async () => {
  const stateDir = statePrefix().replace(/\.[0-9a-z]+-$/, '.0-deleted');
  Network.open({ stateDir, bridge: 'svkilled3', subnet: '10.214.46.0/24' });
  expect(await sweepKilledRuns()).toEqual(['interface svkilled3']);
  expect(existsSync('/sys/class/net/svkilled3')).toBe(false);
});
