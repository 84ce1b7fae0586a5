/** Files of the user that disks are made of, or that are used in place. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { messageOf, ShadowVmError } from '../errors.js';
import { lockDisk } from '../native/disk.js';
import { isNativeFailure } from '../native/index.js';
import { DISK_BYTES_MAX, type DiskSpec, MIB } from '../vm/spec.js';

/** What a guest's device can address. */
const SECTOR_BYTES = 512;

/** Gives disks that are made of files the size of those. @throws DISK_NOT_FOUND, DISK_IN_USE, INVALID_ARGUMENT */
export function resolveDisks(disks: readonly DiskSpec[]): DiskSpec[] {
  return disks.map((disk) => {
    if (disk.path === null) return disk;
    const attempted = `use the file for the disk ${disk.name}`;
    const fd = openSource(disk.path, attempted);
    try {
      const { size } = fstatSync(fd);
      const refuse = (reason: string, remedy: string) =>
        new ShadowVmError('INVALID_ARGUMENT', { attempted, subject: disk.path as string, reason, remedy });
      if (size === 0 || size > DISK_BYTES_MAX)
        throw refuse(`it has ${size} bytes`, 'A disk has at least one sector and at most 1 TiB');
      if (disk.readOnly && size % SECTOR_BYTES !== 0)
        throw refuse(
          `its ${size} bytes are no whole number of sectors`,
          `Its size must be a multiple of ${SECTOR_BYTES}`,
        );
      if (disk.sizeBytes !== null && disk.sizeBytes < size)
        throw refuse(`it has ${size} bytes, more than the disk is to have`, 'Leave the size out, or ask for more');
      return { ...disk, sizeBytes: disk.sizeBytes ?? Math.ceil(size / MIB) * MIB };
    } finally {
      closeSync(fd);
    }
  });
}

/**
 * Opens it for reading, and keeps writers away from it for as long as the descriptor, or a copy of it, is open.
 * @throws DISK_NOT_FOUND, DISK_IN_USE, NOT_ROOT, INVALID_ARGUMENT
 */
export function openSource(path: string, attempted: string): number {
  const subject = path;
  if (!isAbsolute(path))
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted,
      subject,
      reason: 'it is not an absolute path, and the manager has a working directory of its own',
      remedy: 'Write the whole path',
    });
  let fd: number;
  try {
    // A FIFO without a writer would otherwise be waited for.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new ShadowVmError(code === 'EACCES' || code === 'EPERM' ? 'NOT_ROOT' : 'DISK_NOT_FOUND', {
      attempted,
      subject,
      reason: messageOf(error),
      remedy: 'Check the path: it is one on the host of the manager',
      cause: error,
    });
  }
  try {
    if (!fstatSync(fd).isFile())
      throw new ShadowVmError('INVALID_ARGUMENT', {
        attempted,
        subject,
        reason: 'it is not a regular file',
        remedy: 'Name the raw image of a disk',
      });
    lockDisk(fd);
    return fd;
  } catch (error) {
    closeSync(fd);
    if (!isNativeFailure(error)) throw error;
    throw new ShadowVmError('DISK_IN_USE', {
      attempted,
      subject,
      reason: 'another program writes to it',
      remedy: 'Stop the VM or the tool that has it open for writing',
      cause: error,
    });
  }
}
