/** Names and addresses of a manager's network: pure functions of the state directory, the subnet and what is taken. */
import { createHash } from 'node:crypto';
import { endianness } from 'node:os';
import { ShadowVmError } from '../errors.js';

/** The kernel's limit on interface names (IFNAMSIZ less the NUL). */
export const INTERFACE_NAME_BYTES_MAX = 15;
export const SLOT_MAX = 99_999_999;

export interface Subnet {
  /** Network address as an unsigned 32-bit number. */
  base: number;
  prefixLength: number;
}

/** An address that the host already uses or routes to. */
export interface UsedRange extends Subnet {
  /** The interface it belongs to. */
  device: string;
}

/** Dotted IPv4 to an unsigned 32-bit number; null when it is not one. */
export function parseIpv4(text: string): number | null {
  const parts = text.split('.');
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255)) return null;
  return parts.reduce((value, part) => value * 256 + Number(part), 0);
}

export function formatIpv4(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join('.');
}

function maskOf(prefixLength: number): number {
  return prefixLength === 0 ? 0 : (0xffffffff << (32 - prefixLength)) >>> 0;
}

function sizeOf(subnet: Subnet): number {
  return 2 ** (32 - subnet.prefixLength);
}

/** "10.213.0.0/24". /8 to /29: room for the host and at least one guest. @throws INVALID_ARGUMENT */
export function parseSubnet(text: string): Subnet {
  const fail = (reason: string, remedy: string) =>
    new ShadowVmError('INVALID_ARGUMENT', { attempted: 'read the subnet', subject: text, reason, remedy });
  const [address = '', length = '', ...rest] = text.split('/');
  const parsed = parseIpv4(address);
  const prefixLength = /^\d{1,2}$/.test(length) ? Number(length) : -1;
  if (parsed === null || rest.length > 0 || prefixLength < 8 || prefixLength > 29)
    throw fail(
      'it is not an IPv4 network with a prefix length of 8 to 29',
      'Write it as an address and a prefix length, such as 10.213.0.0/24',
    );
  const base = (parsed & maskOf(prefixLength)) >>> 0;
  if (base !== parsed)
    throw fail('bits behind the prefix are set', `Did you mean ${formatIpv4(base)}/${prefixLength}?`);
  // 0/8 is "this network", 127/8 loopback, 224/3 multicast and reserved.
  const first = base >>> 24;
  if (first === 0 || first === 127 || first >= 224)
    throw fail('it is not in a range that hosts may have', 'Use a private range such as 10.213.0.0/24');
  return { base, prefixLength };
}

export function formatSubnet(subnet: Subnet): string {
  return `${formatIpv4(subnet.base)}/${subnet.prefixLength}`;
}

/** The host's own address: the first of the subnet. */
export function hostAddress(subnet: Subnet): string {
  return formatIpv4(subnet.base + 1);
}

/** The lowest address that a guest may have (.2 and up) and nobody has. @throws NETWORK_CONFLICT when all are taken */
export function lowestFreeAddress(subnet: Subnet, taken: ReadonlySet<string>): string {
  // The last address is the broadcast's.
  for (let address = subnet.base + 2; address < subnet.base + sizeOf(subnet) - 1; address++) {
    const text = formatIpv4(address);
    if (!taken.has(text)) return text;
  }
  throw new ShadowVmError('NETWORK_CONFLICT', {
    attempted: 'find an address for the VM',
    subject: formatSubnet(subnet),
    reason: `all ${sizeOf(subnet) - 3} addresses of the subnet are taken`,
    remedy: 'Remove stopped VMs, or start the manager with a larger subnet',
  });
}

export function overlaps(a: Subnet, b: Subnet): boolean {
  const mask = maskOf(Math.min(a.prefixLength, b.prefixLength));
  return (a.base & mask) === (b.base & mask);
}

/**
 * The routes of /proc/net/route. Left out are default routes and those wider than /8: a VPN that takes "everything"
 * as 0.0.0.0/1 and 128.0.0.0/1 is a default route in disguise, and a more specific one beside it is no conflict.
 * The kernel prints each address as one number in the byte order of the machine.
 */
export function parseRoutes(text: string, littleEndian = endianness() === 'LE'): UsedRange[] {
  const address = (hex: string): number => {
    const bytes = Buffer.from(hex, 'hex');
    return littleEndian ? bytes.readUInt32LE(0) : bytes.readUInt32BE(0);
  };
  return text
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => /^[0-9A-F]{8}$/i.test(fields[1] ?? '') && /^[0-9A-F]{8}$/i.test(fields[7] ?? ''))
    .map((fields) => ({
      device: fields[0]!,
      base: address(fields[1]!),
      // A mask's bits are contiguous: the number of ones is the prefix length.
      prefixLength: address(fields[7]!).toString(2).replaceAll('0', '').length,
    }))
    .filter((route) => route.prefixLength >= 8);
}

/** The first of the used ranges that the subnet would clash with, ignoring those of `ownDevice`. */
export function findConflict(subnet: Subnet, used: readonly UsedRange[], ownDevice: string): UsedRange | null {
  return used.find((range) => range.device !== ownDevice && overlaps(subnet, range)) ?? null;
}

/**
 * Names one manager by its state directory, in 12 hexadecimal digits. It is in the names of its taps and in the alias
 * of each of its interfaces, so that two managers on a host never take each other's.
 */
export function stateTag(stateDir: string): string {
  return createHash('sha256').update(stateDir).digest('hex').slice(0, 12);
}

/**
 * `sv` + 4 digits of the state tag + slot + `p` or `s`: sv3fa212p. Two sides, since at a promotion the primary's and the
 * shadow's tap exist at once; the sides change roles, the names stay. @throws INVALID_ARGUMENT
 */
export function tapName(tag: string, slot: number, side: 'p' | 's'): string {
  if (!/^[0-9a-f]{4,}$/.test(tag) || !Number.isInteger(slot) || slot < 0 || slot > SLOT_MAX)
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'name a tap',
      subject: `${tag} ${slot}`,
      reason: `the slot must be a whole number of 0 to ${SLOT_MAX} and the tag hexadecimal`,
    });
  return `${tapPrefix(tag)}${slot}${side}`;
}

/** What the names of all taps of a manager begin with: for sampling their counters at once. */
export function tapPrefix(tag: string): string {
  return `sv${tag.slice(0, 4)}`;
}

/**
 * QEMU's range 52:54:00 and three bytes of the name's hash: the same name keeps its address, and DHCP leases and
 * neighbours' caches with it. 24 bits are few, so a clash with one that is `taken` is hashed again.
 */
export function macAddress(name: string, taken: ReadonlySet<string> = new Set()): string {
  // Each round misses with probability taken/2^24; a set that beats this bound is no set of a manager's VMs.
  for (let round = 0; round < 64; round++) {
    const hash = createHash('sha256').update(round === 0 ? name : `${name}#${round}`);
    const mac = ['52', '54', '00', ...(hash.digest('hex').slice(0, 6).match(/../g) ?? [])].join(':');
    if (!taken.has(mac)) return mac;
  }
  throw new ShadowVmError('NETWORK_CONFLICT', {
    attempted: 'find a MAC address for the VM',
    subject: name,
    reason: `64 candidates in a row are taken (${taken.size} addresses in use)`,
    remedy: 'Remove stopped VMs',
  });
}
