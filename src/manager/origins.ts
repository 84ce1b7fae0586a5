/** What a VM starts from: its image's golden snapshot, power-on, a snapshot of its own, an epoch of another VM. */
import { randomBytes } from 'node:crypto';
import { messageOf, ShadowVmError } from '../errors.js';
import { goldenHotPath } from '../image/golden.js';
import { findImage, type Image } from '../image/store.js';
import type { ShadowImage } from '../native/image.js';
import type { GuestIdentity } from '../qemu/agent.js';
import { readEpoch } from '../shadow/epochs.js';
import { parseLabel } from '../shadow/snapshot.js';
import type { OnProgress, VmOrigin, WantedEpoch } from '../vm/view.js';
import { areBlank } from './disks.js';
import { GoldenMaker } from './golden-maker.js';
import type { Host } from './host.js';
import type { StartFrom } from './primary-start.js';
import { labelOf } from './snapshots.js';
import type { ManagedVm } from './vm.js';
import type { VmCore } from './vm-core.js';

const SEED_BYTES = 64;
/** A copy is read once, soon: compression that is quick beats one that is tight. */
const COPY_EFFORT = 1;

export class Origins {
  private readonly goldens: GoldenMaker;

  constructor(private readonly host: Host) {
    this.goldens = new GoldenMaker(host);
  }

  /** A new VM. It boots where a golden snapshot is not wanted or can not be had. */
  async fresh(core: VmCore, image: Image, progress: OnProgress, giveUp: AbortSignal): Promise<StartFrom> {
    await core.pinKernel(image);
    await core.disks.create(progress);
    // What is on a disk is looked at while a guest boots.
    if (core.spec.start === 'boot' || !areBlank(core.spec.disks)) return { origin: 'boot' };
    try {
      const { ramBytes, vcpus, disks } = core.spec;
      const { networkMode: network, accelerator } = core;
      const shape = {
        ramBytes,
        vcpus,
        network,
        accelerator: accelerator ?? 'tcg',
        qemu: this.host.qemu.version,
        disks,
      };
      const path = await this.goldens.find(image, core.spec, shape, progress, giveUp);
      return await this.fromBase(core, await core.shadowImage.setBase(path), 'golden', goldenHotPath(path));
    } catch (error) {
      giveUp.throwIfAborted();
      const why = error instanceof ShadowVmError ? error.reason : messageOf(error);
      core.event('warn', 'golden.failed', `there is no golden snapshot to start from, the VM boots: ${why}`, {});
      return { origin: 'boot' };
    }
  }

  /** A stopped VM from power-on; its shadow image goes on from the differences. @throws IMAGE_NOT_FOUND */
  async again(core: VmCore, progress: OnProgress): Promise<StartFrom> {
    progress({ message: 'the VM boots anew' });
    const kernel = this.host.options.stateDir.pinnedKernel(core.name);
    await core.pinKernel(kernel ?? (await findImage(this.host.options.imagesDir, core.spec.image)));
    return { origin: 'boot' };
  }

  /** A stopped VM from what it left, or what was imported. @throws SNAPSHOT_NOT_FOUND, SNAPSHOT_* */
  async snapshot(core: VmCore, progress: OnProgress, giveUp: AbortSignal): Promise<StartFrom> {
    progress({ message: 'the snapshot is opened' });
    const image = await core.shadowImage.openSnapshot(core.snapshot !== null);
    giveUp.throwIfAborted();
    core.findKernel();
    const { headEpoch } = image.describe();
    if (image !== core.shadowImage.opened) return this.fromBase(core, image, 'snapshot');
    await core.disks.fill(image);
    const epoch = await readEpoch(image, headEpoch, core.name);
    const { deviceState } = epoch;
    return { origin: 'snapshot', image, epoch, deviceState, hotPath: core.hotPath, identity: this.identity(core) };
  }

  /** A new VM from an epoch of another one. @throws SNAPSHOT_NOT_FOUND, EPOCH_NOT_FOUND, NO_SPACE */
  async clone(
    core: VmCore,
    source: ManagedVm,
    wanted: WantedEpoch | null,
    progress: OnProgress,
    giveUp: AbortSignal,
  ): Promise<StartFrom> {
    progress({ message: `an epoch of ${source.spec.name} is copied` });
    const epoch = wanted === null ? 0 : source.findEpoch(wanted);
    await source.core.shadowImage.pack(core.shadowImage.basePath, {
      epoch,
      label: labelOf(source.core, Date.now()),
      baseCounts: source.core.snapshot !== null,
      effort: COPY_EFFORT,
    });
    giveUp.throwIfAborted();
    await core.copyKernel(source.core);
    return this.fromBase(core, await core.shadowImage.openSource(), 'clone');
  }

  private async fromBase(
    core: VmCore,
    base: ShadowImage,
    origin: Exclude<VmOrigin, 'boot'>,
    hotPath = core.hotPath,
  ): Promise<StartFrom> {
    const deviceState = await base.deviceState(base.describe().headEpoch);
    await core.disks.fill(base);
    if (origin !== 'golden') core.heat.take(parseLabel(base.describe().label, core.name).heat ?? {});
    return { origin, image: base, epoch: null, deviceState, hotPath, identity: this.identity(core) };
  }

  private identity(core: VmCore): Omit<GuestIdentity, 'wallClockMs'> {
    const { network, guest } = core.sides;
    const address6 = guest?.address6 ?? null;
    return {
      hostname: core.name,
      mac: core.networkMode === 'none' ? null : core.mac,
      address: network === null || core.address === null ? null : `${core.address}/${network.subnet.prefixLength}`,
      gateway: network === null ? null : network.hostAddress,
      address6: address6 === null ? null : `${address6}/${network?.subnet6?.prefixLength}`,
      gateway6: network?.hostAddress6 ?? null,
      seed: randomBytes(SEED_BYTES),
    };
  }
}
