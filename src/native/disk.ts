/** Disks in the addon (native/disk/): the files that follow the image, and locks. What epochs take of them: memory.ts. */
import { loadAddon } from './index.js';

/** A file that commits keep at what the image's head holds. It is compared from its start first: advanceTwins(). */
export interface DiskTwin {
  /** Why it had to be begun anew; empty when it had not. @throws ERR_CLOSED */
  failure(): string;
  close(): void;
}

interface DiskAddon {
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

export const { DiskTwin, lockDisk, readAhead, exchangeFiles } = loadAddon<DiskAddon>();
