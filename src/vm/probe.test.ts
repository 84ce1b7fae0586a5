import { expect, test } from 'vitest';
import { formatProbe, type ProbeCheck, parseProbe } from './probe.js';

test.each<[string, ProbeCheck]>([
  ['tcp:6379', { kind: 'tcp', port: 6379 }],
  ['redis:6379', { kind: 'redis', port: 6379 }],
  ['http:80/health?deep=1', { kind: 'http', port: 80, path: '/health?deep=1' }],
  ['http:8080/', { kind: 'http', port: 8080, path: '/' }],
  ['exec:test -e /run/ready: yes', { kind: 'exec', command: 'test -e /run/ready: yes' }],
])('%s is read and written', (text, check) => {
  expect(parseProbe(text)).toEqual(check);
  expect(formatProbe(check)).toBe(text);
});

test('a path may be left out', () => expect(parseProbe('http:80')).toEqual({ kind: 'http', port: 80, path: '/' }));

test.each([
  ['', 'it begins with none of'],
  ['udp:53', 'it begins with none of'],
  ['tcp:', 'it has no port'],
  ['tcp:x', 'it has no port'],
  ['tcp:0', 'a port is 1 to 65535'],
  ['redis:65536', 'a port is 1 to 65535'],
  ['tcp:80/', 'tcp has no path'],
  ['http:80/a b', 'a path begins with /'],
  ['exec:', 'a command is one line'],
  ['exec:a\nb', 'a command is one line'],
])('%j is refused: %s', (text, reason) =>
  expect(() => parseProbe(text)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', reason: expect.stringContaining(reason) }),
  ),
);
