import fc from 'fast-check';
import { expect, test } from 'vitest';
import { loadOrder, moduleDepends, moduleName } from './kernel-module.js';

test.each([
  ['kernel/drivers/char/hw_random/virtio-rng.ko', 'virtio_rng'],
  ['virtio_net.ko.xz', 'virtio_net'],
  ['kernel/x/a-b.ko.zst', 'a_b'],
  ['kernel/arch/x86/crypto/sha1-ssse3.ko', 'sha1_ssse3'],
])('%s is the module %s', (path, name) => expect(moduleName(path)).toBe(name));

test('dependencies are read from the module itself', () => {
  const module = (info: string) => Buffer.concat([Buffer.from('\x7fELF\xff\x80'), Buffer.from(info), Buffer.alloc(8)]);
  expect(moduleDepends(module('license=GPL\0depends=virtio_ring,net-failover\0name=x\0'))).toEqual([
    'virtio_ring',
    'net_failover',
  ]);
  expect(moduleDepends(module('license=GPL\0depends=\0name=x\0'))).toEqual([]);
  expect(moduleDepends(module('license=GPL\0softdepends=a\0'))).toEqual([]);
  expect(moduleDepends(Buffer.from('x\0depends=cut'))).toEqual(['cut']);
});

test('every module comes once, after what it depends on, else as wanted; built-in ones do not come', () => {
  const depends: Record<string, string[]> = {
    net: ['ring', 'core', 'failover'],
    mmio: ['ring', 'core'],
    ring: [],
    failover: [],
  };
  expect(loadOrder(['mmio', 'net', 'rng'], (name) => depends[name] ?? null)).toEqual([
    'ring',
    'mmio',
    'failover',
    'net',
  ]);
});

test('a circle is an error and no endless loop', () => {
  expect(() => loadOrder(['a'], (name) => (name === 'a' ? ['b'] : ['a']))).toThrow(/depends on itself/);
});

test('property: the order respects all dependencies of any graph without circles', () => {
  // Module n depends on some of those below it.
  const graphs = fc.array(fc.array(fc.nat(30), { maxLength: 5 }), { minLength: 1, maxLength: 30 });
  fc.assert(
    fc.property(graphs, fc.array(fc.nat(29), { minLength: 1 }), (graph, wantedNumbers) => {
      const dependsOf = (name: string) =>
        (graph[Number(name)] ?? []).filter((below) => below < Number(name)).map(String);
      const order = loadOrder(wantedNumbers.map(String), dependsOf);
      expect(new Set(order).size).toBe(order.length);
      for (const name of wantedNumbers.map(String)) expect(order).toContain(name);
      for (const [at, name] of order.entries())
        for (const below of dependsOf(name)) expect(order.indexOf(below)).toBeLessThan(at);
    }),
  );
});
