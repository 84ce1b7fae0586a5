/** The proof that a shadow would take over: a copy of it is really started, in isolation, and has to beat. */
import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { ShadowImage } from '../native/image.js';
import type { QemuProcess } from '../qemu/process.js';
import { imageError } from '../shadow/snapshot.js';
import { vmSpecSchema } from '../vm/spec.js';
import type { OnProgress, VerifyView } from '../vm/view.js';
import { detach, VmDisks } from './disks.js';
import { awakening } from './first-beat.js';
import type { Host } from './host.js';
import { VmSides } from './sides.js';
import { labelOf } from './snapshots.js';
import type { VmCore } from './vm-core.js';
import { letRun, loadFromImage } from './wake.js';

const FIRST_BEAT_MS_MAX = 10_000;
/** It has to go on beating, not just once. */
const BEATS_MIN = 5;
const EFFORT = 1;

/** @throws SHADOW_NOT_FOUND, SNAPSHOT_CORRUPT, PROMOTION_FAILED when the copy does not come up */
export async function verifyByStart(core: VmCore, host: Host, progress: OnProgress): Promise<VerifyView> {
  const attempted = 'verify the shadow';
  const startedMs = monotonicMs();
  const name = `verify-${randomBytes(4).toString('hex')}`;
  const spec = vmSpecSchema.parse({ ...core.spec, name, publish: [] });
  // A tap of its own that is no port of any bridge: it can send what it likes.
  const sides = new VmSides(host, spec, core.sides.network, null, core.mac);
  const file = join(host.options.stateDir.vmDir(core.name), `${name}.fold`);
  let qemu: QemuProcess | null = null;
  let damage: string | null = null;
  try {
    progress({ message: 'the newest epoch is copied' });
    await mkdir(host.options.stateDir.vmDir(name), { recursive: true, mode: 0o700 });
    const { epoch } = await core.shadowImage.pack(file, {
      epoch: 0,
      label: labelOf(core, Date.now()),
      baseCounts: false,
      effort: EFFORT,
    });
    const { image } = await ShadowImage.open(file);
    try {
      progress({ message: 'every page is read' });
      const { pages, damagedPages } = await image.verify({ dutyPercent: 50 });
      progress({ message: 'the copy starts, without network' });
      const disks = new VmDisks(host.options.stateDir.vmDir(name), spec);
      await disks.fill(image);
      const attached = disks.attach('disk');
      const launched = sides.launch('s', {
        incoming: true,
        accelerator: core.accelerator ?? 'tcg',
        disks: attached,
        kernel: host.options.stateDir.pinnedKernel(core.name),
        signal: AbortSignal.timeout(60_000),
        onSpawn: () => {},
        trailed: false,
      });
      qemu = await launched.finally(() => detach(attached));
      const deviceState = await image.deviceState(image.describe().headEpoch);
      const fromMs = monotonicMs();
      await loadFromImage(qemu, image, deviceState, core.hotPath, (page, why) => {
        damage = `page ${page}: ${why}`;
        qemu?.kill();
      });
      await letRun(qemu, null);
      const firstBeatMs = await beats(qemu, fromMs);
      if (damage !== null || firstBeatMs === null)
        throw new ShadowVmError('PROMOTION_FAILED', {
          attempted,
          subject: core.name,
          reason: damage ?? `the copy of epoch ${epoch} gave no heartbeat within ${FIRST_BEAT_MS_MAX} ms`,
          remedy: 'A fresh shadow may be sound: shadowvm shadow rm, then shadow create',
        });
      const ms = monotonicMs() - startedMs;
      core.event(
        'info',
        'shadow.verified',
        `a copy of epoch ${epoch} was started and beat after ${Math.round(firstBeatMs)} ms`,
        {
          epoch,
          firstBeatMs,
        },
      );
      return { vm: core.name, epoch, pages, damagedPages: damagedPages.length, firstBeatMs, ms };
    } finally {
      await qemu?.dispose();
      await image.close();
    }
  } catch (error) {
    throw imageError(error, attempted, core.name);
  } finally {
    await sides.release();
    await rm(file, { force: true });
    await rm(host.options.stateDir.vmDir(name), { recursive: true, force: true });
  }
}

/** ms from `fromMs` to the first of enough heartbeats; null when they do not come. */
async function beats(qemu: QemuProcess, fromMs: number): Promise<number | null> {
  await awakening(qemu, FIRST_BEAT_MS_MAX);
  const untilMs = monotonicMs() + FIRST_BEAT_MS_MAX;
  while (qemu.agent.beats < BEATS_MIN && monotonicMs() < untilMs) await sleep(10);
  const firstNs = qemu.agent.firstSignAtNs;
  return firstNs === null || qemu.agent.beats < BEATS_MIN ? null : Number(firstNs) / 1e6 - fromMs;
}
