import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  findConflict,
  formatIpv4,
  formatSubnet,
  hostAddress,
  INTERFACE_NAME_BYTES_MAX,
  lowestFreeAddress,
  macAddress,
  overlaps,
  parseIpv4,
  parseRoutes,
  parseSubnet,
  SLOT_MAX,
  stateTag,
  tapName,
  tapPrefix,
} from './address.js';

describe('addresses', () => {
  test('an address survives being written and read', () => {
    fc.assert(fc.property(fc.integer({ min: 0, max: 0xffffffff }), (n) => parseIpv4(formatIpv4(n)) === n));
  });

  test.each(['', '1.2.3', '1.2.3.4.5', '1.2.3.256', '01.2.3.4', '1.2.3.-4', '1.2.3.4 ', 'a.b.c.d', '1..2.3'])(
    '%j is no address',
    (text) => expect(parseIpv4(text)).toBeNull(),
  );

  test('a subnet is read, and the host takes its first address', () => {
    const subnet = parseSubnet('10.213.0.0/24');
    expect(formatSubnet(subnet)).toBe('10.213.0.0/24');
    expect(hostAddress(subnet)).toBe('10.213.0.1');
    expect(hostAddress(parseSubnet('192.168.255.248/29'))).toBe('192.168.255.249');
  });

  test.each([
    ['10.213.0.0', /not an IPv4 network/],
    ['10.213.0.0/', /not an IPv4 network/],
    ['10.213.0.0/24/8', /not an IPv4 network/],
    ['10.213.0.0/30', /not an IPv4 network/],
    ['10.0.0.0/7', /not an IPv4 network/],
    ['10.213.0.1/24', /Did you mean 10\.213\.0\.0\/24/],
    ['127.0.0.0/8', /not in a range/],
    ['0.0.0.0/8', /not in a range/],
    ['224.0.0.0/24', /not in a range/],
  ])('%j is refused as a subnet', (text, message) => {
    expect(() => parseSubnet(text)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => parseSubnet(text)).toThrow(message);
  });

  test('guests get the lowest free address until the broadcast address', () => {
    const subnet = parseSubnet('10.0.0.0/29');
    const taken = new Set<string>();
    for (const expected of [2, 3, 4, 5, 6]) {
      const address = lowestFreeAddress(subnet, taken);
      expect(address).toBe(`10.0.0.${expected}`);
      taken.add(address);
    }
    expect(() => lowestFreeAddress(subnet, taken)).toThrow(expect.objectContaining({ code: 'NETWORK_CONFLICT' }));
    taken.delete('10.0.0.4');
    expect(lowestFreeAddress(subnet, taken)).toBe('10.0.0.4');
  });
});

describe('conflicts with the host', () => {
  test('two subnets overlap when one holds the other', () => {
    const wide = parseSubnet('10.0.0.0/8');
    const narrow = parseSubnet('10.213.0.0/24');
    expect(overlaps(wide, narrow)).toBe(true);
    expect(overlaps(narrow, wide)).toBe(true);
    expect(overlaps(narrow, parseSubnet('10.213.1.0/24'))).toBe(false);
  });

  const routes = [
    'Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT',
    'eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0',
    'tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0',
    'eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0',
    'tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0',
    'br9\t0000D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0',
    '',
  ].join('\n');

  test('the kernel’s table is read; default routes, also halved ones, do not count', () => {
    expect(parseRoutes(routes, true).map((r) => `${r.device} ${formatSubnet(r)}`)).toEqual([
      'eth0 192.0.2.0/24',
      'tun0 10.0.0.0/8',
      'br9 10.213.0.0/24',
    ]);
    const bigEndian = 'head\neth0\tC0000200\t0\t0\t0\t0\t0\tFFFFFF00\t0\t0\t0\n';
    expect(parseRoutes(bigEndian, false).map(formatSubnet)).toEqual(['192.0.2.0/24']);
  });

  test('a route through another interface is a conflict, the bridge’s own is not', () => {
    const used = parseRoutes(routes, true);
    expect(findConflict(parseSubnet('10.213.0.0/24'), used, 'br9')?.device).toBe('tun0');
    expect(findConflict(parseSubnet('192.0.2.0/28'), used, 'br9')?.device).toBe('eth0');
    expect(findConflict(parseSubnet('172.20.0.0/16'), used, 'br9')).toBeNull();
    expect(findConflict(parseSubnet('10.213.0.0/24'), [used[2]!], 'br9')).toBeNull();
  });
});

describe('names', () => {
  test('every tap name fits, tells sides and slots apart, and begins with the prefix of its manager', () => {
    fc.assert(
      fc.property(fc.string(), fc.integer({ min: 0, max: SLOT_MAX }), fc.constantFrom('p', 's'), (dir, slot, side) => {
        const tag = stateTag(dir);
        const name = tapName(tag, slot, side as 'p' | 's');
        return Buffer.byteLength(name) <= INTERFACE_NAME_BYTES_MAX && name.startsWith(tapPrefix(tag));
      }),
    );
    const tag = stateTag('/var/lib/shadowvm');
    const names = [0, 1, 10, 11, 101].flatMap((slot) => [tapName(tag, slot, 'p'), tapName(tag, slot, 's')]);
    expect(new Set(names).size).toBe(10);
    expect(tapName('3fa2aaaaaaaa', 12, 'p')).toBe('sv3fa212p');
  });

  test.each([-1, 1.5, Number.NaN, SLOT_MAX + 1])('slot %d is refused', (slot) => {
    expect(() => tapName('3fa2aaaaaaaa', slot, 'p')).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  test('a MAC address is stable, unicast, in QEMU’s range, and steps aside when taken', () => {
    const first = macAddress('web');
    expect(first).toMatch(/^52:54:00(:[0-9a-f]{2}){3}$/);
    expect(macAddress('web')).toBe(first);
    const second = macAddress('web', new Set([first]));
    expect(second).toMatch(/^52:54:00/);
    expect(second).not.toBe(first);
  });
});
