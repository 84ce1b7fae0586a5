/** A real VM's usage is forecast by a real manager, whose thresholds move with it, also after it was killed. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Daemon, sleep } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import type { ForecastView } from '../src/vm/usage-view.js';

const network = { bridge: 'svfore', subnet: '10.232.0.0/24' };
/** Seconds instead of minutes, so that a test has seasons. */
const argv = ['--forecast-interval', '1s', '--season', '8s'];
let daemon: Daemon;

beforeAll(async () => {
  daemon = await Daemon.start({ ...network, argv });
  await daemon.client.runVm({
    name: 'web',
    shadow: { kind: 'when', triggers: [{ metric: 'cpu', above: 'auto', heldMs: 500 }] },
  });
});
afterAll(async () => {
  await daemon.stop();
  expect(leftovers(daemon.stateDir)).toEqual([]);
});

async function demandOf(samplesMin: number): Promise<ForecastView> {
  for (let i = 0; i < 100; i++, await sleep(200)) {
    const demand = (await daemon.client.forecasts('web')).find((each) => each.metric === 'demand');
    if (demand !== undefined && demand.samples >= samplesMin) return demand;
  }
  throw new Error(`no forecast from ${samplesMin} samples`);
}

test('the threshold of an idle VM comes down, and its trigger fires at a load that is not usual', async () => {
  const before = (await daemon.client.thresholds('web')).find((each) => each.metric === 'cpu')!;
  expect(before.value).toBe(95);
  const demand = await demandOf(12);
  expect(demand.ahead[0]!.expected).toBeLessThan(40);
  const now = (await daemon.client.thresholds('web')).find((each) => each.metric === 'cpu')!;
  expect(now.value).toBeLessThan(90);
  expect(now.reason).toMatch(/is expected and at most/);

  await daemon.client.guestExec('web', 'shadowvm-guest cpuloop 3 &');
  const fired = await daemon.waitEvent('a shadow', ({ type }) => type === 'shadow.starting');
  expect(fired.data.because).toMatch(/^cpu at \d+ %, trigger cpu>auto\/500ms \(\d+ % now\)$/);
});

test('a manager that was killed forecasts from what it had learnt', async () => {
  const { samples } = await demandOf(15);
  await daemon.kill();
  daemon = await Daemon.start({ ...network, argv, stateDir: daemon.stateDir });
  const again = await demandOf(1);
  // The last second may not have been flushed, and the one of the restart is not measured.
  expect(again.samples).toBeGreaterThanOrEqual(samples - 2);
});
