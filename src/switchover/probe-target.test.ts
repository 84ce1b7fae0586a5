import { expect, test } from 'vitest';
import { parseProbe, probeSchema } from '../vm/probe.js';
import { type VmSpecInput, vmSpecSchema } from '../vm/spec.js';
import { probeTarget } from './probe-target.js';

function target(probe: string, more: Partial<VmSpecInput>, address: string | null) {
  const probes = [probeSchema.parse({ check: parseProbe(probe) })];
  return probeTarget(vmSpecSchema.parse({ name: 'web', ...more, probes }), address);
}
const publish = [{ hostPort: 8080, guestPort: 80 }];

test('on a tap the guest itself is asked', () => {
  expect(target('tcp:80', { publish }, '10.1.0.2')).toMatchObject({ host: '10.1.0.2' });
  expect(target('tcp:80', { publish }, '10.1.0.2')?.portOf(80)).toBe(80);
});

test('in user mode a published port of the host is', () => {
  const found = target('http:80', { network: 'user', publish }, null);
  expect([found?.host, found?.portOf(80)]).toEqual(['127.0.0.1', 8080]);
});

test.each<[string, Partial<VmSpecInput>, RegExp]>([
  ['http:81', { network: 'user', publish }, /81 is none/],
  ['redis:6379', { network: 'auto' }, /6379 is none/],
  ['tcp:80', { network: 'user', publish }, /QEMU accepts each connection itself/],
  ['http:80', { network: 'none' }, /no network/],
])('%s is refused where it would say nothing', (probe, more, reason) =>
  expect(() => target(probe, more, null)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', reason: expect.stringMatching(reason) }),
  ),
);

test('a command needs no network', () => expect(target('exec:true', { network: 'none' }, null)).toBeNull());
