/** How long the guest stands still for one epoch, against QEMU's own ways to save the same guest. */
import { join } from 'node:path';
import { nowMs, sleep } from '../harness/daemon.js';
import { ShadowImage } from '../src/native/image.js';
import { Protector } from '../src/protect/protector.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { MIB, pacingSchema } from '../src/vm/spec.js';
import type { BenchGuests } from './guest.js';
import { migrateTo, unthrottle } from './migrate.js';
import { p50, round } from './statistics.js';

/** Epochs for the p99 of ours: a tail needs more than twenty samples. */
const EPOCHS_MIN = 200;

export interface PauseResult {
  oursMsP50: number;
  oursMsP99: number;
  migrateFileMsP50: number;
  migrateIgnoreSharedMsP50: number;
  epochs: number;
  lagMsP50: number;
  /** migrate to a file ÷ ours. */
  timesShorterThanFile: number;
}

export async function benchPause(guests: BenchGuests, ramMiB: number, rounds: number): Promise<PauseResult> {
  const vm = await guests.bootLoaded(ramMiB);
  try {
    const ours = await measureOurs(guests, vm, ramMiB);
    await unthrottle(vm);
    const file = await measureMigrate(guests, vm, rounds);
    await vm.qmp.execute('migrate-set-capabilities', {
      capabilities: [{ capability: 'x-ignore-shared', state: true }],
    });
    const ignoreShared = await measureMigrate(guests, vm, rounds);
    return {
      ...ours,
      migrateFileMsP50: p50(file),
      migrateIgnoreSharedMsP50: p50(ignoreShared),
      timesShorterThanFile: round(p50(file) / ours.oursMsP50),
    };
  } finally {
    await vm.dispose();
  }
}

async function measureOurs(guests: BenchGuests, vm: QemuProcess, ramMiB: number) {
  const image = await ShadowImage.create(join(guests.dir, `pause-${ramMiB}`), { vm: 'bench', ramBytes: ramMiB * MIB });
  let lost: unknown = null;
  const protector = new Protector({
    primary: vm,
    image,
    generation: 0,
    tracking: 'write',
    pacing: pacingSchema.parse({}),
    durability: 'interval',
    from: null,
    followed: false,
    resident: () => null,
    output: () => null,
    events: {
      ready: () => {},
      aborted: () => {},
      repaired: () => {},
      lost: (error) => {
        lost = error;
      },
    },
  });
  try {
    protector.start();
    while (protector.stats().pauseMs.count < EPOCHS_MIN) {
      if (lost !== null) throw lost;
      await sleep(50);
    }
    const { pauseMs, lagMsAtCommit } = protector.stats();
    return {
      oursMsP50: round(pauseMs.p50 ?? Number.NaN),
      oursMsP99: round(pauseMs.p99 ?? Number.NaN),
      epochs: pauseMs.count,
      lagMsP50: round(lagMsAtCommit.p50 ?? Number.NaN),
    };
  } finally {
    await protector.close();
    await image.close();
  }
}

/** stop, migrate, cont. @returns ms that the guest stood still, per round */
async function measureMigrate(guests: BenchGuests, vm: QemuProcess, rounds: number): Promise<number[]> {
  const pauses: number[] = [];
  for (let i = 0; i < rounds; i++) {
    const startMs = nowMs();
    await vm.qmp.execute('stop');
    await migrateTo(vm, join(guests.dir, 'migrate.sock'), null);
    await vm.qmp.execute('cont');
    pauses.push(nowMs() - startMs);
    await sleep(100);
  }
  return pauses;
}
