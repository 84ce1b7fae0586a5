/** The memory hot path of the addon (native/): guest RAM, control pages, epochs. All sizes in bytes, times in ms. */
import type { DiskTwin } from './disk.js';
import type { NativeImage } from './image.js';
import { loadAddon } from './index.js';

/** Guest RAM as a sealed memfd, mapped in this process. Zero until written; closing is idempotent. */
export interface GuestRam {
  /** To hand to QEMU. @throws ERR_CLOSED */
  readonly fd: number;
  readonly bytes: number;
  /** Memory that the RAM really takes on the host. */
  residentBytes(): number;
  /** Number of 4 KiB pages whose contents differ. Blocks; only for stopped VMs. @throws ERR_SIZE */
  differences(other: GuestRam): number;
  close(): void;
}

/** An epoch of an image (its id). */
export interface MarkedEpoch {
  imageId: string;
  epoch: number;
}

export interface ControlReading {
  /** null until the shim has reported. */
  alive: boolean | null;
  tracking: 'unseen' | 'registered' | 'failed';
  /** errno name of a failed registration. */
  errorCode: string | null;
  ramBytes: number;
  /** The RAM is registered for missing pages: a Pager must serve them. */
  lazy: boolean;
  /** A lazy RAM is complete: the shim answers for what is missing, which is zeros. */
  filled: boolean;
  pausedForEpoch: boolean;
  /** Its QEMU can be told without its monitor: by `collectPaused` of an EpochSource, and `releaseHolds`. */
  servesPauses: boolean;
  /** Everything is marked that was written to the disks since then; null while that is not known. */
  marked: MarkedEpoch | null;
}

/** The page that the shim in QEMU and the manager share: tracking state, and a robust futex that tells of its death. */
export interface QemuControl {
  readonly fd: number;
  /** To hand to QEMU: a pipe by which its shim learns of this process's death. */
  readonly lifelineFd: number;
  /** To hand to QEMU: what makes its main loop look at this page. */
  readonly bellFd: number;
  read(): ControlReading;
  /** True before a `stop`, false when `cont` was answered: should this process die between them, the shim lets the guest go. */
  setPausedForEpoch(paused: boolean): void;
  /**
   * Where it serves pauses: the filter-buffers `hold<i>`, of bit i, are deleted, and what they hold leaves.
   * @returns whether none is left of all that were to be released: for 0, which asks only
   */
  releaseHolds(bits: number): boolean;
  /** Of a process that has died: those of which nothing has left, though they were to be released; a bit for each. */
  unreleasedHolds(): number;
  /** A `collectPaused` that is under way ends at once, with ERR_PAUSE, whatever became of its QEMU. */
  givePauseUp(): void;
  /** The disks are what this epoch of the image holds, and were not written since. */
  setMarked(imageId: string, epoch: number): void;
  /** Before the start of the process: it is of a version whose own functions the shim may call, if it exports them. */
  allowPauses(): void;
  /** Before the start of the process: its RAM will be filled on demand. */
  makeLazy(): void;
  /** Sizes of extents, powers of 2, of its disks in their order. They may change while the process runs. */
  countDiskIo(extentBytes: readonly number[]): void;
  /** Pages that the guest has read and written of each extent of a disk since the last call. */
  takeDiskIo(disk: number, extents: number): { read: Uint32Array; written: Uint32Array };
  /**
   * Whether this process may read a page of the RAM: an absent one would come into being as zeros. Blocks for as long as
   * the page is being installed. @throws ERR_PAGE_STUCK after 5 s of that, ERR_OUT_OF_RANGE
   */
  mayRead(page: number): boolean;
  /** Calls back once, from the kernel's wake-up at the death of the process. @throws ERR_NO_SHIM, ERR_BUSY */
  watchDeath(callback: (atNs: bigint) => void): void;
  close(): void;
}

/** A pidfd: signals can not hit a recycled process number. */
export interface ProcessHandle {
  /** false when the process has ended already. */
  signal(signal: number): boolean;
  watchExit(callback: (atNs: bigint) => void): void;
  close(): void;
}

/** Threads of another process. */
export interface ThreadWatch {
  /** All of them sleep at this moment, or have ended. 5 µs for each. */
  allSleep(): boolean;
  close(): void;
}

export interface CollectResult {
  /** Pages looked at: reported as written, or checksummed. */
  scannedPages: number;
  /** Pages of this epoch so far. */
  stagedPages: number;
  copiedPages: number;
  /** Of disks, copied as well. */
  diskPages: number;
  /** Differed from the shadow although nothing had reported them as written: what a scrub found. */
  repairedPages: number;
  /** false: the pass ended at `pagesMax`; the next one finds the rest. */
  complete: boolean;
  ms: number;
  /** CPU time of the threads that did it. */
  cpuMs: number;
}

export interface PauseOptions {
  /** For each: that the guest stands still, and that it runs again. 60,000 at most. */
  timeoutMs: number;
  /** As of `collect`. */
  pagesMax?: number;
  /** Of `hold<i>`: it holds what the guest sends after this pause. */
  hold?: number;
  /** Where in the guest's RAM a counter of 16 bits is to be read while it stands. */
  countOffset?: number;
}

export interface PauseResult extends CollectResult {
  /** The moment at which the guest stood still, CLOCK_MONOTONIC. */
  cutAtNs: bigint;
  /** The same by the host's wall clock. */
  cutAtMs: number;
  /** From the order to stop until it ran again. */
  pauseMs: number;
  /** 0 without a `countOffset`. */
  count: number;
  holdFailed: boolean;
}

export interface CommitResult {
  epoch: number;
  changedPages: number;
  /** Of those, now all zeros. */
  zeroPages: number;
  /** Captured, but their checksum had not changed. */
  droppedPages: number;
  /** Changed pages of disks. */
  diskPages: number;
  /** What the epoch's record takes on the disk. */
  storedBytes: number;
  /** The `releases` of its cut are deleted. */
  released: boolean;
  ms: number;
  cpuMs: number;
}

export interface ScrubResult {
  /** Where to go on; 0 after the last page. */
  nextPage: number;
  comparedPages: number;
  /** Differ from the shadow now; the next epoch tells whether they were just written. */
  suspectPages: number;
}

/** How an epoch is to be committed. */
export interface CommitOrder {
  generation: number;
  /**
   * What the guest has sent since the epoch before is held in its QEMU for this one: it is committed when the guest has
   * lived after it, and with ERR_VM_DEAD not at all once its QEMU has died. Its guest believes that it has sent, and would
   * say so again only when its time runs out.
   */
  holdsOutput?: boolean;
  /** Holds, as of QemuControl's `releaseHolds`, to be deleted once this is committed, if a sign of life has come after it by then. */
  releases?: number;
}

/** When it was cut: wall clock for people and other hosts, CLOCK_MONOTONIC for this one. */
export interface EpochCut extends CommitOrder {
  cutAtWallMs: number;
  cutAtNs: bigint;
}

/** A waiting QEMU whose RAM commits fill, up to a share of 0 to 1, and keep fresh. */
export interface ResidentRam {
  ram: GuestRam;
  control: QemuControl;
  share: number;
}

/**
 * Finds, stages and commits a VM's changed pages to its shadow image, off the event loop; one operation at a time
 * (ERR_BUSY). Rejects with ERR_VM_DEAD when the VM's process died in the middle, ERR_NOT_SYNCED before `sync` or
 * `follow`, ERR_CLOSED, and with what the image says (ENOSPC, ERR_IMAGE_FULL).
 */
export interface EpochSource {
  /** Compares all of the RAM with the image, while the guest runs. The image is consistent after the next commit. */
  sync(): Promise<CollectResult>;
  /** Instead of `sync`: the RAM was filled from the image, and every write since is still to be reported. */
  follow(): Promise<void>;
  /**
   * Makes the primary's writable disks, in their order, a part of all epochs. Unless it is `known` that everything is
   * marked that the image does not hold, they are compared with it first, while the guest runs.
   * Rejects with ERR_NOT_TRACKED when nothing marks what is written.
   */
  attachDisks(disks: readonly { fd: number; firstPage: number; bytes: number }[], known: boolean): Promise<void>;
  /**
   * Stages what was written. `urgent`: the guest stands still for it, a second thread helps and nothing is compressed
   * meanwhile. `pagesMax`: ends the pass when about so many pages were found (up to twice as many with `urgent`); it
   * matters only where writes are tracked.
   */
  collect(options?: { urgent?: boolean; pagesMax?: number }): Promise<CollectResult>;
  /**
   * Pauses the guest, has its devices saved, and collects meanwhile as with `urgent`. Without its monitor: only where
   * QemuControl says that it serves pauses. Rejects with ERR_PAUSE when QEMU did not do so or not in time; it lets the
   * guest go in any case.
   */
  collectPaused(options: PauseOptions): Promise<PauseResult>;
  /** Memory, devices and disks are in one record, or nothing is. `twins` follow the image. */
  commit(
    cut: EpochCut,
    deviceState: Buffer,
    resident: ResidentRam | null,
    twins?: readonly DiskTwin[],
  ): Promise<CommitResult>;
  /**
   * Behind a `collectPaused` that is under way, and the only operation that may be: commits what that has cut, at once and
   * without a word from the event loop. `deviceStateFd` is where QEMU saves its devices.
   * @returns null, with nothing committed, when nothing was cut: the pause failed, was not complete, or its hold failed
   */
  commitBehind(
    order: CommitOrder,
    deviceStateFd: number,
    resident: ResidentRam | null,
    twins?: readonly DiskTwin[],
  ): Promise<CommitResult | null>;
  /** Compares so many pages with the image; what differs and was not written is repaired by the next epoch. */
  scrub(firstPage: number, count: number): Promise<ScrubResult>;
  /** The image goes back to an epoch, and so do resident pages and twins. Rejects with ERR_NO_EPOCH, nothing changed. */
  rewind(epoch: number, resident: ResidentRam | null, twins?: readonly DiskTwin[]): Promise<void>;
  /** Compares so many pages of twins with the image and mends them. @returns how many are left to compare */
  advanceTwins(twins: readonly DiskTwin[], pages: number): Promise<number>;
  /**
   * Waits until a counter of 16 bits, which goes round, at `offset` of the guest's RAM has reached `wanted` and the
   * guest's vCPUs sleep (null: whatever they do); looks every 0.1 ms, where a timer of the event loop has whole ones.
   * @returns false after `timeoutMs`, 1000 at most, or when the process has died. Rejects with ERR_OUT_OF_RANGE
   */
  awaitAnswers(offset: number, wanted: number, vcpus: ThreadWatch | null, timeoutMs: number): Promise<boolean>;
  /** A sign of life came from the guest at that time, CLOCK_MONOTONIC. Also while an operation is under way. */
  noteSign(atNs: bigint): void;
  /** Memory that this source takes, but for the image's. An estimate while an operation is under way. @throws ERR_CLOSED */
  memoryBytes(): number;
  /** Forgets what was staged; the next epoch collects it again. */
  abort(): Promise<void>;
  close(): void;
}

interface MemoryAddon {
  GuestRam: {
    new (name: string, bytes: number): GuestRam;
    /** The memory that a process has open under a number. @throws ESRCH, EBADF, EPERM, ERR_NOT_SEALED */
    adopt(pid: number, fd: number): GuestRam;
  };
  QemuControl: {
    /** `disks`: open files that will be its writable disks, in their order. */
    new (ramBytes: number, disks?: readonly number[]): QemuControl;
    /** Of a QEMU whose manager is gone; its shim knows that there is one again. @throws as GuestRam.adopt, ERR_NOT_CONTROL */
    adopt(pid: number): QemuControl;
  };
  ProcessHandle: new (pid: number) => ProcessHandle;
  /** 1024 threads at most. @throws ESRCH when one of them is not there */
  ThreadWatch: new (
    pid: number,
    tids: readonly number[],
  ) => ThreadWatch;
  EpochSource: new (options: {
    ram: GuestRam;
    control: QemuControl;
    pid: number;
    tracking: 'write' | 'checksum';
    image: NativeImage;
  }) => EpochSource;
  createMemoryFile(name: string): number;
  /** The open file that a process has under a number. @throws ESRCH, EBADF, EPERM */
  adoptFile(pid: number, fd: number): number;
  measureScan(ram: GuestRam): { bytes: number; copyMs: number; checksumMs: number };
}

export const {
  GuestRam,
  QemuControl,
  ProcessHandle,
  ThreadWatch,
  EpochSource,
  adoptFile,
  createMemoryFile,
  measureScan,
} = loadAddon<MemoryAddon>();
