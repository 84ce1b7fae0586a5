/**
 * A manager's network on the host: one bridge, a tap per side of each VM. Everything here is synchronous; what stands
 * in a failover's way (cutTap, connectTap) is a handful of system calls.
 *
 * Ownership is written on the interface itself, as its alias ("shadowvm 3fa2…"): it can not go stale as a record in a
 * file can, it dies with the interface, and `ip link` shows it to whoever wonders what the interface is for.
 *
 *   prepareTap      the shadow's tap exists and is a port of the bridge, but down: QEMU attaches, nothing flows
 *   cutTap          fencing: the dead primary's tap stops forwarding, in microseconds
 *   connectTap      the shadow's tap goes up, the bridge and the host learn where the guest is now
 *   announce        the neighbours are told
 *   severTap        what cutTap did, made lasting: down and out of the bridge. Waits for the kernel, so it comes last
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { messageOf, ShadowVmError } from '../errors.js';
import {
  findConflict,
  formatSubnet,
  hostAddress,
  INTERFACE_NAME_BYTES_MAX,
  macAddress,
  parseIpv4,
  parseRoutes,
  parseSubnet,
  type Subnet,
  stateTag,
  tapPrefix,
  type UsedRange,
} from './address.js';
import {
  address6Of,
  formatIpv6,
  formatSubnet6,
  hasRoomFor,
  overlaps6,
  parseIfInet6,
  parseSubnet6,
  type Subnet6,
} from './address6.js';
import { attempt, attemptUnlessGone, errnoOf, type InterfaceCounters, nativeNetwork } from './native.js';

export const BRIDGE_NAME_DEFAULT = 'shadowvm0';
export const SUBNET_DEFAULT = '10.213.0.0/24';

export interface NetworkOptions {
  /** The state directory of the manager that owns the interfaces. */
  stateDir: string;
  /** 1 to 15 bytes. */
  bridge?: string | undefined;
  /** "10.213.0.0/24", /8 to /29. The host takes the first address. */
  subnet?: string | undefined;
  /** "fd00:1::/64", with room for the other; each guest has the same place in both. Without it, IPv4 only. */
  subnet6?: string | null | undefined;
}

/** Where a guest is to be found. */
export interface GuestAddresses {
  mac: string;
  address: string;
  address6: string | null;
}

export class Network {
  readonly bridge: string;
  readonly subnet: Subnet;
  /** The host's address on the bridge: the guests' gateway. */
  readonly hostAddress: string;
  readonly subnet6: Subnet6 | null;
  readonly hostAddress6: string | null;
  readonly #stateDir: string;

  private constructor(stateDir: string, bridge: string, subnet: Subnet, subnet6: Subnet6 | null) {
    this.#stateDir = stateDir;
    this.bridge = bridge;
    this.subnet = subnet;
    this.hostAddress = hostAddress(subnet);
    this.subnet6 = subnet6;
    this.hostAddress6 = this.address6Of(this.hostAddress);
  }

  /** The IPv6 address that belongs to an IPv4 one of this network; null without an IPv6 subnet. */
  address6Of(address: string): string | null {
    return this.subnet6 === null ? null : address6Of(this.subnet6, this.subnet, address);
  }

  /** The host's addresses in a network of these subnets. @throws INVALID_ARGUMENT */
  static describe(text: string, text6: string | null): { hostAddress: string; hostAddress6: string | null } {
    const { subnet, subnet6 } = parseSubnets(text, text6);
    const address = hostAddress(subnet);
    return { hostAddress: address, hostAddress6: subnet6 === null ? null : address6Of(subnet6, subnet, address) };
  }

  /**
   * Makes the bridge, or takes the one again that this manager's last run left.
   * @throws INVALID_ARGUMENT (subnet, name), NETWORK_CONFLICT (the name or the subnet is in use), NOT_ROOT,
   * NETWORK_FAILED
   */
  static open(options: NetworkOptions): Network {
    const bridge = options.bridge ?? BRIDGE_NAME_DEFAULT;
    const { subnet, subnet6 } = parseSubnets(options.subnet ?? SUBNET_DEFAULT, options.subnet6 ?? null);
    requireInterfaceName(bridge);
    const native = nativeNetwork();
    const attempted = 'set up the bridge';
    const exists = attempt(attempted, bridge, () => native.interfaceExists(bridge));
    if (exists && !isOwn(bridge, options.stateDir))
      throw new ShadowVmError('NETWORK_CONFLICT', {
        attempted,
        subject: bridge,
        reason: `an interface of this name exists and belongs to ${ownerOf(bridge)}`,
        remedy: 'Give this manager another bridge name and subnet, or delete the interface if it is not needed',
      });
    requireFreeSubnet(subnet, bridge);
    if (subnet6 !== null) requireFreeSubnet6(subnet6, bridge);
    const network = new Network(options.stateDir, bridge, subnet, subnet6);
    if (!exists) attempt(attempted, bridge, () => native.createBridge(bridge));
    try {
      attempt(attempted, bridge, () => {
        if (!exists) writeFileSync(aliasPath(bridge), markOf(options.stateDir));
        network.#configureBridge();
      });
    } catch (error) {
      // Half a bridge would be a conflict for the next attempt. The first failure is the one to report.
      if (!exists) swallow(() => native.deleteBridge(bridge));
      throw error;
    }
    return network;
  }

  #configureBridge(): void {
    const native = nativeNetwork();
    // Without an address of its own a bridge takes the lowest of its ports', which changes as taps come and go, and
    // each change is a broken ARP entry in every guest.
    native.setMac(this.bridge, macAddress(`bridge ${stateTag(this.#stateDir)}`));
    // A port has to forward in the moment it goes up. Snooping would hold multicast back from a promoted guest until
    // it reports its groups again.
    for (const setting of ['stp_state', 'forward_delay', 'multicast_snooping'])
      writeFileSync(`/sys/class/net/${this.bridge}/bridge/${setting}`, '0');
    if (this.subnet6 === null || this.hostAddress6 === null) silenceIpv6(this.bridge);
    else {
      restrainIpv6(this.bridge);
      native.setAddress(this.bridge, this.hostAddress6, this.subnet6.prefixLength);
    }
    native.setAddress(this.bridge, this.hostAddress, this.subnet.prefixLength);
    native.setUp(this.bridge, true);
  }

  /**
   * Makes a tap, owned by `ownerUid` so that an unprivileged QEMU can attach, as a port of the bridge that is down.
   * A tap of this name that this manager left is replaced. @throws NETWORK_CONFLICT, NOT_ROOT, NETWORK_FAILED
   */
  prepareTap(tap: string, ownerUid: number): void {
    const native = nativeNetwork();
    const attempted = 'make the tap';
    requireInterfaceName(tap);
    if (attempt(attempted, tap, () => native.interfaceExists(tap))) {
      if (!isOwn(tap, this.#stateDir))
        throw new ShadowVmError('NETWORK_CONFLICT', {
          attempted,
          subject: tap,
          reason: `an interface of this name exists and belongs to ${ownerOf(tap)}`,
          remedy: 'Delete the interface if it is not needed, or use another state directory',
        });
      this.deleteTap(tap);
    }
    attempt(attempted, tap, () => native.createTap(tap, ownerUid, markOf(this.#stateDir)));
    try {
      attempt(attempted, tap, () => {
        silenceIpv6(tap);
        // The tap keeps the random MAC it was born with: with the guest's, the bridge would take the guest's frames
        // for the host's own.
        native.addToBridge(this.bridge, tap);
      });
    } catch (error) {
      swallow(() => native.deleteTap(tap));
      throw error;
    }
  }

  /**
   * Lets traffic flow: the tap goes up, the bridge and the host learn where the guest is. A tap that was cut or severed
   * before is connected again.
   * @param guest null: for a guest whose addresses are not known; the tap only forwards
   * @param guestWaits it does not run yet, and is to find what it is sent at its tap
   * @returns whether the port forwards already; false when no QEMU is attached
   * @throws NOT_ROOT, NETWORK_FAILED
   */
  connectTap(tap: string, guest: GuestAddresses | null, guestWaits = false): boolean {
    const native = nativeNetwork();
    return attempt('connect the tap', tap, () => {
      try {
        native.addToBridge(this.bridge, tap);
      } catch (error) {
        if (errnoOf(error) !== 'EBUSY') throw error;
      }
      native.setUp(tap, true);
      // QEMU takes one frame for a guest that does not run yet, and loses it: at the guest's start the network hands it over
      // before the device may take any (seen with 7.2 and 10). After that one it leaves frames at the tap.
      if (guestWaits) native.sendBlank(tap);
      const forwards = native.setPortForwarding(tap, true);
      // If this is the only running port, the bridge regains its carrier with it, but the kernel's link watch lets the
      // host's own traffic through up to a second later. Being set up (again) brings it up to date at once.
      native.setUp(this.bridge, true);
      if (guest !== null) {
        native.learnAddress(tap, guest.mac);
        for (const address of addressesOf(guest)) native.setNeighbour(this.bridge, address, guest.mac);
      }
      return forwards;
    });
  }

  /**
   * Tells everybody on the bridge but the guest itself where it is, by gratuitous ARP and its like of IPv6: one that
   * just woke up under emulation translates some 500 blocks of code to hear it, and would do so before it answers.
   * @throws NOT_ROOT, NETWORK_FAILED
   */
  announce(tap: string, guest: GuestAddresses): void {
    const attempted = 'announce the guest';
    const all = attempt(attempted, this.bridge, () => readdirSync(`/sys/class/net/${this.bridge}/brif`));
    for (const port of all.filter((each) => each !== tap && isForwarding(each)))
      for (const address of addressesOf(guest))
        attemptUnlessGone(attempted, port, UNHEARD, () => nativeNetwork().announce(port, guest.mac, address));
  }

  /**
   * Fences a tap in microseconds: its port forwards nothing more, in either direction, but for a frame that the kernel
   * has in hand on another CPU. It holds until a QEMU opens or closes the tap: severTap must follow before the next one
   * is started on it. Safe on a tap that is cut, severed or gone. @throws NOT_ROOT, NETWORK_FAILED
   */
  cutTap(tap: string): void {
    // Its answer, that there is nothing to cut, is as good.
    attemptUnlessGone('cut the tap', tap, ['ENODEV'], () => void nativeNetwork().setPortForwarding(tap, false));
  }

  /**
   * Fences a tap for good: when this returns, not a frame passes in either direction, whatever QEMU does. Going down is
   * what cuts; leaving the bridge keeps it cut should something bring the interface up. Each waits for an RCU grace
   * period: 0.3 ms on an idle host, several on a busy one, in which the thread stands still. In a failover, cutTap comes
   * first and this when the guest runs again. Safe on a tap that is severed or gone. @throws NOT_ROOT, NETWORK_FAILED
   */
  severTap(tap: string): void {
    const native = nativeNetwork();
    attemptUnlessGone('sever the tap', tap, ['ENODEV'], () => native.setUp(tap, false));
    // EINVAL: it is no port of the bridge.
    attemptUnlessGone('sever the tap', tap, ['ENODEV', 'EINVAL'], () => native.removeFromBridge(this.bridge, tap));
  }

  /** Takes some 15 ms, in which the thread waits: never on a failover's path. Safe on a tap that is gone. */
  deleteTap(tap: string): void {
    attemptUnlessGone('delete the tap', tap, ['ENODEV'], () => nativeNetwork().deleteTap(tap));
  }

  /** @throws NETWORK_FAILED when the tap is gone */
  counters(tap: string): InterfaceCounters {
    return attempt('read the counters', tap, () => nativeNetwork().counters(tap));
  }

  /** The counters of all of this manager's taps by name, in one read of about 10 microseconds. */
  allCounters(): Record<string, InterfaceCounters> {
    const prefix = tapPrefix(stateTag(this.#stateDir));
    return attempt('read the counters', `${prefix}*`, () => nativeNetwork().countersByName(prefix));
  }

  /** Safe on one that is gone. @throws NOT_ROOT, NETWORK_FAILED */
  deleteBridge(): void {
    attemptUnlessGone('delete the bridge', this.bridge, ['ENODEV'], () => nativeNetwork().deleteBridge(this.bridge));
  }

  /** Takes away the bridge and every tap of this manager. @returns the names of what was deleted */
  close(): string[] {
    return sweepNetwork(this.#stateDir);
  }
}

/**
 * Deletes every interface that carries this manager's mark: what an earlier run left. Taps come before bridges.
 * @param keep names to leave: taps of VMs that live on, and their bridge
 * @returns the names of what was deleted. @throws NOT_ROOT, NETWORK_FAILED
 */
export function sweepNetwork(stateDir: string, keep: ReadonlySet<string> = new Set()): string[] {
  const native = nativeNetwork();
  const attempted = 'delete leftover interfaces';
  const own = attempt(attempted, stateDir, () => native.listInterfaces('')).filter(
    (name) => !keep.has(name) && isOwn(name, stateDir),
  );
  const bridges = own.filter((name) => existsSync(`/sys/class/net/${name}/bridge`));
  for (const tap of own.filter((name) => !bridges.includes(name)))
    attemptUnlessGone(attempted, tap, ['ENODEV'], () => native.deleteTap(tap));
  for (const bridge of bridges) attemptUnlessGone(attempted, bridge, ['ENODEV'], () => native.deleteBridge(bridge));
  return own;
}

export type TapsPermitted = { ok: true } | { ok: false; reason: string };
let tapsPermittedAnswer: TapsPermitted | undefined;

/**
 * Whether this process can make bridges and taps: it makes one of each and deletes them, since neither the uid nor the
 * capabilities tell (containers, missing modules, a filtered /dev/net/tun). Takes some 50 ms at the first call; the
 * answer holds for the life of the process.
 */
export function tapsPermitted(): TapsPermitted {
  tapsPermittedAnswer ??= tryTaps();
  return tapsPermittedAnswer;
}

function tryTaps(): TapsPermitted {
  // The process id makes the names unique among managers that try at the same time.
  const id = process.pid.toString(36);
  const [bridge, tap] = [`svtryb${id}`, `svtryt${id}`];
  let step = 'load the native addon';
  const undo: (() => void)[] = [];
  try {
    const native = nativeNetwork();
    step = 'make a bridge';
    native.createBridge(bridge);
    undo.push(() => native.deleteBridge(bridge));
    step = 'make a tap';
    native.createTap(tap, 0, '');
    undo.push(() => native.deleteTap(tap));
    step = 'add a tap to a bridge';
    native.addToBridge(bridge, tap);
    return { ok: true };
  } catch (error) {
    return { ok: false, reason: `could not ${step}: ${messageOf(error)}` };
  } finally {
    for (const step of undo.reverse()) swallow(step);
  }
}

function requireInterfaceName(name: string): void {
  // The addon guards the kernel's rule; this one gives the user's mistake the user's words.
  if (Buffer.byteLength(name) <= INTERFACE_NAME_BYTES_MAX && /^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(name)) return;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: 'name a network interface',
    subject: name,
    reason: `a name has 1 to ${INTERFACE_NAME_BYTES_MAX} letters, digits, "_", "." and "-", beginning with a letter or digit`,
    remedy: `Choose another name, such as ${BRIDGE_NAME_DEFAULT}`,
  });
}

/** @throws NETWORK_CONFLICT when an address or route of the host, other than the bridge's own, overlaps */
function requireFreeSubnet(subnet: Subnet, bridge: string): void {
  const used: UsedRange[] = attempt('read the routes of the host', '/proc/net/route', () =>
    parseRoutes(readFileSync('/proc/net/route', 'utf8')),
  );
  for (const [device, addresses] of Object.entries(networkInterfaces()))
    for (const { family, cidr } of addresses ?? []) {
      const [address = '', prefixLength] = cidr?.split('/') ?? [];
      const base = parseIpv4(address);
      if (family === 'IPv4' && base !== null) used.push({ device, base, prefixLength: Number(prefixLength) });
    }
  const conflict = findConflict(subnet, used, bridge);
  if (conflict === null) return;
  throw new ShadowVmError('NETWORK_CONFLICT', {
    attempted: 'set up the bridge',
    subject: `${bridge}, ${formatSubnet(subnet)}`,
    reason: `the host already reaches ${formatSubnet(conflict)} through ${conflict.device}`,
    remedy: 'Start the manager with a subnet that this host does not use',
  });
}

/** Both subnets of a network, each sound and the second with room for the first. @throws INVALID_ARGUMENT */
export function parseSubnets(text: string, text6: string | null): { subnet: Subnet; subnet6: Subnet6 | null } {
  const subnet = parseSubnet(text);
  const subnet6 = text6 === null ? null : parseSubnet6(text6);
  if (subnet6 === null || hasRoomFor(subnet6, subnet)) return { subnet, subnet6 };
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: 'read the subnets of the network',
    subject: `${formatSubnet(subnet)}, ${formatSubnet6(subnet6)}`,
    reason: 'the IPv6 subnet is smaller than the IPv4 one, and each guest has the same place in both',
    remedy: `Use one of /${96 + subnet.prefixLength} or larger, such as ${formatIpv6(subnet6.base)}/64`,
  });
}

/** @throws NETWORK_CONFLICT when an address of the host, other than the bridge's own, overlaps */
function requireFreeSubnet6(subnet6: Subnet6, bridge: string): void {
  let table: string;
  try {
    table = readFileSync('/proc/net/if_inet6', 'utf8');
  } catch (error) {
    throw new ShadowVmError('NETWORK_FAILED', {
      attempted: 'set up the bridge',
      subject: `${bridge}, ${formatSubnet6(subnet6)}`,
      reason: 'the kernel has no IPv6',
      remedy: 'Leave the IPv6 subnet out, or start the kernel without ipv6.disable=1',
      cause: error,
    });
  }
  const conflict = parseIfInet6(table).find((used) => used.device !== bridge && overlaps6(subnet6, used));
  if (conflict === undefined) return;
  throw new ShadowVmError('NETWORK_CONFLICT', {
    attempted: 'set up the bridge',
    subject: `${bridge}, ${formatSubnet6(subnet6)}`,
    reason: `the host has ${formatIpv6(conflict.base)}/${conflict.prefixLength} on ${conflict.device}`,
    remedy: 'Use an IPv6 subnet that this host does not use',
  });
}

// ---- The mark of ownership ----

const MARK = /^shadowvm ([0-9a-f]+)(?: (.+))?$/s;

const aliasPath = (name: string): string => `/sys/class/net/${name}/ifalias`;

/** The tag is what counts; the path tells people whose it is, at most STATE_PATH_BYTES_MAX of an alias's 255 bytes. */
const markOf = (stateDir: string): string => `shadowvm ${stateTag(stateDir)} ${stateDir}`;

function readMark(name: string): { tag: string; stateDir: string | undefined } | null {
  let alias: string;
  try {
    alias = readFileSync(aliasPath(name), 'utf8').trim();
  } catch {
    // It went away between listing and reading, or /sys is not mounted: then it can not be shown to be ours.
    return null;
  }
  const match = MARK.exec(alias);
  return match === null ? null : { tag: match[1] as string, stateDir: match[2] };
}

function isOwn(name: string, stateDir: string): boolean {
  return readMark(name)?.tag === stateTag(stateDir);
}

function ownerOf(name: string): string {
  const owner = readMark(name);
  if (owner === null) return 'something else';
  return owner.stateDir === undefined ? 'another ShadowVM manager' : `the ShadowVM manager of ${owner.stateDir}`;
}

/** The state directories of the managers that have interfaces here, whether they run or not. */
export function networkOwners(): string[] {
  const native = nativeNetwork();
  const names = attempt('look for the interfaces of managers', '', () => native.listInterfaces(''));
  return [...new Set(names.flatMap((name) => readMark(name)?.stateDir ?? []))];
}

// ---- Settings ----

const addressesOf = ({ address, address6 }: GuestAddresses): string[] =>
  address6 === null ? [address] : [address, address6];

const FORWARDING = '3';
/** The port went down or away; or so much waits for it that a frame is lost, as any other would be. */
const UNHEARD = ['ENODEV', 'ENXIO', 'ENETDOWN', 'ENOBUFS'];

/** false too for a port that went away. */
function isForwarding(port: string): boolean {
  try {
    return readFileSync(`/sys/class/net/${port}/brport/state`, 'utf8').trim() === FORWARDING;
  } catch {
    return false;
  }
}

/**
 * No IPv6 on the host's side of our interfaces: no duplicate-address chatter, no link-local addresses, and no guest
 * that reconfigures the host with a router advertisement. The guests' own IPv6 passes through the bridge untouched.
 */
function silenceIpv6(name: string): void {
  try {
    writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, '1');
  } catch (error) {
    // ENOENT: this kernel has no IPv6. EROFS: a container's /proc; the chatter stays, everything works.
    if (!['ENOENT', 'EROFS'].includes(errnoOf(error) ?? '')) throw error;
  }
}

/** IPv6 with our address only: guests can not configure the host, and no address waits for its duplicate to answer. */
function restrainIpv6(name: string): void {
  for (const [setting, value] of [
    ['accept_ra', '0'],
    ['accept_redirects', '0'],
    ['autoconf', '0'],
    ['accept_dad', '0'],
    ['disable_ipv6', '0'],
  ])
    writeFileSync(`/proc/sys/net/ipv6/conf/${name}/${setting}`, value as string);
}

/** For undoing on the way out of a failure, which is what gets reported. */
function swallow(step: () => void): void {
  try {
    step();
  } catch {
    // See above.
  }
}
