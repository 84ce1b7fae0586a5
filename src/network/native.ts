/** What native/network.cc offers, and how its failures become the errors a user sees. */
import { messageOf, ShadowVmError } from '../errors.js';
import { isNativeFailure, loadAddon } from '../native/index.js';

/** Totals since the interface was made, as the host sees them: on a tap, rx is what the guest sent. */
export interface InterfaceCounters {
  rxBytes: number;
  txBytes: number;
  rxPackets: number;
  txPackets: number;
}

/** The frames that a guest was sent of late, at most 512; native/packet_trail.cc. */
export interface PacketTrail {
  /** How many were seen so far. */
  mark(): number;
  /** Those up to a mark are not replayed any more. */
  forget(mark: number): void;
  /** Sends what is left to the guest on another tap. @returns how many frames */
  replay(tap: string): number;
  /** Idempotent. */
  close(): void;
}

/** All synchronous. Names have 1 to 15 bytes. Every failure carries its errno name as `code`. */
export interface NativeNetwork {
  createBridge(name: string): void;
  deleteBridge(name: string): void;
  setAddress(name: string, address: string, prefixLength: number): void;
  setUp(name: string, up: boolean): void;
  setMac(name: string, mac: string): void;
  createTap(name: string, ownerUid: number, alias: string): void;
  deleteTap(name: string): void;
  addToBridge(bridge: string, name: string): void;
  removeFromBridge(bridge: string, name: string): void;
  setPortForwarding(name: string, forwarding: boolean): boolean;
  interfaceExists(name: string): boolean;
  listInterfaces(prefix: string): string[];
  counters(name: string): InterfaceCounters;
  countersByName(prefix: string): Record<string, InterfaceCounters>;
  announce(name: string, mac: string, address: string): void;
  /** A frame to nobody. */
  sendBlank(name: string): void;
  learnAddress(name: string, mac: string): boolean;
  setNeighbour(name: string, address: string, mac: string): void;
  PacketTrail: new (tap: string) => PacketTrail;
  shapeEgress(name: string, bytesPerSecond: number, burstBytes: number, queueBytes: number): void;
}

let loaded: NativeNetwork | undefined;

/** Loaded at the first use, so that a program that only prints its help needs no addon. @throws NATIVE_ERROR */
export function nativeNetwork(): NativeNetwork {
  loaded ??= loadAddon<NativeNetwork>();
  return loaded;
}

/** The errno name of a failure of the addon or of node:fs; null for anything else. */
export function errnoOf(error: unknown): string | null {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : null;
}

const REMEDIES: Record<string, string> = {
  EEXIST: 'Remove the interface of that name, or let the manager use another bridge name',
  ENODEV: 'Something else removed the interface; restart the VM to have it made anew',
  ENOENT: 'Load the kernel modules with `modprobe tun bridge`, or run the VM with network "user"',
  ENXIO: 'Load the kernel module with `modprobe tun`, or run the VM with network "user"',
  ENOPKG: 'Load the kernel module with `modprobe bridge`, or run the VM with network "user"',
};

/** @returns NOT_ROOT where rights are missing, else NETWORK_FAILED; a ShadowVmError is passed through */
function networkError(attempted: string, subject: string, error: unknown): ShadowVmError {
  if (error instanceof ShadowVmError) return error;
  const code = errnoOf(error);
  const reason = messageOf(error);
  if (code === 'EPERM' || code === 'EACCES')
    return new ShadowVmError('NOT_ROOT', {
      attempted,
      subject,
      reason,
      remedy: 'Start the manager as root (CAP_NET_ADMIN and /dev/net/tun), or run the VM with network "user"',
      cause: error,
    });
  return new ShadowVmError('NETWORK_FAILED', {
    attempted,
    subject,
    reason,
    remedy: (code === null ? undefined : REMEDIES[code]) ?? 'See `shadowvm doctor` for what this host offers',
    cause: error,
  });
}

/** Runs one step and gives its failure the words of what it was for. @throws NOT_ROOT, NETWORK_FAILED */
export function attempt<T>(attempted: string, subject: string, step: () => T): T {
  try {
    return step();
  } catch (error) {
    throw networkError(attempted, subject, error);
  }
}

/** Runs a step that undoes something: that there is nothing left to undo is success. */
export function attemptUnlessGone(attempted: string, subject: string, gone: readonly string[], step: () => void): void {
  try {
    step();
  } catch (error) {
    if (isNativeFailure(error) && gone.includes(error.code)) return;
    throw networkError(attempted, subject, error);
  }
}
