import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { collect, publishedPort, ramBytes, vmName, wholeNumber } from './parse.js';

const refused = (reason: RegExp) =>
  expect.objectContaining({
    code: 'INVALID_ARGUMENT',
    reason: expect.stringMatching(reason),
    remedy: expect.anything(),
  });

test.each(['', 'Web', '1web', 'web_1', 'web.', 'a'.repeat(33), 'wéb', '../etc', 'web\n'])(
  '%j is no name of a VM',
  (text) => expect(() => vmName(text)).toThrow(refused(/1 to 32 characters/)),
);
test('a DNS label is', () => expect(vmName('web-2')).toBe('web-2'));

test.each([
  ['63M', /64M to 64G/],
  ['65G', /64M to 64G/],
  ['1.0001G', /whole/],
  ['256', /no unit/],
])('%s of RAM is refused', (text, reason) => expect(() => ramBytes(text)).toThrow(refused(reason)));
test('0.5G of RAM is 512 MiB', () => expect(ramBytes('0.5G')).toBe(512 * 1024 * 1024));

describe('published ports', () => {
  test('host and guest', () => expect(publishedPort('8080:80')).toEqual({ hostPort: 8080, guestPort: 80 }));
  test.each([
    ['8080', /form HOST:GUEST/],
    ['a:b', /form HOST:GUEST/],
    ['0:80', /0 is not a port/],
    ['80:65536', /65536 is not a port/],
    ['1:2:3', /form HOST:GUEST/],
  ])('%s is refused', (text, reason) => expect(() => publishedPort(text)).toThrow(refused(reason)));
  const port = fc.integer({ min: 1, max: 65535 });
  test('every pair reads back', () =>
    fc.assert(
      fc.property(port, port, (hostPort, guestPort) => {
        expect(publishedPort(`${hostPort}:${guestPort}`)).toEqual({ hostPort, guestPort });
      }),
    ));
});

test('whole numbers within bounds', () => {
  const vcpus = wholeNumber('the number of vCPUs', 1, 8);
  expect(vcpus('8')).toBe(8);
  expect(() => vcpus('9')).toThrow(refused(/from 1 to 8/));
  expect(() => vcpus('1.5')).toThrow(refused(/not a whole number/));
  expect(() => vcpus('-1')).toThrow(refused(/not a whole number/));
});

test('options that are given several times add up', () => {
  const add = collect(publishedPort);
  expect(add('2:2', add('1:1', undefined))).toEqual([
    { hostPort: 1, guestPort: 1 },
    { hostPort: 2, guestPort: 2 },
  ]);
});
