/** Disks in the addon (native/disk/): where an epoch's changed blocks arrive, and the files that follow the image. */
import { loadAddon } from './index.js';

/**
 * A server of the NBD protocol on an abstract Unix socket, whose only client is the QEMU with this process number. Between
 * `expect` and `finish` or `fail` it takes writes, and the commit that it is given to takes them from it.
 */
export interface DiskReceiver {
  /** Begins an intake; what an earlier one left is dropped. @throws ERR_CLOSED */
  expect(): void;
  /** Everything has come. */
  finish(): void;
  /** A commit that waits for this intake rejects with ERR_DISK_LOST. No effect without an intake. */
  fail(why: string): void;
  close(): void;
}

/** A file that commits keep at what the image's head holds. It is compared from its start first: advanceTwins(). */
export interface DiskTwin {
  /** Why it had to be begun anew; empty when it had not. @throws ERR_CLOSED */
  failure(): string;
  close(): void;
}

/** The disks of an epoch: those that were written, and the files that follow. */
export interface EpochDisks {
  receivers: DiskReceiver[];
  twins: DiskTwin[];
}

interface DiskAddon {
  DiskReceiver: new (options: { socketName: string; pid: number; bytes: number; firstPage: number }) => DiskReceiver;
  /** Takes a duplicate of the descriptor. */
  DiskTwin: new (options: {
    fd: number;
    bytes: number;
    firstPage: number;
  }) => DiskTwin;
  /** Takes part in QEMU's sharing of disks as a reader that wants no writer, for as long as `fd` is open. @throws EAGAIN */
  lockDisk(fd: number): void;
  /** Has the kernel read a part of a file into its page cache. Does not reject; the file must stay open. */
  readAhead(fd: number, offset: number, bytes: number): Promise<void>;
  /** Swaps two names of files, at once or not at all. @throws ENOENT, EINVAL where the file system can not */
  exchangeFiles(a: string, b: string): void;
}

export const { DiskReceiver, DiskTwin, lockDisk, readAhead, exchangeFiles } = loadAddon<DiskAddon>();
