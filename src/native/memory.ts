/** The memory hot path of the addon (native/): guest RAM, control pages, epochs. All sizes in bytes, times in ms. */
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
}

/** The page that the shim in QEMU and the manager share: tracking state, and a robust futex that tells of its death. */
export interface QemuControl {
  readonly fd: number;
  /** To hand to QEMU: a pipe by which its shim learns of this process's death. */
  readonly lifelineFd: number;
  read(): ControlReading;
  /** True before a `stop`, false when `cont` was answered: should this process die between them, the shim lets the guest go. */
  setPausedForEpoch(paused: boolean): void;
  /** Before the start of the process: its RAM will be filled on demand. */
  makeLazy(): void;
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

export interface CollectResult {
  /** Pages looked at: reported as written, or checksummed. */
  scannedPages: number;
  /** Pages held in the staging area now. */
  stagedPages: number;
  copiedPages: number;
  ms: number;
  /** CPU time of the thread that did it. */
  cpuMs: number;
}

export interface CommitResult {
  changedPages: number;
  /** Of those, now all zeros. */
  zeroPages: number;
  /** Captured, but their checksum had not changed. */
  droppedPages: number;
  ms: number;
  cpuMs: number;
}

/**
 * Finds, stages and commits a VM's changed pages, off the event loop; one operation at a time (ERR_BUSY).
 * Rejects with ERR_VM_DEAD when the VM's process died in the middle, ERR_NOT_SYNCED before `sync`, ERR_CLOSED.
 */
export interface EpochSource {
  /** First full copy, while the guest runs. The target is consistent only after the next commit. */
  sync(target: GuestRam): Promise<CommitResult>;
  collect(): Promise<CollectResult>;
  /** @param undoEpochs how many of the newest commits, this one included, rewind() can take back; 0 to 1024 */
  commit(target: GuestRam, undoEpochs: number): Promise<CommitResult>;
  /** Takes the newest `epochs` commits back. Rejects with ERR_NO_UNDO, nothing changed, when not so many are kept. */
  rewind(target: GuestRam, epochs: number): Promise<void>;
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
    new (ramBytes: number): QemuControl;
    /** Of a QEMU whose manager is gone; its shim knows that there is one again. @throws as GuestRam.adopt, ERR_NOT_CONTROL */
    adopt(pid: number): QemuControl;
  };
  ProcessHandle: new (pid: number) => ProcessHandle;
  EpochSource: new (options: {
    ram: GuestRam;
    control: QemuControl;
    pid: number;
    tracking: 'write' | 'checksum';
  }) => EpochSource;
  createMemoryFile(name: string): number;
  /** The open file that a process has under a number. @throws ESRCH, EBADF, EPERM */
  adoptFile(pid: number, fd: number): number;
  measureScan(ram: GuestRam): { bytes: number; copyMs: number; checksumMs: number };
}

export const { GuestRam, QemuControl, ProcessHandle, EpochSource, adoptFile, createMemoryFile, measureScan } =
  loadAddon<MemoryAddon>();
