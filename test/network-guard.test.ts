/** What a guest may send and how much: real taps, a real bridge, real rules, and frames that no honest guest would send. */
import { execFileSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { statePrefix } from '../harness/killed-runs.js';
import { stateTag, tapName } from '../src/network/address.js';
import { Firewall } from '../src/network/firewall.js';
import { Network, sweepNetwork } from '../src/network/network.js';
import { nftSupport } from '../src/network/nft.js';
import { until } from './bare-qemu.js';
import { arp, BROADCAST, frame, icmp6, udp, Wire } from './wire.js';

const STATE_DIR = `${statePrefix()}network`;
const TAG = stateTag(STATE_DIR);
const BRIDGE = `svg${process.pid.toString(36)}`;
const NETWORK = { stateDir: STATE_DIR, bridge: BRIDGE, subnet: '10.213.196.0/24', subnet6: 'fd00:196::/64' };
const [tapA, tapB] = [tapName(TAG, 0, 'p'), tapName(TAG, 1, 'p')];
const a = { mac: '52:54:00:00:00:0a', address: '10.213.196.10', address6: 'fd00:196::a' };
const b = { mac: '52:54:00:00:00:0b', address: '10.213.196.11', address6: 'fd00:196::b' };
const a6 = `fd000196${'0'.repeat(23)}a`;
const b6 = `fd000196${'0'.repeat(23)}b`;
const aLinkLocal = 'fe80000000000000505400fffe00000a';
const bLinkLocal = 'fe80000000000000505400fffe00000b';

const rules = (): string => execFileSync('nft', ['list', 'ruleset'], { encoding: 'utf8' });

let network: Network;
let firewall: Firewall;
let unguarded: string[];
const wires: Wire[] = [];

async function connect(aBytesPerSecond: number | null): Promise<[Wire, Wire]> {
  for (const [tap, guest, bytesPerSecond] of [
    [tapA, a, aBytesPerSecond],
    [tapB, b, null],
  ] as const) {
    network.prepareTap(tap, 0);
    await firewall.guardTap(tap, { ...guest, bytesPerSecond });
  }
  const both: [Wire, Wire] = [await attach(tapA), await attach(tapB)];
  network.connectTap(tapA, a);
  network.connectTap(tapB, b);
  return both;
}

async function attach(tap: string): Promise<Wire> {
  const wire = await Wire.attach(tap);
  wires.push(wire);
  return wire;
}

beforeEach(() => {
  unguarded = [];
  network = Network.open(NETWORK);
  firewall = new Firewall(TAG, (reason) => unguarded.push(reason));
});
afterEach(async () => {
  for (const wire of wires.splice(0)) wire.close();
  await firewall.sweep();
  sweepNetwork(STATE_DIR);
  expect(unguarded).toEqual([]);
  expect(rules()).not.toContain(TAG);
});

describe.skipIf((await nftSupport()).guard !== null)('a guarded tap', () => {
  test('lets pass what a guest sends as itself, and nothing that it sends as another', async () => {
    const [wireA, wireB] = await connect(null);
    const honest: Record<string, Buffer> = {
      'ok-arp': arp(a.mac, a, 'ok-arp'),
      'ok-probe': arp(a.mac, { mac: a.mac, address: '0.0.0.0' }, 'ok-probe'),
      'ok-ipv4': udp(a.mac, a.address, '10.213.196.255', 'ok-ipv4'),
      'ok-elsewhere': udp(a.mac, a.address, '192.0.2.1', 'ok-elsewhere'),
      'ok-ipv6': icmp6(a.mac, a6, 128, b6, 'ok-ipv6'),
      'ok-advert': icmp6(a.mac, a6, 136, a6, 'ok-advert'),
      'ok-local': icmp6(a.mac, aLinkLocal, 136, aLinkLocal, 'ok-local'),
      'ok-dad': icmp6(a.mac, '0'.repeat(32), 135, a6, 'ok-dad'),
    };
    const forged: Record<string, Buffer> = {
      'no-mac': udp(b.mac, a.address, '10.213.196.255', 'no-mac'),
      'no-arp': arp(a.mac, { mac: a.mac, address: b.address }, 'no-arp'),
      'no-gateway': arp(a.mac, { mac: a.mac, address: '10.213.196.1' }, 'no-gateway'),
      'no-arp-mac': arp(a.mac, { mac: b.mac, address: a.address }, 'no-arp-mac'),
      'no-ipv4': udp(a.mac, b.address, '10.213.196.255', 'no-ipv4'),
      'no-zero': udp(a.mac, '0.0.0.0', '255.255.255.255', 'no-zero'),
      'no-loopback': udp(a.mac, a.address, '127.0.0.1', 'no-loopback'),
      'no-ipv6': icmp6(a.mac, b6, 128, a6, 'no-ipv6'),
      'no-local': icmp6(a.mac, bLinkLocal, 128, a6, 'no-local'),
      'no-advert': icmp6(a.mac, a6, 136, b6, 'no-advert'),
      'no-dad': icmp6(a.mac, '0'.repeat(32), 135, b6, 'no-dad'),
      'no-router': icmp6(a.mac, aLinkLocal, 134, a6, 'no-router'),
      'no-redirect': icmp6(a.mac, aLinkLocal, 137, a6, 'no-redirect'),
      'no-vlan': frame(a.mac, BROADCAST, '8100', Buffer.from('00010806', 'hex'), 'no-vlan'),
      'no-other': frame(a.mac, BROADCAST, '88b5', Buffer.alloc(46), 'no-other'),
      'no-runt': frame(a.mac, BROADCAST, '0800', Buffer.alloc(0), 'no-runt'),
    };
    for (const bytes of [...Object.values(forged), ...Object.values(honest)]) wireA.send(bytes);
    await until('the honest frames', () => Object.keys(honest).every((mark) => wireB.has(mark)), 5000);
    // They were sent before the honest ones, which have come.
    expect(Object.keys(forged).filter((mark) => wireB.has(mark))).toEqual([]);
  });

  test('that is connected is announced to the others, for both of its addresses', async () => {
    const [wireA, wireB] = await connect(null);
    network.cutTap(tapA);
    const before = wireB.received.length;
    network.connectTap(tapA, a);
    network.announce(tapA, a);
    const mac = Buffer.from(a.mac.replaceAll(':', ''), 'hex');
    const announced = () => wireB.received.slice(before).filter((each) => each.subarray(6, 12).equals(mac));
    await until('three announcements', () => announced().length >= 3, 5000);
    const [request, reply, advertisement] = announced() as [Buffer, Buffer, Buffer];
    expect([request, reply].map((each) => [each.readUInt16BE(12), each.readUInt16BE(20)])).toEqual([
      [0x0806, 1],
      [0x0806, 2],
    ]);
    expect(advertisement.readUInt16BE(12)).toBe(0x86dd);
    // Type and flags, target, and the MAC in the option behind it.
    expect([advertisement[54], advertisement[58]]).toEqual([136, 0x20]);
    expect(advertisement.subarray(62, 78).toString('hex')).toBe(a6);
    expect(advertisement.subarray(80, 86).equals(mac)).toBe(true);
    // Not to itself: but for that it hears what is for everybody.
    wireB.send(arp(b.mac, b, 'end'));
    await until('a broadcast', () => wireA.has('end'), 5000);
    expect(wireA.received.filter((each) => each.subarray(6, 12).equals(mac))).toEqual([]);
    // Nor to one that is cut off.
    const heard = announced().length;
    network.cutTap(tapB);
    network.announce(tapA, a);
    network.connectTap(tapB, b);
    wireA.send(arp(a.mac, a, 'after'));
    await until('a frame of the guest', () => wireB.has('after'), 5000);
    expect(announced()).toHaveLength(heard + 1);
  });

  test('teaches the bridge no MAC of others, not even by frames that bridges keep to themselves', async () => {
    const [wireA, wireB] = await connect(null);
    const learned = () => execFileSync('bridge', ['fdb', 'show', 'br', BRIDGE], { encoding: 'utf8' });
    // LLDP, spanning tree and pause frames are for the next bridge only.
    for (const group of ['01:80:c2:00:00:0e', '01:80:c2:00:00:00', '01:80:c2:00:00:01'])
      wireA.send(frame('52:54:00:00:00:cc', group, '88cc', Buffer.alloc(46), 'lldp'));
    wireA.send(arp('52:54:00:00:00:cc', a, 'arp'));
    wireA.send(arp(a.mac, a, 'end'));
    await until('the last frame', () => wireB.has('end'), 5000);
    expect(learned()).toContain(`${a.mac} dev ${tapA}`);
    expect(learned()).not.toContain('52:54:00:00:00:cc');
  });

  test('goes on after its tap was cut, severed and made anew; a released one leaves no rule', async () => {
    const [first, wireB] = await connect(null);
    network.cutTap(tapA);
    first.send(arp(a.mac, a, 'cut'));
    await sleep(100);
    expect(wireB.has('cut')).toBe(false);
    network.severTap(tapA);
    // Its process goes on: nothing of what it sends gets anywhere.
    for (let i = 0; i < 1000; i++) first.send(arp(a.mac, a, 'cut'));
    await sleep(100);
    expect(wireB.has('cut')).toBe(false);
    wires.splice(0, 1);
    first.close();
    network.prepareTap(tapA, 0);
    await firewall.guardTap(tapA, { ...a, bytesPerSecond: null });
    const second = await attach(tapA);
    network.connectTap(tapA, a);
    second.send(udp(a.mac, b.address, '10.213.196.255', 'forged'));
    second.send(arp(a.mac, a, 'honest'));
    await until('the honest frame', () => wireB.has('honest'), 5000);
    expect(wireB.has('forged')).toBe(false);
    network.deleteTap(tapA);
    await firewall.releaseTaps([tapA, 'svnever0p']);
    expect(rules()).not.toContain(tapA);
    expect(rules()).toContain(tapB);
  });
});

describe.skipIf((await nftSupport()).guard !== null)('a bandwidth', () => {
  const RATE = 500_000;
  const BURST = 128 * 1024;
  const SENT_BYTES = 1400;

  /** Bytes that came through in the time, of more than three times as many sent. */
  async function flood(from: Wire, to: Wire, guest: { mac: string; address: string }): Promise<[number, number]> {
    const startedMs = performance.now();
    const endMs = startedMs + 2500;
    while (performance.now() < endMs) {
      for (let i = 0; i < 12; i++) from.send(udp(guest.mac, guest.address, '10.213.196.255', 'flood', SENT_BYTES));
      await sleep(5);
    }
    const bytes = to.received.filter((each) => each.includes('flood')).reduce((sum, each) => sum + each.length, 0);
    return [bytes, performance.now() - startedMs];
  }

  test.each(['from the guest', 'to the guest'])('holds for what goes %s', async (direction) => {
    const [wireA, wireB] = await connect(RATE);
    const [bytes, tookMs] =
      direction === 'from the guest' ? await flood(wireA, wireB, a) : await flood(wireB, wireA, b);
    // The kernel's limit for what a guest sends saves up a second in which it sent nothing; the queue towards it does not.
    const savedUp = BURST + (direction === 'from the guest' ? RATE : 0);
    const allowed = savedUp + (RATE * tookMs) / 1000;
    expect(bytes).toBeLessThan(allowed * 1.1);
    expect(bytes).toBeGreaterThan(allowed * 0.6);
  });
});
