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
}

/** The page that the shim in QEMU and the manager share: tracking state, and a robust futex that tells of its death. */
export interface QemuControl {
  readonly fd: number;
  read(): ControlReading;
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
  /** false: the pass ended at `pagesMax`; the next one finds the rest. */
  complete: boolean;
  ms: number;
  /** CPU time of the threads that did it. */
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
  /**
   * Stages what was written. `urgent`: the guest stands still for it, a second thread helps. `pagesMax`: ends the pass when
   * about so many pages were found (up to twice as many with `urgent`). Both matter only where writes are tracked.
   */
  collect(options?: { urgent?: boolean; pagesMax?: number }): Promise<CollectResult>;
  /** @param undoEpochs how many of the newest commits, this one included, rewind() can take back; 0 to 1024 */
  commit(target: GuestRam, undoEpochs: number): Promise<CommitResult>;
  /** Takes the newest `epochs` commits back. Rejects with ERR_NO_UNDO, nothing changed, when not so many are kept. */
  rewind(target: GuestRam, epochs: number): Promise<void>;
  /** Forgets what was staged; the next epoch collects it again. */
  abort(): Promise<void>;
  close(): void;
}

interface MemoryAddon {
  GuestRam: new (name: string, bytes: number) => GuestRam;
  QemuControl: new () => QemuControl;
  ProcessHandle: new (pid: number) => ProcessHandle;
  EpochSource: new (options: {
    ram: GuestRam;
    control: QemuControl;
    pid: number;
    tracking: 'write' | 'checksum';
  }) => EpochSource;
  createMemoryFile(name: string): number;
  measureScan(ram: GuestRam): { bytes: number; copyMs: number; checksumMs: number };
}

export const { GuestRam, QemuControl, ProcessHandle, EpochSource, createMemoryFile, measureScan } =
  loadAddon<MemoryAddon>();
