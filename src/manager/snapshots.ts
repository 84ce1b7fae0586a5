/** Snapshots as files that go from host to host, and the proof that one is whole. */
import { randomBytes } from 'node:crypto';
import { copyFile, mkdir, rename, rm } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { ShadowImage } from '../native/image.js';
import { imageError, noSnapshot, parseLabel, type SnapshotLabel } from '../shadow/snapshot.js';
import { vmNameSchema, vmSpecSchema } from '../vm/spec.js';
import type { ExportView, OnProgress, SnapshotView, VerifyView } from '../vm/view.js';
import type { Host } from './host.js';
import type { VmRecord } from './state-dir.js';
import type { ManagedVm } from './vm.js';
import type { VmCore } from './vm-core.js';

/** What a snapshot of this VM says of itself. @param cutAtMs when its epoch was cut */
export function labelOf(core: VmCore, cutAtMs: number): SnapshotLabel {
  const { major, minor, micro } = core.host.qemu.version;
  return {
    spec: core.spec,
    createdAt: core.createdAt,
    generation: core.generation,
    cutAt: new Date(cutAtMs).toISOString(),
    qemu: `${major}.${minor}.${micro}`,
    accelerator: core.accelerator ?? 'tcg',
    heat: core.heat.toLabel(),
  };
}

/** How an image looks as a snapshot; null when it holds no epoch. */
export async function snapshotOf(image: ShadowImage | null, vm: string): Promise<SnapshotView | null> {
  const newest = image?.epochs().at(-1);
  if (image === null || newest === undefined) return null;
  const { bytesOnDisk, storedPages } = await image.stats();
  return { vm, epoch: newest.epoch, cutAt: new Date(newest.cutAtWallMs).toISOString(), bytesOnDisk, storedPages };
}

/** @throws SNAPSHOT_NOT_FOUND, NO_SPACE, INVALID_ARGUMENT when there is such a file already */
export async function exportSnapshot(core: VmCore, path: string, progress: OnProgress): Promise<ExportView> {
  requireAbsolute(path, 'export the snapshot');
  progress({ message: 'the snapshot is packed' });
  const wasOpen = core.shadowImage.opened !== null;
  try {
    const baseCounts = core.snapshot !== null;
    const image = await core.shadowImage.openSnapshot(baseCounts);
    const cutAtMs = image.epochs().at(-1)?.cutAtWallMs ?? Date.now();
    const { epoch, bytes, pages } = await core.shadowImage.pack(path, {
      epoch: 0,
      label: labelOf(core, cutAtMs),
      baseCounts,
    });
    core.event('info', 'snapshot.exported', `epoch ${epoch} was exported to ${path}`, { path, epoch, bytes });
    return { vm: core.name, path, epoch, bytes, pages };
  } finally {
    if (!wasOpen) await core.shadowImage.close();
  }
}

/**
 * Makes the record of a stopped VM whose snapshot the file is. Everything in the file is read and checked first.
 * @throws SNAPSHOT_FOREIGN, SNAPSHOT_NEWER, SNAPSHOT_CORRUPT, VM_EXISTS, NO_SPACE; nothing is left then
 */
export async function importSnapshot(
  host: Host,
  path: string,
  options: { name: string | null; taken: (name: string) => boolean; progress: OnProgress },
): Promise<VmRecord> {
  const attempted = 'import the snapshot';
  requireAbsolute(path, attempted);
  const { stateDir } = host.options;
  // A copy is what is checked: nobody can change it between the check and its use.
  const scratch = join(stateDir.vmsDir, `.import-${randomBytes(6).toString('hex')}`);
  try {
    options.progress({ message: 'the snapshot is copied' });
    await mkdir(scratch);
    const copy = join(scratch, 'base.fold');
    await copyFile(path, copy);
    options.progress({ message: 'the snapshot is checked' });
    const { image } = await ShadowImage.open(copy);
    try {
      const label = parseLabel(image.describe().label, path);
      const { damagedPages } = await image.verify();
      if (damagedPages.length > 0) throw corruptSnapshot(attempted, path, damagedPages.length);
      const name = vmNameSchema.parse(options.name ?? label.spec.name);
      if (options.taken(name)) throw vmExists(attempted, name);
      const spec = vmSpecSchema.parse({ ...label.spec, name, publish: [] });
      const record: VmRecord = {
        version: 1,
        spec,
        generation: label.generation,
        createdAt: label.createdAt,
        state: 'stopped',
        address: null,
        accelerator: label.accelerator,
        origin: 'snapshot',
        snapshot: await snapshotOf(image, name),
        slot: null,
        side: 'p',
        process: [],
        taps: [],
        cgroups: [],
        bridge: null,
      };
      await rename(scratch, stateDir.vmDir(name));
      await stateDir.saveVmRecord(record);
      host.options.events.append('info', 'snapshot.imported', name, `imported from ${path}`, { path });
      return record;
    } finally {
      await image.close();
    }
  } catch (error) {
    throw imageError(error, attempted, path);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Reads every page of a stopped VM's snapshot and checks it. @throws SNAPSHOT_NOT_FOUND, VM_BUSY while it runs */
export async function verifySnapshot(vm: ManagedVm, progress: OnProgress): Promise<VerifyView> {
  const attempted = 'verify the snapshot';
  const { core } = vm;
  if (!vm.ended)
    throw new ShadowVmError('VM_BUSY', {
      attempted,
      subject: core.name,
      reason: `the VM is ${vm.state}`,
      remedy: `Of a VM that runs, verify the shadow: shadowvm shadow verify ${core.name}`,
    });
  if (vm.view().snapshot === null) throw noSnapshot(attempted, core.name);
  progress({ message: 'every page is read' });
  const startedMs = monotonicMs();
  try {
    const image = await core.shadowImage.openSnapshot(true);
    const { pages, damagedPages } = await image.verify();
    if (damagedPages.length > 0) throw corruptSnapshot(attempted, core.name, damagedPages.length);
    const ms = monotonicMs() - startedMs;
    return { vm: core.name, epoch: image.describe().headEpoch, pages, damagedPages: 0, firstBeatMs: null, ms };
  } catch (error) {
    throw imageError(error, attempted, core.name);
  } finally {
    await core.shadowImage.close();
  }
}

function corruptSnapshot(attempted: string, subject: string, pages: number): ShadowVmError {
  return new ShadowVmError('SNAPSHOT_CORRUPT', {
    attempted,
    subject,
    reason: `${pages} of its pages fail their checksums`,
    remedy: 'Copy or export it anew; what is damaged is not used',
  });
}

function vmExists(attempted: string, name: string): ShadowVmError {
  return new ShadowVmError('VM_EXISTS', {
    attempted,
    subject: name,
    reason: 'a VM of this name exists',
    remedy: 'Give the imported one another name with --name',
  });
}

/** @throws INVALID_ARGUMENT */
export function requireAbsolute(path: string, attempted: string): void {
  if (isAbsolute(path)) return;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted,
    subject: path,
    reason: 'it is not an absolute path, and the manager has a working directory of its own',
    remedy: 'Write the whole path',
  });
}
