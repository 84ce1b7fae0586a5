import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseSubnet } from './address.js';
import {
  address6Of,
  formatIpv6,
  formatSubnet6,
  hasRoomFor,
  linkLocalOf,
  overlaps6,
  parseIfInet6,
  parseIpv6,
  parseSubnet6,
} from './address6.js';

describe('IPv6 addresses', () => {
  test('an address survives being written and read', () => {
    fc.assert(fc.property(fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }), (n) => parseIpv6(formatIpv6(n)) === n));
  });

  test.each(['', '::1::', '10.0.0.1', 'fe80::1%eth0', '1:2:3', 'g::', '::1 '])('%j is no address', (text) =>
    expect(parseIpv6(text)).toBeNull(),
  );

  test('however it is written, it is read', () => {
    expect(parseIpv6('FD00:0:0::0001')).toBe(0xfd00n * 2n ** 112n + 1n);
    expect(parseIpv6('::ffff:10.0.0.1')).toBe(0xffff0a000001n);
    expect(formatSubnet6(parseSubnet6('fd00:0001::/64'))).toBe('fd00:1::/64');
  });

  test.each([
    ['fd00::', /not an IPv6 network/],
    ['fd00::/8', /not an IPv6 network/],
    ['fd00::/121', /not an IPv6 network/],
    ['fd00::/64/64', /not an IPv6 network/],
    ['10.0.0.0/24', /not an IPv6 network/],
    ['fd00::1/64', /Did you mean fd00::\/64/],
    ['fe80::/64', /not in a range/],
    ['ff02::/16', /not in a range/],
    ['::/64', /not in a range/],
  ])('%j is refused as a subnet', (text, message) => {
    expect(() => parseSubnet6(text)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => parseSubnet6(text)).toThrow(message);
  });

  test('a guest has the same place in both subnets', () => {
    const [four, six] = [parseSubnet('10.1.0.0/16'), parseSubnet6('fd00:1::/64')];
    expect(address6Of(six, four, '10.1.0.2')).toBe('fd00:1::2');
    expect(address6Of(six, four, '10.1.2.3')).toBe('fd00:1::203');
    expect(hasRoomFor(six, four)).toBe(true);
    expect(hasRoomFor(parseSubnet6('fd00:1::/112'), four)).toBe(true);
    expect(hasRoomFor(parseSubnet6('fd00:1::/113'), four)).toBe(false);
  });

  test('the link-local address is the one that kernels make of a MAC', () => {
    expect(linkLocalOf('52:54:00:12:34:56')).toBe('fe80::5054:ff:fe12:3456');
  });

  test('two subnets overlap when one holds the other', () => {
    const [wide, narrow] = [parseSubnet6('fd00:1::/48'), parseSubnet6('fd00:1:0:2::/64')];
    expect(overlaps6(wide, narrow)).toBe(true);
    expect(overlaps6(narrow, wide)).toBe(true);
    expect(overlaps6(narrow, parseSubnet6('fd00:1:0:3::/64'))).toBe(false);
  });

  test('the kernel’s table is read', () => {
    const table =
      '00000000000000000000000000000001 01 80 10 80       lo\n' +
      'fd000001000000000000000000000001 07 40 00 82     svb0\n';
    expect(parseIfInet6(table).map((a) => `${a.device} ${formatIpv6(a.base)}/${a.prefixLength}`)).toEqual([
      'lo ::1/128',
      'svb0 fd00:1::1/64',
    ]);
    expect(parseIfInet6('')).toEqual([]);
  });
});
