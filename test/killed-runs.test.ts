/** A demo, a soak or these tests were killed: the next run finds a host without what was theirs. */
import { existsSync } from 'node:fs';
import { expect, test } from 'vitest';
import { Daemon } from '../harness/daemon.js';
import { statePrefix, sweepKilledRuns } from '../harness/killed-runs.js';
import { leftovers } from '../harness/leftovers.js';
import { Network, tapsPermitted } from '../src/network/network.js';
import { MIB } from '../src/vm/spec.js';

const permitted = tapsPermitted().ok;

test.skipIf(!permitted)('what a killed manager left is gone, and a manager that runs keeps what it has', async () => {
  const living = await Daemon.start({ bridge: 'svkilled1', subnet: '10.214.44.0/24' });
  const killed = await Daemon.start({ bridge: 'svkilled2', subnet: '10.214.45.0/24' });
  try {
    for (const { client } of [living, killed])
      await client.runVm({ name: 'web', ramBytes: 160 * MIB, accelerator: 'tcg' });
    await killed.kill();
    const [kept, left] = [leftovers(living.stateDir), leftovers(killed.stateDir)];
    expect(left.map((what) => what.split(' ')[0])).toEqual(expect.arrayContaining(['QEMU', 'interface', 'table']));

    expect(await sweepKilledRuns()).toEqual(expect.arrayContaining(left));
    expect(leftovers(killed.stateDir)).toEqual([]);
    expect(existsSync(killed.stateDir)).toBe(false);
    expect(leftovers(living.stateDir)).toEqual(kept);
    expect((await living.client.showVm('web')).state).toBe('running');
  } finally {
    await living.stop();
  }
  expect(await sweepKilledRuns()).toEqual([]);
});

test.skipIf(!permitted)('interfaces whose state directory was deleted go too', async () => {
  const options = { stateDir: `${statePrefix()}deleted-${process.pid}`, bridge: 'svkilled3', subnet: '10.214.46.0/24' };
  Network.open(options);
  expect(await sweepKilledRuns()).toEqual(['interface svkilled3']);
  expect(existsSync('/sys/class/net/svkilled3')).toBe(false);
});
