/** What the parts of a VM share: who it is, what it has on the host, which process is its primary. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { DiskStall } from '../disk/disk-stall.js';
import { pinImage } from '../image/store.js';
import { macAddress } from '../network/address.js';
import type { CommittedEpoch } from '../protect/protector.js';
import type { Kernel } from '../qemu/argv.js';
import type { QemuProcess } from '../qemu/process.js';
import type { ShadowOptions } from '../shadow/shadow.js';
import type { VmSpec } from '../vm/spec.js';
import type { SnapshotView, VmOrigin, VmState } from '../vm/view.js';
import { DiskHeat } from './disk-heat.js';
import { detach, VmDisks } from './disks.js';
import type { Host } from './host.js';
import { type Side, VmSides } from './sides.js';
import type { VmRecord } from './state-dir.js';
import { StrictMode } from './strict-mode.js';
import { VmImage } from './vm-image.js';

export class VmCore {
  state: VmState = 'starting';
  primary: QemuProcess | null = null;
  /** The side that the primary is on. */
  side: Side = 'p';
  accelerator: 'kvm' | 'tcg' | null = null;
  origin: VmOrigin = 'boot';
  generation: number;
  /** The address that it has, or had: a VM that starts again gets it back where it is free. */
  lastAddress: string | null;
  failure: string | null = null;
  /** Of a VM that has ended: what it can be started from. */
  snapshot: SnapshotView | null = null;
  /** The epoch of its image that the primary woke up from, until a shadow has gone on from it; null when there is none. */
  wokeFrom: CommittedEpoch | null = null;
  /** Every write since the primary was what its image (or its image's base) holds is still to be reported. */
  followed = false;
  /** When a disk of it was last resized: no epoch is older than that. null: not since this manager has it. */
  resizedAtMs: number | null = null;
  /** Resolves when a promoted guest is awake: it needs the CPU for itself until then. */
  awake: Promise<void> = Promise.resolve();
  /** Resolves when the side that is not the primary's is free for a new QEMU. */
  otherSideFree: Promise<void> = Promise.resolve();
  readonly sides: VmSides;
  readonly shadowImage: VmImage;
  readonly disks: VmDisks;
  readonly heat: DiskHeat;
  readonly strict: StrictMode;
  readonly mac: string;
  readonly createdAt: string;
  /** Aborted with the error that a start is to throw. */
  readonly giveUp = new AbortController();
  /** The VM's own names of its image's files: a shadow has to be started with what its primary was started with. */
  private kernel: Kernel | null = null;

  constructor(
    readonly host: Host,
    readonly spec: VmSpec,
    /** On the tap network; null in the other modes. */
    readonly address: string | null,
    record: (Pick<VmRecord, 'generation' | 'createdAt'> & Partial<Pick<VmRecord, 'address'>>) | null = null,
  ) {
    this.generation = record?.generation ?? 0;
    this.lastAddress = address ?? record?.address ?? null;
    this.createdAt = record?.createdAt ?? new Date().toISOString();
    this.mac = macAddress(`${host.tag} ${spec.name}`);
    this.sides = new VmSides(host, spec, address === null ? null : host.tapNetwork(spec), address, this.mac);
    this.shadowImage = new VmImage(host, spec);
    this.disks = new VmDisks(host.options.stateDir.vmDir(spec.name), spec);
    this.heat = new DiskHeat(this);
    this.strict = new StrictMode(this, spec.mode);
  }

  get name(): string {
    return this.spec.name;
  }

  /** A file with what the guest needs first when it wakes up; beside it is one with what it needs then. */
  get hotPath(): string {
    return join(this.host.options.stateDir.vmDir(this.name), 'awakening.hot');
  }

  get networkMode(): 'tap' | 'user' | 'none' {
    if (this.sides.network !== null) return 'tap';
    return this.spec.network === 'none' ? 'none' : 'user';
  }

  /** Keeps the image's files for as long as the VM is there. @throws IMAGE_NOT_FOUND, NO_SPACE */
  async pinKernel(image: Kernel): Promise<void> {
    this.kernel = await pinImage(image, this.host.options.stateDir.vmDir(this.name));
  }

  /** The files of an earlier start; a VM that was imported may have none, and can go on from its snapshot all the same. */
  findKernel(): void {
    this.kernel = this.host.options.stateDir.pinnedKernel(this.name);
  }

  /** The files of the VM that this one is a clone of. @throws NO_SPACE */
  async copyKernel(source: VmCore): Promise<void> {
    const { stateDir } = this.host.options;
    const kernel = stateDir.pinnedKernel(source.name);
    this.kernel = kernel === null ? null : await pinImage(kernel, stateDir.vmDir(this.name));
  }

  async launch(side: Side, incoming: boolean): Promise<QemuProcess> {
    const disks = this.disks.attach(this.primary === null ? 'disk' : 'twin');
    const launched = this.sides.launch(side, {
      incoming,
      disks,
      accelerator: this.accelerator ?? 'tcg',
      kernel: this.kernel,
      signal: this.giveUp.signal,
      trailed: this.strict.mode === 'strict',
      // Found again by a later manager if this one is killed; not worth a failed start if it can not be written.
      onSpawn: () => this.saveSoon(),
    });
    return launched.finally(() => detach(disks));
  }

  /** From now on the primary's guest is let go again when a write to a disk has stopped it. */
  watchDisks(): void {
    this.stall?.close();
    if (this.disks.places.length === 0) return;
    this.stall = new DiskStall({
      primary: this.primary as QemuProcess,
      freeBytes: () => this.disks.freeBytes(),
      onStopped: ({ disk, reason, full }) =>
        this.event(
          'error',
          full ? 'disk.full' : 'disk.failed',
          full
            ? `the host has no room for the disk ${disk}: the guest stands still until there is some`
            : `a write to the disk ${disk} failed: the guest stands still and it is tried again: ${reason}`,
          { disk },
        ),
      onResumed: (stoppedMs) =>
        this.event('info', 'disk.resumed', `the guest runs again after ${Math.round(stoppedMs)} ms`, { stoppedMs }),
    });
  }

  /** How long the primary's guest has stood still because of its disks. */
  stalledMs(): number {
    return this.stall?.totalMs() ?? 0;
  }
  private stall: DiskStall | null = null;

  /** What a shadow needs of the disks. */
  protectedDisks(): ShadowOptions['disks'] {
    const { disks, otherSideFree: twinsFree } = this;
    return {
      places: disks.places,
      cache: this.spec.diskCache,
      openPrimary: (name) => disks.openPrimary(name),
      openTwins: () => disks.openTwins(),
      twinsFree,
      fill: (image) => twinsFree.then(() => disks.fill(image, 'twin')),
      onTwinTrouble: (why) =>
        this.event(
          'warn',
          'disk.twin-trouble',
          `the shadow's disks are behind, a promotion would take longer: ${why}`,
          {},
        ),
    };
  }

  /** Gives the primary what it is to have. A VM runs on without its limits when they can not be set. */
  limitPrimary(): void {
    try {
      this.sides.limit(this.side, 'primary');
    } catch (error) {
      this.logError(error, 'limiting the primary');
    }
  }

  /** Learns from an awakening that is over what the next one will need; a golden snapshot's first guest for all of them. */
  noteAwakening(qemu: QemuProcess, goldenHotPath: string | null, afterMs = 0): void {
    if (qemu.hasDied) return;
    const forAll = goldenHotPath !== null && !existsSync(goldenHotPath) ? [goldenHotPath] : [];
    qemu.keepHot([this.hotPath, ...forAll], afterMs).catch((error: unknown) => {
      if (!qemu.hasDied) this.logError(error, 'keeping hot pages');
    });
  }

  /** A page of the image failed its checksum while a guest runs from it: that guest can not be let go on. */
  corruptPage(qemu: QemuProcess, page: number, why: string): void {
    const what = `page ${page} of the shadow image can not be given to the guest, which is ended: ${why}`;
    this.event('error', 'image.corrupt', what, { page });
    this.endedForItsImage = qemu;
    qemu.kill();
  }
  /** The QEMU that was killed because its image could not give it a page. */
  endedForItsImage: QemuProcess | null = null;

  record(generation = this.generation): VmRecord {
    return {
      version: 1,
      spec: { ...this.spec, mode: this.strict.mode },
      generation,
      createdAt: this.createdAt,
      state: this.state,
      address: this.lastAddress,
      accelerator: this.accelerator,
      origin: this.origin,
      snapshot: this.snapshot,
      ...this.sides.facts(this.side),
    };
  }

  save(): Promise<void> {
    return this.host.options.stateDir.saveVmRecord(this.record());
  }

  /** For the next manager, at once; saved by the next save. @throws NO_SPACE */
  note(generation: number): void {
    this.host.options.stateDir.noteVmRecord(this.record(generation));
  }

  /** Saves it in the background; what keeps it from that is logged, and the next save mends it. */
  saveSoon(): void {
    this.save().catch((error: unknown) => this.logError(error, 'saving the record'));
  }

  event(
    level: 'info' | 'warn' | 'error',
    type: string,
    message: string,
    data: Record<string, unknown>,
    atNs?: bigint,
  ): void {
    this.host.options.events.append(level, type, this.name, message, data, atNs);
  }

  logError(error: unknown, doing: string): void {
    this.host.options.log.error({ err: error, vm: this.name }, doing);
  }
}
