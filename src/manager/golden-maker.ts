/** Takes golden snapshots: boots an image once, in the shape that is asked for, and keeps what has booted. */
import { randomBytes } from 'node:crypto';
import { existsSync, fstatSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../clock.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { cpuSeconds } from '../host/process-stat.js';
import { type GoldenShape, goldenPath } from '../image/golden.js';
import type { Image } from '../image/store.js';
import { beginBuild, cleanBuilds, pinImage, recordBoot } from '../image/store.js';
import { ShadowImage } from '../native/image.js';
import { isNativeFailure } from '../native/index.js';
import { macAddress } from '../network/address.js';
import type { DiskAttachment } from '../qemu/argv.js';
import type { QemuProcess } from '../qemu/process.js';
import { type VmSpec, vmSpecSchema } from '../vm/spec.js';
import type { OnProgress } from '../vm/view.js';
import { detach, VmDisks } from './disks.js';
import { bootBeat } from './first-beat.js';
import type { Host } from './host.js';
import { VmSides } from './sides.js';

/** A guest is ready when it has used less than this share of a CPU for so long: its services are up. */
const IDLE_SHARE = 0.15;
const IDLE_LOOKS = 3;
const LOOK_EVERY_MS = 150;
const SETTLE_MS_MAX = 15_000;
const SAVE_TIMEOUT_MS = 10_000;

export class GoldenMaker {
  /** By path: of two VMs that want the same snapshot one boots it. */
  private readonly making = new Map<string, Promise<void>>();

  constructor(private readonly host: Host) {}

  /**
   * The path of the golden snapshot, which is taken when it is missing: that takes a boot, and a moment.
   * @throws GOLDEN_FAILED with the reason; a VM can still boot without
   */
  async find(
    image: Image,
    spec: VmSpec,
    shape: GoldenShape,
    progress: OnProgress,
    signal: AbortSignal,
  ): Promise<string> {
    const path = goldenPath(image, shape);
    if (existsSync(path)) return path;
    let making = this.making.get(path);
    if (making === undefined) {
      progress({ message: `the image boots once for its golden snapshot (${shape.ramBytes / 2 ** 20} MiB)` });
      making = this.make(image, spec, shape, path).finally(() => this.making.delete(path));
      this.making.set(path, making);
    }
    making.catch(() => {}); // whoever gives up does not hear of it
    await Promise.race([making, aborted(signal)]);
    return path;
  }

  private async make(image: Image, like: VmSpec, shape: GoldenShape, path: string): Promise<void> {
    const { host } = this;
    const { ramBytes, vcpus, network, accelerator, disks } = like;
    const name = `golden-${randomBytes(4).toString('hex')}`;
    const spec = vmSpecSchema.parse({ name, image: image.name, ramBytes, vcpus, network, accelerator, disks });
    const vmDir = host.options.stateDir.vmDir(name);
    const sides = new VmSides(
      host,
      spec,
      shape.network === 'tap' ? host.tapNetwork(spec) : null,
      null,
      macAddress(`${host.tag} ${name}`),
    );
    const startedMs = monotonicMs();
    const attached = new VmDisks(vmDir, spec).attach('disk');
    let qemu: QemuProcess | null = null;
    try {
      host.requireMemory(ramBytes, 'boot the image for its golden snapshot', name);
      qemu = await sides.launch('p', {
        incoming: false,
        accelerator: shape.accelerator,
        disks: attached,
        kernel: await pinImage(image, vmDir),
        signal: AbortSignal.timeout(SETTLE_MS_MAX * 10),
        onSpawn: () => {},
        trailed: false,
      });
      await bootBeat(qemu, host.options.stateDir.consoleLogPath(name), AbortSignal.timeout(SETTLE_MS_MAX * 10));
      const bootMs = monotonicMs() - qemu.launchedAtMs;
      recordBoot(host.options.imagesDir, image.name, bootMs).catch(() => {}); // removed or replaced meanwhile
      await settled(qemu);
      await qemu.qmp.execute('stop');
      await qemu.saveDevices(SAVE_TIMEOUT_MS);
      await keep(qemu, image, path, attached, host.options.imagesDir);
      host.options.events.append(
        'info',
        'golden.made',
        null,
        `took the golden snapshot of ${image.name} in ${Math.round(monotonicMs() - startedMs)} ms: VMs of its shape start from it`,
        { image: image.name, ramBytes, vcpus, path },
      );
    } catch (cause) {
      throw new ShadowVmError('GOLDEN_FAILED', {
        attempted: 'take a golden snapshot',
        subject: image.name,
        reason: messageOf(cause),
        remedy: 'VMs of this image boot from power-on meanwhile',
        cause,
      });
    } finally {
      await qemu?.dispose();
      detach(attached);
      await sides.release();
      await rm(vmDir, { recursive: true, force: true });
    }
  }
}

/** Resolves when the guest has nothing to do any more, or after a while all the same: a busy guest is a snapshot too. */
async function settled(qemu: QemuProcess): Promise<void> {
  const untilMs = monotonicMs() + SETTLE_MS_MAX;
  let before = cpuSeconds(qemu.pid) ?? 0;
  for (let idle = 0; idle < IDLE_LOOKS && monotonicMs() < untilMs; ) {
    await sleep(LOOK_EVERY_MS);
    const now = cpuSeconds(qemu.pid) ?? 0;
    idle = now - before < (IDLE_SHARE * LOOK_EVERY_MS) / 1000 ? idle + 1 : 0;
    before = now;
  }
}

/** Written beside its place and packed into it, whole or not at all. Who was first wins: both are of the same image. */
async function keep(
  qemu: QemuProcess,
  image: Image,
  path: string,
  disks: readonly DiskAttachment[],
  imagesDir: string,
): Promise<void> {
  await cleanBuilds(imagesDir);
  const scratch = await beginBuild(imagesDir, image.name);
  try {
    const shadow = await ShadowImage.create(join(scratch, 'image'), {
      vm: image.name,
      ramBytes: qemu.ram.bytes,
      diskBytes: disks.reduce((sum, { fd }) => sum + fstatSync(fd).size, 0),
    });
    try {
      const fds = disks.map(({ fd }) => fd);
      const cut = { cutAtWallMs: Date.now(), cutAtMonotonicNs: process.hrtime.bigint() };
      await shadow.append({ epoch: 1, parent: 0, generation: 0, ...cut }, qemu.readDevices(), qemu.ram, fds);
      await shadow.pack({ path });
    } finally {
      await shadow.close();
    }
  } catch (error) {
    if (!(isNativeFailure(error) && error.code === 'EEXIST')) throw error;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Rejects when the signal says so. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const give = () => reject(signal.reason as Error);
    if (signal.aborted) give();
    else signal.addEventListener('abort', give, { once: true });
  });
}
