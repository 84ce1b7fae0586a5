/**
 * A disk as it was at an epoch, written into a raw image. The epoch is packed first: what the image holds moves on, and a
 * pack is of one moment and stands still.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { link, open, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setInterval as every } from 'node:timers';
import { ShadowVmError } from '../errors.js';
import { syncPath } from '../host/durable-file.js';
import { ShadowImage } from '../native/image.js';
import { findEpoch } from '../shadow/epochs.js';
import { imageError } from '../shadow/snapshot.js';
import type { DiskExportView } from '../vm/disk-view.js';
import type { OnProgress } from '../vm/view.js';
import { findDisk } from './disk-resize.js';
import { labelOf, requireAbsolute } from './snapshots.js';
import type { VmCore } from './vm-core.js';

const ATTEMPTED = 'export the disk';
/** A copy is read once, soon: compression that is quick beats one that is tight. */
const COPY_EFFORT = 1;
const TOLD_EVERY_MS = 500;
const BLOCK_BYTES = 512;

/** @throws DISK_NOT_FOUND, SNAPSHOT_NOT_FOUND, EPOCH_NOT_FOUND, INVALID_ARGUMENT, NO_SPACE */
export async function exportDisk(
  core: VmCore,
  { disk, path, epoch }: { disk: string; path: string; epoch: number | null },
  progress: OnProgress,
): Promise<DiskExportView> {
  requireAbsolute(path, ATTEMPTED);
  requireWritable(core, disk);
  if (existsSync(path)) throw thereAlready(path);
  const place = core.disks.places.find(({ name }) => name === disk) as { firstPage: number; bytes: number };
  const { stateDir } = core.host.options;
  const packPath = join(stateDir.vmDir(core.name), `.export-${randomBytes(6).toString('hex')}.fold`);
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString('hex')}.tmp`);
  const wasOpen = core.shadowImage.opened !== null;
  try {
    const baseCounts = core.snapshot !== null;
    const image = await core.shadowImage.openSnapshot(baseCounts);
    const epochs = image.epochs();
    const wanted = findEpoch(epochs, epoch ?? epochs.at(-1)?.epoch ?? 0, core.name);
    progress({ message: `epoch ${wanted.epoch} is packed` });
    const label = labelOf(core, wanted.cutAtWallMs);
    await core.shadowImage.pack(packPath, { epoch: wanted.epoch, label, baseCounts, effort: COPY_EFFORT });
    await writeDisk(packPath, temporary, place, progress);
    // Not a rename, which would put it over a file that has come meanwhile.
    await link(temporary, path);
    await syncPath(dirname(path));
    core.event('info', 'disk.exported', `the disk ${disk} as of epoch ${wanted.epoch} was exported to ${path}`, {
      disk,
      path,
      epoch: wanted.epoch,
    });
    return {
      vm: core.name,
      disk,
      path,
      epoch: wanted.epoch,
      cutAt: new Date(wanted.cutAtWallMs).toISOString(),
      sizeBytes: place.bytes,
      hostBytes: statSync(path).blocks * BLOCK_BYTES,
    };
  } catch (error) {
    throw imageError(error, ATTEMPTED, path);
  } finally {
    await rm(packPath, { force: true });
    await rm(temporary, { force: true });
    if (!wasOpen) await core.shadowImage.close();
  }
}

async function writeDisk(
  packPath: string,
  to: string,
  place: { firstPage: number; bytes: number },
  progress: OnProgress,
): Promise<void> {
  const file = await open(to, 'wx', 0o600);
  let timer: NodeJS.Timeout | undefined;
  try {
    await file.truncate(place.bytes);
    const { image } = await ShadowImage.open(packPath);
    try {
      const message = 'the disk is written';
      progress({ message });
      timer = every(() => {
        const written = statSync(to, { throwIfNoEntry: false })?.blocks ?? 0;
        progress({ message, done: Math.min(1, (written * BLOCK_BYTES) / place.bytes) });
      }, TOLD_EVERY_MS);
      await image.fillDisk(file.fd, place.firstPage, place.bytes);
    } finally {
      await image.close();
    }
    await file.sync();
  } finally {
    clearInterval(timer);
    await file.close();
  }
}

function requireWritable(core: VmCore, name: string): void {
  const { readOnly, path } = findDisk(core, name, ATTEMPTED);
  if (!readOnly) return;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: ATTEMPTED,
    subject: `${core.name}/${name}`,
    reason: `it is read-only, and always what the file ${path} is`,
    remedy: 'Copy that file',
  });
}

function thereAlready(path: string): ShadowVmError {
  return new ShadowVmError('INVALID_ARGUMENT', {
    attempted: ATTEMPTED,
    subject: path,
    reason: 'there is such a file already',
    remedy: 'Choose another path: no file is overwritten',
  });
}
