/**
 * What nftables is told, as text for `nft -f -`: pure functions. Each script replaces what it is about whole, in the one
 * transaction that a script is, so no packet ever meets half of it and nothing has to be known of what was there.
 *
 * Two tables for each manager, named by its state tag:
 *   netdev  a chain for each tap, at its ingress: what a guest may send, and how much
 *   inet    for all networks: isolation, NAT, published ports
 */
import { formatSubnet, parseIpv4, type Subnet } from './address.js';
import { formatSubnet6, linkLocalOf, parseIpv6, type Subnet6 } from './address6.js';

export interface GuardedGuest {
  mac: string;
  address: string;
  address6: string | null;
  /** In each direction; null for no limit. */
  bytesPerSecond: number | null;
}

export interface RuledNetwork {
  bridge: string;
  subnet: Subnet;
  subnet6: Subnet6 | null;
  /** Guests reach what the host reaches, under the host's address; from outside only published ports are reached. */
  nat: boolean;
}

export interface PublishedPort {
  hostPort: number;
  address: string;
  guestPort: number;
}

function tableName(stateTag: string): string {
  return `shadowvm_${stateTag}`;
}

/** A segment of TCP can come as one packet of 64 KiB, and a bucket that is smaller would never let it through. */
const BURST_BYTES_MIN = 128 * 1024;
const BURST_SECONDS = 0.02;
const QUEUE_SECONDS = 0.05;

/** How a limit is set: what may pass at once, and what may wait. */
export function bucketOf(bytesPerSecond: number): { burstBytes: number; queueBytes: number } {
  const burstBytes = Math.max(BURST_BYTES_MIN, Math.ceil(bytesPerSecond * BURST_SECONDS));
  return { burstBytes, queueBytes: burstBytes + Math.max(BURST_BYTES_MIN, Math.ceil(bytesPerSecond * QUEUE_SECONDS)) };
}

/**
 * Rules for what comes out of a tap. Its bandwidth is policed: what is too much is dropped, after a second's worth that a
 * guest may have saved up (the kernel's own idea of a bucket). To queue it instead would take one more interface for each
 * tap (ifb), between it and the bridge.
 * At its ingress and not in the bridge family: there, frames for link-local groups
 * pass by the hooks and still teach the bridge their source address. What is not named here is dropped: frames of other
 * protocols, VLANs, and those of a guest that would speak for another or for the router.
 */
export function guardScript(stateTag: string, tap: string, guest: GuardedGuest): string {
  const chain = `netdev ${tableName(stateTag)} ${tap}`;
  const own6 = [linkLocalOf(guest.mac), ...(guest.address6 === null ? [] : [guest.address6])];
  const targets = own6.map((address) => `0x${(parseIpv6(address) ?? 0n).toString(16).padStart(32, '0')}`).join(', ');
  // Its target stands behind 8 bytes of ICMPv6; a name for it is younger than Debian 12's nft.
  const notOwnTarget = `@th,64,128 != { ${targets} }`;
  const limit =
    guest.bytesPerSecond === null
      ? []
      : [
          `limit rate over ${guest.bytesPerSecond} bytes/second burst ${bucketOf(guest.bytesPerSecond).burstBytes} bytes drop`,
        ];
  const rules = [
    `ether saddr != ${guest.mac} drop`,
    ...limit,
    // 0.0.0.0 asks whether an address is taken.
    `ether type arp arp saddr ether ${guest.mac} arp saddr ip { 0.0.0.0, ${guest.address} } accept`,
    // The host's loopback is reachable through a bridge with published ports.
    'ether type ip ip daddr 127.0.0.0/8 drop',
    `ether type ip ip saddr ${guest.address} accept`,
    'ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } drop',
    `ether type ip6 icmpv6 type nd-neighbor-advert ${notOwnTarget} drop`,
    `ether type ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit ${notOwnTarget} drop`,
    `ether type ip6 ip6 saddr { ::, ${own6.join(', ')} } accept`,
  ];
  return script(
    `add table netdev ${tableName(stateTag)}`,
    // Old kernels delete a chain with its device and new ones keep it for the next of the name: gone it is either way.
    ...removal([chain]),
    `add chain ${chain} { type filter hook ingress device "${tap}" priority filter; policy drop; }`,
    ...rules.map((rule) => `add rule ${chain} ${rule}`),
  );
}

/** Takes away the chains of taps that are gone or go. */
export function releaseScript(stateTag: string, taps: readonly string[]): string {
  const table = tableName(stateTag);
  return script(`add table netdev ${table}`, ...removal(taps.map((tap) => `netdev ${table} ${tap}`)));
}

/** `add` first: to delete what is not there is an error, and `destroy` is younger than Debian 12's kernel. */
function removal(chains: string[]): string[] {
  return chains.flatMap((chain) => [`add chain ${chain}`, `flush chain ${chain}`, `delete chain ${chain}`]);
}

/** All that is not about one tap. */
export function networksScript(
  stateTag: string,
  networks: readonly RuledNetwork[],
  ports: readonly PublishedPort[],
): string {
  const table = `inet ${tableName(stateTag)}`;
  const bridges = networks.map(({ bridge }) => `"${bridge}"`).join(', ');
  const publishes = (network: RuledNetwork) =>
    ports.some(({ address }) => isWithin(network.subnet, parseIpv4(address) ?? 0));
  const translated = networks.flatMap((network) => {
    const { bridge, subnet, subnet6, nat } = network;
    return [
      // From the host's loopback, and from a guest to its neighbour by way of the host: answers have to come back here.
      ...(publishes(network)
        ? [
            `oifname "${bridge}" ip saddr 127.0.0.0/8 masquerade`,
            `oifname "${bridge}" ip saddr ${formatSubnet(subnet)} ct status dnat masquerade`,
          ]
        : []),
      ...(nat ? [`oifname != "${bridge}" ip saddr ${formatSubnet(subnet)} masquerade`] : []),
      ...(nat && subnet6 !== null ? [`oifname != "${bridge}" ip6 saddr ${formatSubnet6(subnet6)} masquerade`] : []),
    ];
  });
  const isolated = networks.flatMap(({ bridge, nat }) => [
    `iifname "${bridge}" oifname "${bridge}" accept`,
    // Translation alone hides nothing: who is on the host's own network could route to the guests.
    nat ? `oifname "${bridge}" drop` : `iifname { ${bridges} } oifname "${bridge}" drop`,
  ]);
  const published =
    ports.length === 0
      ? []
      : [
          `fib daddr type local dnat ip to tcp dport map { ${ports.map((p) => `${p.hostPort} : ${p.address} . ${p.guestPort}`).join(', ')} }`,
        ];
  return script(
    ...removeTable(table),
    ...(networks.length === 0
      ? []
      : [
          `add table ${table}`,
          ...chain(table, 'loopback', 'filter hook prerouting priority raw', [
            `iifname { ${bridges} } ip daddr 127.0.0.0/8 drop`,
          ]),
          ...chain(table, 'publish', 'nat hook prerouting priority dstnat', published),
          // Debian 12's nft knows no name for the priority of this hook.
          ...chain(table, 'publish_local', 'nat hook output priority -100', published),
          ...chain(table, 'translate', 'nat hook postrouting priority srcnat', translated),
          ...chain(table, 'isolate', 'filter hook forward priority filter', [
            'ct state established,related accept',
            'ct status dnat accept',
            ...isolated,
          ]),
        ]),
  );
}

/** Takes away all of a manager's rules of one kind. */
export function sweepScript(stateTag: string, family: 'netdev' | 'inet'): string {
  return script(...removeTable(`${family} ${tableName(stateTag)}`));
}

function removeTable(table: string): string[] {
  return [`add table ${table}`, `delete table ${table}`];
}

function chain(table: string, name: string, hook: string, rules: string[]): string[] {
  return [
    `add chain ${table} ${name} { type ${hook}; policy accept; }`,
    ...rules.map((rule) => `add rule ${table} ${name} ${rule}`),
  ];
}

function isWithin(subnet: Subnet, address: number): boolean {
  return address >= subnet.base && address < subnet.base + 2 ** (32 - subnet.prefixLength);
}

function script(...lines: string[]): string {
  return lines.map((line) => line + '\n').join('');
}
