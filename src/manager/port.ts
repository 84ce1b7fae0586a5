/** What the API may ask of the manager. The HTTP layer knows only this; `Manager` implements it. */
import type { Duplex } from 'node:stream';
import type { NetworkSpecInput, NetworkView } from '../vm/network.js';
import type { Mode, StandbyLevel, VmSpecInput } from '../vm/spec.js';
import type {
  EpochView,
  Event,
  ExportView,
  OnProgress,
  PromotionView,
  ShadowView,
  SnapshotView,
  VerifyView,
  VmView,
  WantedEpoch,
} from '../vm/view.js';
import type { DiskPort } from './disk-port.js';
import type { UsagePort } from './usage-port.js';

export interface LogPart {
  maxBytes: number;
  /** Where to begin: the `nextByte` of an earlier answer. Without it, the last `maxBytes` are meant. */
  fromByte?: number;
}
export interface LogText {
  text: string;
  /** Where what is written later will begin. Not behind a character of which only a part is written yet. */
  nextByte: number;
}

export interface StopOptions {
  /** How long the guest has to shut down before it is killed. */
  timeoutMs: number;
  /** shutdown: the guest powers off. suspend: it is stopped as it is. */
  how: 'shutdown' | 'suspend';
  /** Leave a snapshot from which the VM starts again. */
  snapshot: boolean;
}

export interface ManagerPort {
  /** What VMs use, used and will use. */
  readonly usage: UsagePort;
  readonly disks: DiskPort;
  listVms(): VmView[];
  /** @throws VM_NOT_FOUND */
  showVm(name: string): VmView;
  /**
   * Resolves when the guest beats. Until then `signal` takes the VM back; so do killVm and removeVm with `force`.
   * Whatever it throws, nothing of the VM is left.
   * @throws VM_EXISTS, IMAGE_NOT_FOUND, QEMU_*, GUEST_BOOT_TIMEOUT, NETWORK_*, NO_SPACE, CANCELLED
   */
  runVm(spec: VmSpecInput, progress: OnProgress, signal?: AbortSignal): Promise<VmView>;
  /** Starts a stopped VM from its snapshot, or with `boot` from power-on. @throws SNAPSHOT_NOT_FOUND, VM_BUSY */
  startVm(name: string, options: { boot: boolean }, progress: OnProgress, signal?: AbortSignal): Promise<VmView>;
  /** A new VM that goes on from an epoch of another one, as somebody else. @throws EPOCH_NOT_FOUND, VM_EXISTS */
  cloneVm(
    name: string,
    clone: { name: string; wanted: WantedEpoch | null },
    progress: OnProgress,
    signal?: AbortSignal,
  ): Promise<VmView>;
  /** Saves a snapshot and ends the VM; a guest that does not shut down in time is killed. @throws VM_NOT_RUNNING */
  stopVm(name: string, options: StopOptions, progress: OnProgress): Promise<VmView>;
  /** Stops at once, as pulling the plug: no promotion follows. One that still starts or boots is gone after it. */
  killVm(name: string): Promise<VmView>;
  /** Forgets a stopped VM; with `force` it is killed first. @throws VM_BUSY when it runs */
  removeVm(name: string, options: { force: boolean }): Promise<void>;
  /** A part of the serial console (`console`) or of QEMU's own messages (`qemu`), oldest first. */
  readLog(name: string, which: 'console' | 'qemu', part: LogPart): Promise<LogText>;
  /** A live serial console; it follows the VM through promotions until either side closes it. */
  openConsole(name: string): Promise<Duplex>;
  /** Makes a fault for drills and demos: stops the vCPUs (SIGSTOP), panics the guest, or kills QEMU (SIGKILL). */
  injectFault(name: string, fault: 'kill' | 'hang' | 'panic'): Promise<{ atNs: string }>;
  /** Runs a shell command in the guest through its agent. @throws QUEUE_FULL, VM_NOT_RUNNING */
  guestExec(name: string, command: string): Promise<{ exitCode: number }>;

  listShadows(): ShadowView[];
  /** Resolves when the shadow is ready. @throws SHADOW_EXISTS, VM_NOT_RUNNING */
  createShadow(name: string, progress: OnProgress): Promise<ShadowView>;
  /** Planned switchover; to an older epoch when one is wanted. @throws SHADOW_NOT_*, EPOCH_NOT_FOUND, PROMOTION_* */
  promoteShadow(name: string, wanted: WantedEpoch | null): Promise<PromotionView>;
  /** The epochs that can be gone back to, oldest first. @throws SHADOW_NOT_FOUND */
  listEpochs(name: string): EpochView[];
  /** What waits beside the image from now on. @throws SHADOW_NOT_FOUND */
  changeStandby(name: string, level: StandbyLevel): Promise<ShadowView>;
  /** strict or async from now on. @throws VM_NOT_RUNNING, INVALID_ARGUMENT for a VM without a tap */
  changeMode(name: string, mode: Mode): Promise<VmView>;
  /** Really starts the shadow, without network, and waits for its heartbeat. @throws SHADOW_NOT_FOUND */
  verifyShadow(name: string, progress: OnProgress): Promise<VerifyView>;
  /** Takes the protection away; a rule that would make it anew is set to manual. @throws SHADOW_NOT_FOUND */
  removeShadow(name: string): Promise<void>;

  /** The default one and those that were declared. */
  listNetworks(): NetworkView[];
  /** @throws NETWORK_NOT_FOUND */
  showNetwork(name: string): NetworkView;
  /** Its bridge is there when it resolves. @throws NETWORK_EXISTS, NETWORK_CONFLICT, NETWORK_FAILED, PACKAGE_MISSING */
  createNetwork(spec: NetworkSpecInput): Promise<NetworkView>;
  /** @throws NETWORK_NOT_FOUND, NETWORK_IN_USE */
  removeNetwork(name: string): Promise<void>;

  listSnapshots(): SnapshotView[];
  /** Writes one file that another host can import, whole or not at all. @throws SNAPSHOT_NOT_FOUND, NO_SPACE */
  exportSnapshot(name: string, path: string, progress: OnProgress): Promise<ExportView>;
  /** Makes a stopped VM of it. @throws SNAPSHOT_FOREIGN, SNAPSHOT_NEWER, SNAPSHOT_CORRUPT, VM_EXISTS */
  importSnapshot(path: string, name: string | null, progress: OnProgress): Promise<SnapshotView>;
  /** Reads all of a stopped VM's snapshot and checks every checksum. @throws SNAPSHOT_NOT_FOUND */
  verifySnapshot(name: string, progress: OnProgress): Promise<VerifyView>;

  /** The retained events with `seq` above `since`, oldest first, at most `limit` (the newest ones). */
  listEvents(filter: { since?: number; limit?: number; vm?: string }): Event[];
  /** Calls `listener` for each new event until the returned function is called. */
  followEvents(listener: (event: Event) => void): () => void;

  /** Ends every VM and takes away everything that was made on the host. */
  close(): Promise<void>;
}
