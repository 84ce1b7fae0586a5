/** IPv6 beside IPv4: a guest's second address is computed from its first, so that there is one thing to hand out. */
import { isIPv6 } from 'node:net';
import { ShadowVmError } from '../errors.js';
import { parseIpv4, type Subnet } from './address.js';

export interface Subnet6 {
  /** Network address as a 128-bit number. */
  base: bigint;
  prefixLength: number;
}

/** An address to a 128-bit number; null when it is not one, or has a zone. */
export function parseIpv6(text: string): bigint | null {
  if (!isIPv6(text) || text.includes('%')) return null;
  // The URL parser knows every way to write an address, dotted ends too, and gives the one canonical form.
  const [head = '', tail] = new URL(`http://[${text}]`).hostname.slice(1, -1).split('::');
  const groups = (part: string | undefined): string[] => (part ? part.split(':') : []);
  const zeros = tail === undefined ? 0 : 8 - groups(head).length - groups(tail).length;
  return [...groups(head), ...new Array<string>(zeros).fill('0'), ...groups(tail)].reduce(
    (value, group) => (value << 16n) | BigInt(`0x${group}`),
    0n,
  );
}

/** The canonical text of RFC 5952. */
export function formatIpv6(address: bigint): string {
  const groups = Array.from({ length: 8 }, (_, i) => ((address >> BigInt(112 - 16 * i)) & 0xffffn).toString(16));
  return new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1);
}

/** "fd00:1::/64". /16 to /120, out of what hosts may have. @throws INVALID_ARGUMENT */
export function parseSubnet6(text: string): Subnet6 {
  const fail = (reason: string, remedy: string) =>
    new ShadowVmError('INVALID_ARGUMENT', { attempted: 'read the IPv6 subnet', subject: text, reason, remedy });
  const [address = '', length = '', ...rest] = text.split('/');
  const parsed = parseIpv6(address);
  const prefixLength = /^\d{1,3}$/.test(length) ? Number(length) : -1;
  if (parsed === null || rest.length > 0 || prefixLength < 16 || prefixLength > 120)
    throw fail(
      'it is not an IPv6 network with a prefix length of 16 to 120',
      'Write it as an address and a prefix length, such as fd00:1::/64',
    );
  const base = (parsed >> BigInt(128 - prefixLength)) << BigInt(128 - prefixLength);
  if (base !== parsed)
    throw fail('bits behind the prefix are set', `Did you mean ${formatIpv6(base)}/${prefixLength}?`);
  // 2000::/3 is the whole Internet, fc00::/7 everybody's own; the rest is link-local, multicast or reserved.
  const first = Number(base >> 120n);
  if ((first & 0xe0) !== 0x20 && (first & 0xfe) !== 0xfc)
    throw fail('it is not in a range that hosts may have', 'Use a private range such as fd00:1::/64');
  return { base, prefixLength };
}

export function formatSubnet6(subnet: Subnet6): string {
  return `${formatIpv6(subnet.base)}/${subnet.prefixLength}`;
}

export function overlaps6(a: Subnet6, b: Subnet6): boolean {
  const shift = BigInt(128 - Math.min(a.prefixLength, b.prefixLength));
  return a.base >> shift === b.base >> shift;
}

/** Whether each address of the IPv4 subnet has a place in the IPv6 one. */
export function hasRoomFor(subnet6: Subnet6, subnet: Subnet): boolean {
  return 128 - subnet6.prefixLength >= 32 - subnet.prefixLength;
}

/** The address at the same place in the IPv6 subnet as `address` has in the IPv4 one: 10.1.0.7 and fd00::7. */
export function address6Of(subnet6: Subnet6, subnet: Subnet, address: string): string {
  return formatIpv6(subnet6.base + BigInt((parseIpv4(address) ?? subnet.base) - subnet.base));
}

/** The link-local address that a guest makes of its MAC (EUI-64, RFC 4291). */
export function linkLocalOf(mac: string): string {
  const bytes = mac.split(':').map((byte) => BigInt(`0x${byte}`));
  const [first = 0n, second = 0n, third = 0n, ...rest] = bytes;
  const id = [first ^ 2n, second, third, 0xffn, 0xfen, ...rest].reduce((value, byte) => (value << 8n) | byte, 0n);
  return formatIpv6((0xfe80n << 112n) | id);
}

/** Networks in the kernel's /proc/net/if_inet6: every address of the host with its prefix. */
export function parseIfInet6(text: string): (Subnet6 & { device: string })[] {
  return text
    .split('\n')
    .map((line) => /^([0-9a-f]{32}) [0-9a-f]+ ([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ +(\S+)$/.exec(line))
    .filter((match) => match !== null)
    .map(([, address, prefix, device]) => ({
      base: BigInt(`0x${address}`),
      prefixLength: Number.parseInt(prefix as string, 16),
      device: device as string,
    }));
}
