/**
 * Whether the kernel forwards packets that come in at an interface. Per interface and not by `net.ipv4.ip_forward`, which
 * would make a router of the host for everybody on all of its networks.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { ShadowVmError } from '../errors.js';

const IPV4 = '/proc/sys/net/ipv4/conf';

/** The interfaces of default routes in /proc/net/route: where the answers of the world come in. */
export function defaultDevices(routes: string): string[] {
  const lines = routes.split('\n').slice(1);
  const fields = lines.map((line) => line.trim().split(/\s+/));
  return [...new Set(fields.filter((f) => f[1] === '00000000' && f[7] === '00000000').map((f) => f[0] as string))];
}

/** Interfaces of default routes that do not forward yet. */
export function unforwardingUplinks(): string[] {
  return defaultDevices(readFileSync('/proc/net/route', 'utf8')).filter(
    (name) => read(`${IPV4}/${name}/forwarding`) === '0',
  );
}

/** @throws NETWORK_FAILED where /proc/sys can not be written */
export function setForwarding(name: string, on: boolean): void {
  write(`${IPV4}/${name}/forwarding`, on ? '1' : '0');
}

/**
 * Takes back what setForwarding did to interfaces that are not ours. Nothing where the whole host forwards by now: somebody
 * else wants it so.
 */
export function restoreForwarding(names: readonly string[]): void {
  if (read('/proc/sys/net/ipv4/ip_forward') !== '0') return;
  for (const name of names) if (read(`${IPV4}/${name}/forwarding`) === '1') setForwarding(name, false);
}

/** Lets packets from the host's loopback out to a bridge, as published ports are asked for on 127.0.0.1 too. */
export function routeLoopback(bridge: string): void {
  write(`${IPV4}/${bridge}/route_localnet`, '1');
}

/** IPv6 knows forwarding of the whole host only, and with it a host no longer configures itself: left to its admin. */
export function forwardsIpv6(): boolean {
  return read('/proc/sys/net/ipv6/conf/all/forwarding') === '1';
}

/** Empty when it is not there. */
function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

function write(path: string, value: string): void {
  try {
    writeFileSync(path, value);
  } catch (cause) {
    throw new ShadowVmError('NETWORK_FAILED', {
      attempted: 'forward packets to and from VMs',
      subject: path,
      reason: cause instanceof Error ? cause.message : String(cause),
      remedy: 'Start the manager as root, where /proc/sys can be written',
      cause,
    });
  }
}
