/** What a promotion tells of itself, planned and after a death, on the real QEMU. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { promotionViewSchema } from '../src/vm/view.js';

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: 'svpromo0', subnet: '10.219.9.0/24' });
  await manager.runVm({ name: 'web', accelerator: 'tcg', network: 'none', shadow: { kind: 'always' } });
  await manager.shadowReady('web');
});
afterAll(() => manager.close());

test('a planned one rolls back nothing, although its epoch is cut after the decision', async () => {
  const done = promotionViewSchema.parse(await manager.port.promoteShadow('web', null));
  expect(done).toMatchObject({ vm: 'web', planned: true, reason: 'by hand', generation: 1, lagMs: 0 });
  expect(BigInt(done.cutAtNs)).toBeGreaterThan(BigInt(done.decidedAtNs));
  await manager.shadowReady('web');
});

test('one after a death tells how old its epoch was at the decision', async () => {
  const promotion = manager.nextPromotion('web');
  await manager.port.injectFault('web', 'kill');
  const done = promotionViewSchema.parse(await promotion);
  expect(done).toMatchObject({ planned: false, generation: 2, reason: expect.stringContaining('process-died') });
  expect(done.lagMs).toBeGreaterThan(0);
  expect(done.lagMs).toBeCloseTo(Number(BigInt(done.decidedAtNs) - BigInt(done.cutAtNs)) / 1e6, 3);
});
