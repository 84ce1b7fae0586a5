/** Declared networks with real guests on them: who reaches whom, and that nothing of it stays. Needs root. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { statePrefix } from '../harness/killed-runs.js';
import { leftovers } from '../harness/leftovers.js';
import { Networks } from '../src/manager/networks.js';
import { nativeNetwork } from '../src/network/native.js';
import { sweepNetwork, tapsPermitted } from '../src/network/network.js';
import { nftSupport } from '../src/network/nft.js';
import { networkSpecSchema } from '../src/vm/network.js';
import { MIB } from '../src/vm/spec.js';
import { freePort, pingRedis as ping } from './redis-port.js';

const RAM_BYTES = 192 * MIB;
const ID = process.pid.toString(36);
const ip = (...words: string[]): string => execFileSync('ip', words, { encoding: 'utf8', stdio: 'pipe' });
const rules = (): string => execFileSync('nft', ['list', 'ruleset'], { encoding: 'utf8' });
const forwarding = (name: string): string => readFileSync(`/proc/sys/net/ipv4/conf/${name}/forwarding`, 'utf8').trim();
const supported = tapsPermitted().ok && (await nftSupport()).guard === null && (await nftSupport()).translate === null;

describe.skipIf(!supported)('what is declared', () => {
  let dir: string;
  let events: string[];
  let networks: Networks;
  const open = () => {
    const append = (_level: string, type: string, _vm: string | null, message: string) =>
      void events.push(`${type}: ${message}`);
    const options = { stateDir: dir, path: join(dir, 'networks.json'), events: { append: append as never } };
    return new Networks({ ...options, bridge: `svd${ID}`, subnet: '10.214.80.0/24' });
  };
  const declare = (name: string, more: object = {}) =>
    networks.create(networkSpecSchema.parse({ name, subnet: '10.214.81.0/24', ...more }));
  beforeEach(() => {
    dir = mkdtempSync(statePrefix());
    events = [];
    networks = open();
  });
  afterEach(async () => {
    await networks.close();
    expect(leftovers(dir)).toEqual([]);
    rmSync(dir, { recursive: true });
  });

  test('is a bridge at once, listed beside the default one, and gone when it is removed', async () => {
    const view = await declare('backend', { subnet6: 'fd00:0814::/64', nat: true });
    expect(view).toEqual({
      ...{ name: 'backend', subnet: '10.214.81.0/24', subnet6: 'fd00:814::/64', nat: true },
      ...{ hostAddress: '10.214.81.1', hostAddress6: 'fd00:814::1', up: true, vms: [] },
      bridge: expect.stringMatching(/^svn[0-9a-f]{8}$/),
    });
    expect(nativeNetwork().interfaceExists(view.bridge)).toBe(true);
    expect(networks.list().map(({ name, up }) => [name, up])).toEqual([
      ['default', false],
      ['backend', true],
    ]);
    expect(networks.show('backend')).toEqual(view);
    await networks.remove('backend');
    expect(nativeNetwork().interfaceExists(view.bridge)).toBe(false);
    expect(rules()).not.toContain(view.bridge);
    expect(() => networks.show('backend')).toThrow(expect.objectContaining({ code: 'NETWORK_NOT_FOUND' }));
  });

  test.each<[string, string, object, RegExp]>([
    ['the name of another', 'NETWORK_EXISTS', { name: 'one', subnet: '10.214.99.0/24' }, /of this name exists/],
    ['the name of the default', 'NETWORK_EXISTS', { name: 'default', subnet: '10.214.99.0/24' }, /of this name/],
    [
      'a subnet inside another',
      'NETWORK_CONFLICT',
      { subnet: '10.214.82.128/25' },
      /overlaps with .* of the network one/,
    ],
    ['a subnet around another', 'NETWORK_CONFLICT', { subnet: '10.214.0.0/16' }, /overlaps/],
    ['the subnet of the default', 'NETWORK_CONFLICT', { subnet: '10.214.80.0/24' }, /of the network default/],
    [
      'an IPv6 subnet inside another',
      'NETWORK_CONFLICT',
      { subnet6: 'fd00:82:0:0:1::/80' },
      /overlaps with fd00:82::\/64/,
    ],
    ['the bridge of another', 'NETWORK_CONFLICT', { bridge: `sve${ID}` }, /the network one has the bridge/],
    ['somebody else’s interface', 'NETWORK_CONFLICT', { bridge: 'lo' }, /belongs to something else/],
    ['a subnet of the host', 'NETWORK_CONFLICT', { subnet: '10.214.90.0/24' }, /the host already reaches/],
    ['no subnet', 'INVALID_ARGUMENT', { subnet: 'backend' }, /not an IPv4 network/],
    ['no bridge’s name', 'INVALID_ARGUMENT', { bridge: 'a/b' }, /a name has 1 to 15/],
  ])('%s is refused with %s, and nothing is left', async (_what, code, more, reason) => {
    await declare('one', { subnet: '10.214.82.0/24', subnet6: 'fd00:82::/64', bridge: `sve${ID}` });
    ip('link', 'add', `svf${ID}`, 'type', 'bridge');
    try {
      ip('addr', 'add', '10.214.90.5/24', 'dev', `svf${ID}`);
      ip('link', 'set', `svf${ID}`, 'up');
      const before = [
        networks.list(),
        rules(),
        nativeNetwork().listInterfaces(''),
        readFileSync(join(dir, 'networks.json'), 'utf8'),
      ];
      const error = await declare('two', more).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({ code, reason: expect.stringMatching(reason), remedy: expect.any(String) });
      expect([
        networks.list(),
        rules(),
        nativeNetwork().listInterfaces(''),
        readFileSync(join(dir, 'networks.json'), 'utf8'),
      ]).toEqual(before);
    } finally {
      ip('link', 'del', `svf${ID}`);
    }
  });

  test('neither the default, nor one with VMs, nor one that is not there can be removed', async () => {
    await declare('one');
    networks.vmsOn = () => ['web', 'db'];
    await expect(networks.remove('one')).rejects.toMatchObject({
      code: 'NETWORK_IN_USE',
      reason: '2 VMs are on it: web, db',
    });
    await expect(networks.remove('default')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(networks.remove('two')).rejects.toMatchObject({ code: 'NETWORK_NOT_FOUND' });
    expect(networks.show('one').up).toBe(true);
  });

  test('is there again after a restart, and after a crash that left everything', async () => {
    const uplinks = ip('route', 'show', 'default').match(/(?<=dev )\S+/g) ?? [];
    const before = uplinks.map(forwarding);
    const { bridge } = await declare('one', { nat: true });
    expect(uplinks.map(forwarding)).toEqual(uplinks.map(() => '1'));
    // Killed here: the bridge, the rules and the forwarding are left.
    networks = open();
    await networks.load();
    const swept = await networks.recover();
    expect(swept).toEqual([bridge]);
    expect(uplinks.map(forwarding)).toEqual(before);
    expect(networks.show('one')).toMatchObject({ bridge, nat: true, up: true });
    await networks.close();
    expect(leftovers(dir)).toEqual([]);
    networks = open();
    await networks.load();
    await networks.recover();
    expect(networks.list().map(({ name, up }) => [name, up])).toEqual([
      ['default', false],
      ['one', true],
    ]);
    expect(events.filter((event) => !/^(network\.created|host\.forwarding)/.test(event))).toEqual([]);
  });

  test('a file that can not be read is set aside and told, a network that can not be made is told', async () => {
    await declare('one', { bridge: `sve${ID}` });
    await networks.close();
    networks = open();
    ip('link', 'add', `sve${ID}`, 'type', 'bridge');
    try {
      await networks.load();
      await networks.recover();
      expect(events.at(-1)).toMatch(
        /^network.failed: the network one can not be made again: .* belongs to something else/,
      );
      expect(networks.show('one').up).toBe(false);
    } finally {
      ip('link', 'del', `sve${ID}`);
    }
    expect(networks.open('one').bridge).toBe(`sve${ID}`);
    await networks.close();
    writeFileSync(join(dir, 'networks.json'), '{"version": 2}');
    networks = open();
    await networks.load();
    await networks.recover();
    expect(events.at(-1)).toMatch(/^state.corrupt: /);
    expect(existsSync(join(dir, 'networks.json.corrupt'))).toBe(true);
    expect(networks.list()).toHaveLength(1);
  });
});

describe.skipIf(!supported)('VMs on two networks', () => {
  const OUTSIDE = `svt-${process.pid}-out`;
  const outsidePort = `svo${ID}`;
  let manager: InProcessManager;
  let hostPort: number;
  beforeAll(async () => {
    // A host beyond this one, on a network with it: what the world is to a guest. Like an uplink, its interface forwards
    // (which the manager sees to for default routes).
    ip('netns', 'add', OUTSIDE);
    ip('link', 'add', outsidePort, 'type', 'veth', 'peer', 'name', 'up0', 'netns', OUTSIDE);
    ip('addr', 'add', '198.51.100.1/24', 'dev', outsidePort);
    ip('link', 'set', outsidePort, 'up');
    ip('-n', OUTSIDE, 'addr', 'add', '198.51.100.2/24', 'dev', 'up0');
    ip('-n', OUTSIDE, 'link', 'set', 'up0', 'up');
    ip('-n', OUTSIDE, 'route', 'add', '10.214.0.0/16', 'via', '198.51.100.1');
    writeFileSync(`/proc/sys/net/ipv4/conf/${outsidePort}/forwarding`, '1');

    manager = await InProcessManager.open({ bridge: `svd${ID}`, subnet: '10.214.83.0/24' });
    hostPort = await freePort();
    await manager.port.createNetwork({ name: 'one', subnet: '10.214.84.0/24', subnet6: 'fd00:84::/64', nat: true });
    await manager.port.createNetwork({ name: 'two', subnet: '10.214.85.0/24', nat: true });
    await manager.runVm({
      ...{ name: 'a', net: 'one', ramBytes: RAM_BYTES, bandwidthBitsPerSecond: 200_000_000 },
      publish: [{ hostPort, guestPort: 6379 }],
    });
    await manager.runVm({ name: 'b', net: 'two', ramBytes: RAM_BYTES });
    // A guest beats before it has its addresses.
    for (const address of ['10.214.84.2', '10.214.85.2'])
      await vi.waitFor(() => ping(address, 6379), { timeout: 20_000, interval: 100 });
  });
  afterAll(async () => {
    const { root } = manager.stateDir;
    await manager.close();
    ip('link', 'del', outsidePort);
    ip('netns', 'del', OUTSIDE);
    expect(leftovers(root)).toEqual([]);
    sweepNetwork(root);
  });

  const inGuest = async (vm: string, command: string): Promise<number> =>
    (await manager.port.guestExec(vm, command)).exitCode;
  /** Whether a host outside gets an answer from Redis there. */
  const fromOutside = (host: string, port: number): boolean => {
    const script = `const s = require('node:net').connect(${port}, '${host}', () => s.write('PING\\r\\n'));
      s.on('data', (d) => { console.log(String(d)); process.exit(); }); s.on('error', () => process.exit(1));
      setTimeout(() => process.exit(2), 1500);`;
    try {
      const words = ['netns', 'exec', OUTSIDE, process.execPath, '-e', script];
      return execFileSync('ip', words, { encoding: 'utf8' }).includes('PONG');
    } catch {
      return false;
    }
  };

  test('have addresses of their network, by IPv6 too where it has them', async () => {
    expect(manager.port.showVm('a')).toMatchObject({ address: '10.214.84.2', address6: 'fd00:84::2' });
    expect(manager.port.showVm('b')).toMatchObject({ address: '10.214.85.2', address6: null });
    expect(manager.port.showNetwork('one').vms).toEqual(['a']);
    expect(await ping('10.214.84.2', 6379)).toBe('PONG');
    expect(await inGuest('a', 'ping -c 1 -W 2 fd00:84::1')).toBe(0);
    // Redis does not listen there: the guest itself says so.
    await expect(ping('fd00:84::2', 6379)).rejects.toThrow(/ECONNREFUSED/);
  });

  test('reach the world by NAT, and not each other', async () => {
    for (const vm of ['a', 'b']) expect(await inGuest(vm, 'ping -c 1 -W 2 198.51.100.2')).toBe(0);
    expect(await inGuest('b', 'ping -c 1 -W 1 10.214.84.2')).not.toBe(0);
    expect(await inGuest('b', 'nc -w 1 10.214.84.2 6379 < /dev/null')).not.toBe(0);
    expect(await inGuest('a', 'nc -w 1 10.214.84.2 6379 < /dev/null')).toBe(0);
  });

  test('a published port is reached from everywhere, the guest itself is not', async () => {
    expect(await ping('127.0.0.1', hostPort)).toBe('PONG');
    expect(await ping('198.51.100.1', hostPort)).toBe('PONG');
    expect(fromOutside('198.51.100.1', hostPort)).toBe(true);
    expect(fromOutside('10.214.84.2', 6379)).toBe(false);
    // What is published is public, to the other network as well.
    expect(await inGuest('b', `nc -w 2 10.214.85.1 ${hostPort} < /dev/null`)).toBe(0);
  });

  test('a port that one VM publishes is taken for others', async () => {
    const refused = { code: 'INVALID_ARGUMENT', reason: expect.stringContaining(`port ${hostPort} of the host`) };
    const publish = [{ hostPort, guestPort: 80 }];
    await expect(manager.runVm({ name: 'c', net: 'two', publish })).rejects.toMatchObject(refused);
    await expect(manager.runVm({ name: 'c', network: 'user', publish })).rejects.toMatchObject(refused);
    await expect(manager.runVm({ name: 'c', net: 'three' })).rejects.toMatchObject({ code: 'NETWORK_NOT_FOUND' });
    await expect(manager.port.removeNetwork('one')).rejects.toMatchObject({ code: 'NETWORK_IN_USE' });
  });

  test('a guest speaks for no other address than its own', async () => {
    expect(await inGuest('a', 'ping -c 1 -W 2 10.214.84.1')).toBe(0);
    expect(await inGuest('a', 'ip addr add 10.214.84.77/24 dev eth0')).toBe(0);
    expect(await inGuest('a', 'ping -c 1 -W 1 -I 10.214.84.77 10.214.84.1')).not.toBe(0);
    expect(await inGuest('a', 'ip addr del 10.214.84.77/24 dev eth0')).toBe(0);
  });

  test('a shadow has its rules before it runs, and takes the published port over', async () => {
    await manager.port.createShadow('a', () => {});
    const { tap } = manager.port.showVm('a');
    const guarded = () => [...rules().matchAll(/device "(\w+)"/g)].map((match) => match[1]);
    await expect.poll(guarded).toEqual(expect.arrayContaining([tap, tap!.replace(/p$/, 's')]));
    const before = rules();
    const promoted = manager.nextPromotion('a');
    await manager.port.injectFault('a', 'kill');
    await promoted;
    const guards = (text: string) => text.split('table inet')[0]?.match(/chain \w+ \{[^}]*\}/g);
    expect(guards(rules())?.length).toBe(guards(before)?.length);
    expect(manager.port.showVm('a').tap).not.toBe(tap);
    expect(await ping('127.0.0.1', hostPort)).toBe('PONG');
    expect(fromOutside('198.51.100.1', hostPort)).toBe(true);
    expect(await inGuest('a', 'ping -c 1 -W 2 fd00:84::1')).toBe(0);
    expect(await inGuest('a', 'ping -c 1 -W 2 198.51.100.2')).toBe(0);
  });

  test('a VM that has ended leaves no rule, and its port and its network free', async () => {
    await manager.port.removeVm('a', { force: true });
    expect(rules()).not.toMatch(/10\.214\.84\.2\b/);
    await expect(ping('127.0.0.1', hostPort)).rejects.toThrow(/ECONNREFUSED/);
    const { bridge } = manager.port.showNetwork('one');
    await manager.port.removeNetwork('one');
    expect(nativeNetwork().interfaceExists(bridge)).toBe(false);
    expect(await inGuest('b', 'ping -c 1 -W 2 198.51.100.2')).toBe(0);
  });
});
