/** A host without nftables: what needs no rules works, what needs them is refused with the remedy. Needs root. */
import net from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { examineHost } from '../src/host/doctor.js';
import { MIB } from '../src/vm/spec.js';

process.env.SHADOWVM_NFT = '/nowhere/nft';
const missing = { code: 'PACKAGE_MISSING', remedy: 'Run `apt-get install nftables`' };
const vm = { ramBytes: 192 * MIB };

let manager: InProcessManager;
beforeAll(async () => {
  manager = await InProcessManager.open({ bridge: `svw${process.pid.toString(36)}`, subnet: '10.214.87.0/24' });
});
afterAll(async () => {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
});

test('a VM runs on a tap as before, and that nothing guards it is told once', async () => {
  await manager.port.createNetwork({ name: 'one', subnet: '10.214.88.0/24' });
  for (const [name, net] of [
    ['a', 'default'],
    ['b', 'one'],
  ] as const) {
    expect(await manager.runVm({ ...vm, name, net })).toMatchObject({ networkMode: 'tap', state: 'running' });
    await manager.port.removeVm(name, { force: true });
  }
  expect(manager.events.list({}).filter(({ level }) => level !== 'info')).toEqual([
    ...manager.events.list({}).filter(({ type }) => type === 'host.no-kvm'),
    expect.objectContaining({ type: 'host.no-firewall', message: expect.stringContaining('nft is not installed') }),
  ]);
});

test('NAT, published ports and bandwidths are refused, and nothing is left', async () => {
  const nat = { name: 'two', subnet: '10.214.89.0/24', nat: true };
  await expect(manager.port.createNetwork(nat)).rejects.toMatchObject(missing);
  expect(manager.port.listNetworks().map(({ name }) => name)).toEqual(['default', 'one']);
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, resolve));
  const { port: hostPort } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  const publish = [{ hostPort, guestPort: 6379 }];
  await expect(manager.runVm({ ...vm, name: 'c', publish })).rejects.toMatchObject(missing);
  await expect(manager.runVm({ ...vm, name: 'd', bandwidthBitsPerSecond: 1e8 })).rejects.toMatchObject(missing);
  expect(manager.port.listVms()).toEqual([]);
});

test('the doctor says what is missing and how to get it', async () => {
  const findings = await examineHost({ imagesDir: manager.stateDir.imagesDir, stateDir: manager.stateDir.root });
  expect(findings.find(({ name }) => name === 'firewall')).toEqual({
    name: 'firewall',
    status: 'warn',
    found: expect.stringMatching(/guests can speak for other addresses.*no published ports/),
    remedy: missing.remedy,
  });
});
