/** Fencing waits for an epoch that is becoming whole, and for nothing else. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { EpochPhases, sleepPrecisely } from '../soak/phases.js';
import { MIB } from '../src/vm/spec.js';

/** Less than EpochPhases waits for an epoch. */
const MAX_LAG_MS = 4000;
/** 32 MiB, of which an epoch finds more than what is no surprise. */
const WRITTEN_PAGES = 8192;
const PAGE_BYTES = 4096;

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open();
});
afterAll(() => manager.close());

test('a VM that dies in a commit is not promoted only when the next epoch would have been due', async () => {
  // Epochs so rare that the interval between two can not be mistaken for anything else.
  await manager.runVm({
    name: 'rare',
    network: 'none',
    shadow: { kind: 'always' },
    pacing: { maxLagMs: MAX_LAG_MS, maxPausedShare: 0.0001 },
  });
  await manager.port.guestExec('rare', `shadowvm-guest memwriter ${(WRITTEN_PAGES * PAGE_BYTES) / MIB} 20 &`);
  await manager.shadowReady('rare');
  const vm = manager.port.vmForTest('rare');
  const { primary } = manager.processes('rare');
  const phases = new EpochPhases(primary, () => vm.shadow);
  const promoted = manager.nextPromotion('rare');
  // The third epoch is the first that was paced by what the ones before it cost.
  await manager.until('a paced epoch', () => (vm.shadow?.view().intervalMs ?? 0) > MAX_LAG_MS / 2);
  // The memory writer's first epoch surprises the manager and pauses twice; the one in whose commit the VM dies must not.
  const changed = () => vm.shadow?.changedPages ?? 0;
  const before = changed();
  await manager.until('an epoch with what was written', () => changed() - before > WRITTEN_PAGES / 2);
  const { epoch } = manager.port.listShadows()[0] ?? { epoch: 0 };
  await phases.enter('commit', 0);
  // The commit of 32 MiB takes several ms; QEMU's answer to `cont`, which begins it, is there after a part of one.
  await sleepPrecisely(1);
  primary.kill();
  const promotion = await promoted;
  phases.close();
  expect(promotion.epoch).toBe(epoch + 1);
  expect(promotion.resumeMs).toBeLessThan(MAX_LAG_MS / 4);
});
