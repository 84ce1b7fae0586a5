/**
 * The disks of one VM on the host. Of each writable one there are two files: the primary's, and its twin, which follows
 * the shadow image and is what a promotion's guest finds. A promotion swaps their names.
 *
 *     vms/<name>/disks/<disk>.disk    the primary's
 *     vms/<name>/disks/<disk>.twin    the shadow's
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  renameSync,
  statfsSync,
} from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { extentBytesOf } from '../disk/heat-map.js';
import { type DiskPlace, diskPlaces } from '../disk/place.js';
import { openSource } from '../disk/source-file.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { runTool } from '../image/host-tool.js';
import { DiskTwin, exchangeFiles } from '../native/disk.js';
import type { ShadowImage } from '../native/image.js';
import type { DiskAttachment } from '../qemu/argv.js';
import { type DiskSpec, diskBytes, type VmSpec } from '../vm/spec.js';
import type { OnProgress } from '../vm/view.js';
import { fileError } from './state-dir.js';

type Role = 'disk' | 'twin';

export class VmDisks {
  constructor(
    private readonly vmDir: string,
    private readonly spec: Pick<VmSpec, 'name' | 'ramBytes' | 'disks' | 'diskCache'>,
  ) {}

  /** They move when a disk is resized. */
  get places(): readonly DiskPlace[] {
    return diskPlaces(this.spec);
  }

  /** Makes the disks of a new VM: empty ones, and copies. @throws DISK_NOT_FOUND, DISK_IN_USE, NO_SPACE */
  async create(progress: OnProgress): Promise<void> {
    for (const { name, path, readOnly } of this.spec.disks) {
      if (readOnly) continue;
      const to = this.path(name, 'disk');
      await mkdir(this.folder, { recursive: true, mode: 0o700 });
      await rm(to, { force: true });
      if (path !== null) {
        progress({ message: `the disk ${name} is copied from ${path}` });
        await copy(path, to, `make the disk ${name}`);
      }
      closeSync(this.open(name, 'disk'));
    }
  }

  /** Makes the primary's files what an image's newest epoch holds. @throws SNAPSHOT_*, NO_SPACE */
  async fill(image: ShadowImage, role: Role = 'disk'): Promise<void> {
    for (const { name, bytes, firstPage } of this.places) {
      const fd = this.open(name, role);
      try {
        await image.fillDisk(fd, firstPage, bytes);
      } finally {
        closeSync(fd);
      }
    }
  }

  /** Opens all disks for a QEMU; the descriptors are the caller's. @throws DISK_NOT_FOUND, DISK_IN_USE, NO_SPACE */
  attach(role: Role): DiskAttachment[] {
    const attached: DiskAttachment[] = [];
    try {
      for (const { name, readOnly, path, sizeBytes } of this.spec.disks) {
        const fd = readOnly ? openSource(path as string, `use the disk ${name}`) : this.open(name, role);
        const extentBytes = extentBytesOf(diskBytes([{ readOnly: false, sizeBytes }]));
        attached.push({ name, readOnly, cache: this.spec.diskCache, extentBytes, fd });
      }
    } catch (error) {
      detach(attached);
      throw error;
    }
    return attached;
  }

  /** The files that are to follow the image. Nobody else may use them any more. */
  openTwins(): DiskTwin[] {
    return this.places.map(({ name, bytes, firstPage }) => {
      const fd = this.open(name, 'twin');
      try {
        return new DiskTwin({ fd, bytes, firstPage });
      } finally {
        closeSync(fd);
      }
    });
  }

  /** The primary's file of a disk. The descriptor is the caller's. */
  openPrimary(name: string): number {
    return this.open(name, 'disk');
  }

  /** The twins are the primary's from now on. */
  exchange(): void {
    for (const { name } of this.places) {
      const [disk, twin] = [this.path(name, 'disk'), this.path(name, 'twin')];
      try {
        exchangeFiles(disk, twin);
      } catch {
        // Not every file system can. Killed in between, the next manager finds out what QEMU has open.
        renameSync(disk, `${disk}.old`);
        renameSync(twin, disk);
        renameSync(`${disk}.old`, twin);
      }
    }
  }

  /** A manager that was killed in a promotion may not have got to the names: what the primary has open is the primary's. */
  adopt(pid: number): void {
    const [first] = this.places;
    if (first === undefined) return;
    const twin = realpathSync(this.folder) + `/${first.name}.twin`;
    const open = readdirSync(`/proc/${pid}/fd`).some((fd) => linkOf(`/proc/${pid}/fd/${fd}`) === twin);
    if (open) this.exchange();
  }

  /** The file of a disk: one that is read-only is the user's own. */
  pathOf({ name, readOnly, path }: DiskSpec, role: Role): string {
    return readOnly ? (path as string) : this.path(name, role);
  }

  /** Where they are. */
  freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.vmDir);
    return bavail * bsize;
  }

  private get folder(): string {
    return join(this.vmDir, 'disks');
  }

  private path(name: string, role: Role): string {
    return join(this.folder, `${name}.${role}`);
  }

  /** Made where it is missing, and given its size. */
  private open(name: string, role: Role): number {
    const path = this.path(name, role);
    const { bytes } = this.places.find((place) => place.name === name) as DiskPlace;
    try {
      mkdirSync(this.folder, { recursive: true, mode: 0o700 });
      const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
      if (fstatSync(fd).size !== bytes) ftruncateSync(fd, bytes);
      return fd;
    } catch (error) {
      throw fileError(error, 'open the disk', path);
    }
  }
}

function linkOf(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch {
    return null; // closed since
  }
}

export function detach(attached: readonly DiskAttachment[]): void {
  for (const { fd } of attached) closeSync(fd);
}

/** Whether a VM with these disks looks at its boot as any other one does: what is on them is the same, nothing. */
export function areBlank(disks: readonly DiskSpec[]): boolean {
  return disks.every(({ path }) => path === null);
}

/** Shares the blocks where the file system can; holes stay holes. */
async function copy(from: string, to: string, attempted: string): Promise<void> {
  const lock = openSource(from, attempted);
  try {
    await runTool('cp', ['--reflink=auto', '--sparse=always', '--no-preserve=mode', from, to], { attempted });
  } catch (error) {
    const reason = messageOf(error);
    throw /No space left|quota/.test(reason)
      ? new ShadowVmError('NO_SPACE', {
          attempted,
          subject: to,
          reason,
          remedy: 'Make room for a copy of the disk',
          cause: error,
        })
      : error;
  } finally {
    closeSync(lock);
  }
}
