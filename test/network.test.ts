/** Bridges and taps on the real kernel, with real network namespaces and a real QEMU. Needs root. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest';
import { statePrefix } from '../harness/killed-runs.js';
import { stateTag, tapName } from '../src/network/address.js';
import { nativeNetwork } from '../src/network/native.js';
import { Network, type NetworkOptions, sweepNetwork, tapsPermitted } from '../src/network/network.js';
import { findQemu } from '../src/qemu/probe.js';

const native = nativeNetwork();
const permitted = tapsPermitted();
// It names this process, which keeps two runs of the tests on one host apart.
const STATE_DIR = `${statePrefix()}network`;
const TAG = stateTag(STATE_DIR);
const BRIDGE = `svt${process.pid.toString(36)}b`.slice(0, 15);
const OPTIONS: NetworkOptions = { stateDir: STATE_DIR, bridge: BRIDGE, subnet: '10.213.197.0/24' };
const NAMESPACES = ['a', 'b', 'c'].map((side) => `svt-${process.pid}-${side}`);
const children: ChildProcess[] = [];

const ip = (...words: string[]): string => execFileSync('ip', words, { encoding: 'utf8', stdio: 'pipe' });
const sysfs = (name: string, path: string): string => readFileSync(`/sys/class/net/${name}/${path}`, 'utf8').trim();

function cleanUp(): void {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  for (const name of native.listInterfaces(`v${TAG.slice(0, 4)}`)) ip('link', 'del', name);
  const namespaces = ip('netns', 'list');
  for (const name of NAMESPACES) if (namespaces.includes(name)) ip('netns', 'del', name);
  sweepNetwork(STATE_DIR);
}

function run(command: string, ...words: string[]): ChildProcess {
  const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  return child;
}

/** Whether a QEMU has opened the tap: only then does it have a carrier, which shows while it is up. */
function isAttached(tap: string): boolean {
  native.setUp(tap, true);
  const attached = sysfs(tap, 'carrier') === '1';
  native.setUp(tap, false);
  return attached;
}

afterEach(cleanUp);
afterAll(() => {
  cleanUp();
  expect(sweepNetwork(STATE_DIR)).toEqual([]);
  expect(native.interfaceExists(BRIDGE)).toBe(false);
});

describe.skipIf(!permitted.ok)('network', () => {
  test('permission is found out by doing, and leaves nothing', () => {
    expect(permitted).toEqual({ ok: true });
    expect(native.listInterfaces('svtry')).toEqual([]);
  });

  describe('bridge', () => {
    test('it has the host’s address, a MAC of its own and forwards at once; closing takes it away', () => {
      const network = Network.open(OPTIONS);
      const before = sysfs(BRIDGE, 'address');
      expect(
        networkInterfaces()[BRIDGE]?.find((a) => a.family === 'IPv4')?.cidr ?? ip('addr', 'show', BRIDGE),
      ).toContain('10.213.197.1/24');
      for (const setting of ['stp_state', 'forward_delay', 'multicast_snooping'])
        expect(sysfs(BRIDGE, `bridge/${setting}`)).toBe('0');
      const tap = tapName(TAG, 0, 'p');
      network.prepareTap(tap, 0);
      // The lowest MAC of all: a bridge without its own would take it.
      native.setMac(tap, '02:00:00:00:00:01');
      network.connectTap(tap, null);
      expect(sysfs(BRIDGE, 'address')).toBe(before);
      expect(network.close().sort()).toEqual([tap, BRIDGE].sort());
      expect(existsSync(`/sys/class/net/${BRIDGE}`)).toBe(false);
    });

    test('the manager’s next run takes it again, with the taps that are on it', () => {
      const tap = tapName(TAG, 0, 'p');
      Network.open(OPTIONS).prepareTap(tap, 0);
      const index = sysfs(BRIDGE, 'ifindex');
      const again = Network.open(OPTIONS);
      expect(sysfs(BRIDGE, 'ifindex')).toBe(index);
      expect(sweepNetwork(STATE_DIR, new Set([BRIDGE]))).toEqual([tap]);
      again.close();
    });

    test('a foreign interface of the name is a conflict and is left alone', () => {
      native.createBridge(BRIDGE);
      try {
        expect(() => Network.open(OPTIONS)).toThrow(expect.objectContaining({ code: 'NETWORK_CONFLICT' }));
        expect(sweepNetwork(STATE_DIR)).toEqual([]);
        writeFileSync(`/sys/class/net/${BRIDGE}/ifalias`, 'shadowvm 000000000000');
        expect(() => Network.open(OPTIONS)).toThrow(/another ShadowVM manager/);
        writeFileSync(`/sys/class/net/${BRIDGE}/ifalias`, 'shadowvm 000000000000 /srv/other state');
        expect(() => Network.open(OPTIONS)).toThrow(/the ShadowVM manager of \/srv\/other state\. /);
        expect(native.interfaceExists(BRIDGE)).toBe(true);
      } finally {
        native.deleteBridge(BRIDGE);
      }
      expect(() => Network.open({ ...OPTIONS, bridge: 'lo' })).toThrow(
        expect.objectContaining({ code: 'NETWORK_CONFLICT' }),
      );
    });

    test('a subnet that the host uses is a conflict, and no bridge is left', () => {
      const other = `${BRIDGE.slice(0, 14)}o`;
      const network = Network.open(OPTIONS);
      expect(() => Network.open({ ...OPTIONS, bridge: other, subnet: '10.213.196.0/23' })).toThrow(
        expect.objectContaining({ code: 'NETWORK_CONFLICT' }),
      );
      expect(native.interfaceExists(other)).toBe(false);
      network.close();
    });

    test.each(['', 'x'.repeat(16), 'a/b', '..', 'a b', 'a%d', 'ü'])('the bridge name %j is refused', (bridge) => {
      expect(() => Network.open({ ...OPTIONS, bridge })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    });

    test('a name of 15 bytes works', () => {
      const bridge = `svt${process.pid}`.padEnd(15, 'x');
      const network = Network.open({ ...OPTIONS, bridge });
      expect(native.interfaceExists(bridge)).toBe(true);
      expect(network.close()).toEqual([bridge]);
    });
  });

  describe('taps', () => {
    let network: Network;
    const tap = tapName(TAG, 7, 's');
    beforeEach(() => {
      network = Network.open(OPTIONS);
    });

    test('a prepared tap belongs to its owner, is a port, is down, and speaks no IPv6', () => {
      network.prepareTap(tap, 65534);
      expect(sysfs(tap, 'owner')).toBe('65534');
      // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_PERSIST of linux/if_tun.h.
      expect(Number(sysfs(tap, 'tun_flags')) & 0x5802).toBe(0x5802);
      expect(existsSync(`/sys/class/net/${BRIDGE}/brif/${tap}`)).toBe(true);
      expect(Number(sysfs(tap, 'flags')) & 1).toBe(0);
      expect(readFileSync(`/proc/sys/net/ipv6/conf/${tap}/disable_ipv6`, 'utf8').trim()).toBe('1');
    });

    test('preparing it again replaces it; a foreign interface of the name is a conflict', () => {
      network.prepareTap(tap, 0);
      network.prepareTap(tap, 1);
      expect(sysfs(tap, 'owner')).toBe('1');
      writeFileSync(`/sys/class/net/${tap}/ifalias`, 'mine');
      try {
        expect(() => network.prepareTap(tap, 0)).toThrow(expect.objectContaining({ code: 'NETWORK_CONFLICT' }));
      } finally {
        native.deleteTap(tap);
      }
    });

    test('severing is safe twice and on what is gone; so is deleting; connecting what is gone is an error', () => {
      network.prepareTap(tap, 0);
      network.connectTap(tap, null);
      network.severTap(tap);
      network.severTap(tap);
      expect(existsSync(`/sys/class/net/${BRIDGE}/brif/${tap}`)).toBe(false);
      network.connectTap(tap, null);
      expect(existsSync(`/sys/class/net/${BRIDGE}/brif/${tap}`)).toBe(true);
      network.deleteTap(tap);
      network.deleteTap(tap);
      network.severTap(tap);
      network.cutTap(tap);
      expect(() => network.connectTap(tap, null)).toThrow(expect.objectContaining({ code: 'NETWORK_FAILED' }));
      expect(() => network.counters(tap)).toThrow(expect.objectContaining({ code: 'NETWORK_FAILED' }));
    });

    test('a tap with an attached QEMU forwards in the moment it is connected', async () => {
      const qemu = await findQemu();
      const guest = { mac: '52:54:00:12:34:56', address: '10.213.197.9', address6: null };
      network.prepareTap(tap, 0);
      const netdev = `tap,id=n,ifname=${tap},script=no,downscript=no,vhost=off`;
      const words = ['-accel', 'tcg', '-machine', 'none', '-nodefaults', '-display', 'none', '-netdev', netdev];
      run(qemu.path, ...words);
      await waitFor(() => isAttached(tap));
      for (let round = 0; round < 5; round++) {
        expect(network.connectTap(tap, guest)).toBe(true);
        expect(sysfs(tap, 'brport/state')).toBe('3'); // BR_STATE_FORWARDING
        network.cutTap(tap);
        network.cutTap(tap);
        expect(sysfs(tap, 'brport/state')).toBe('0'); // BR_STATE_DISABLED
        if (round % 2 === 0) network.severTap(tap);
      }
      network.severTap(tap);
      network.cutTap(tap);
      expect(network.allCounters()[tap]).toEqual(network.counters(tap));
    });
  });

  // The bridge of the last two has no running port between severing and connecting: it loses its carrier, and a second
  // later the kernel takes its queue away, too.
  test.each([
    ['cutting', 'another guest', 50],
    ['severing', 'another guest', 50],
    ['cutting', 'the host', 0],
    ['severing', 'the host', 50],
    ['severing', 'the host', 1500],
  ])('%s one side and connecting the other moves the traffic of %s (%d ms between)', async (how, asker, betweenMs) => {
    const network = Network.open(OPTIONS);
    const [a, b, c] = NAMESPACES as [string, string, string];
    const guest = { mac: '52:54:00:00:00:42', address: '10.213.197.42', address6: null };
    // Two namespaces with the same MAC and address, as primary and shadow have. Each is behind a tap of ours, and a QEMU
    // that passes frames between that and a tap inside the namespace: where a guest would be. (A veth pair is no
    // stand-in: its far end sees the near end go down, which a guest does not.)
    const qemu = await findQemu();
    const taps = [tapName(TAG, 1, 'p'), tapName(TAG, 1, 's')] as const;
    for (const [namespace, tap] of [
      [a, taps[0]],
      [b, taps[1]],
    ] as const) {
      const inner = `v${tap.slice(2)}`;
      ip('netns', 'add', namespace);
      network.prepareTap(tap, 0);
      native.createTap(inner, 0, '');
      const netdevs = [tap, inner].flatMap((name, i) => [
        ...['-netdev', `tap,id=t${i},ifname=${name},script=no,downscript=no,vhost=off`],
        ...['-netdev', `hubport,id=h${i},hubid=0,netdev=t${i}`],
      ]);
      run(qemu.path, '-accel', 'tcg', '-machine', 'none', '-nodefaults', '-display', 'none', ...netdevs);
      await waitFor(() => isAttached(tap) && isAttached(inner));
      ip('link', 'set', inner, 'netns', namespace, 'name', 'guest0');
      ip('-n', namespace, 'link', 'set', 'guest0', 'address', guest.mac, 'up');
      ip('-n', namespace, 'addr', 'add', `${guest.address}/24`, 'dev', 'guest0');
    }
    const clientPort = `v${TAG.slice(0, 4)}c`;
    ip('netns', 'add', c);
    ip('link', 'add', clientPort, 'type', 'veth', 'peer', 'name', 'guest0', 'netns', c);
    ip('link', 'set', clientPort, 'master', BRIDGE);
    ip('-n', c, 'addr', 'add', '10.213.197.43/24', 'dev', 'guest0');
    ip('-n', c, 'link', 'set', 'guest0', 'up');
    const echo = join(mkdtempSync(join(tmpdir(), 'svnet-')), 'echo.cjs');
    writeFileSync(
      echo,
      `const s = require('node:dgram').createSocket('udp4');
       s.on('message', (m, from) => s.send(process.argv[2] + ' ' + m, from.port, from.address));
       s.bind(7777, () => console.log('bound'));`,
    );
    const client = echo.replace('echo.cjs', 'client.cjs');
    // Asks every 2 ms and prints who answered each question, with the time of the answer.
    writeFileSync(
      client,
      `const s = require('node:dgram').createSocket('udp4'); let n = 0;
       s.on('message', (m) => console.log(m + ' ' + process.hrtime.bigint()));
       setInterval(() => s.send(String(++n), 7777, process.argv[2]), 2);`,
    );
    const inNamespace = (namespace: string, ...words: string[]): ChildProcess =>
      run('ip', 'netns', 'exec', namespace, process.execPath, ...words);
    try {
      const servers = [inNamespace(a, echo, 'primary'), inNamespace(b, echo, 'shadow')];
      await Promise.all(servers.map((server) => new Promise((resolve) => server.stdout!.once('data', resolve))));
      if (asker !== 'the host') native.setUp(clientPort, true);
      network.connectTap(taps[0], guest);
      const answers: { from: string; atNs: bigint }[] = [];
      const asking =
        asker === 'the host' ? run(process.execPath, client, guest.address) : inNamespace(c, client, guest.address);
      createInterface(asking.stdout!).on('line', (line) => {
        const [from = '', , at = '0'] = line.split(' ');
        answers.push({ from, atNs: BigInt(at) });
      });
      await waitFor(() => answers.length > 50);
      expect(new Set(answers.map((answer) => answer.from))).toEqual(new Set(['primary']));

      if (how === 'cutting') network.cutTap(taps[0]);
      else network.severTap(taps[0]);
      const severedAtNs = process.hrtime.bigint();
      await sleep(betweenMs);
      // Answers that were under way to the asking process arrive a moment later.
      const late = (): unknown[] =>
        answers.filter((answer) => answer.from === 'primary' && answer.atNs > severedAtNs + 20_000_000n);
      expect(late()).toEqual([]);

      const connectedAtNs = process.hrtime.bigint();
      expect(network.connectTap(taps[1], guest)).toBe(true);
      await waitFor(() => answers.filter((answer) => answer.from === 'shadow').length > 50);
      const first = answers.find((answer) => answer.from === 'shadow')!;
      // The client asks every 2 ms; the rest is room for a busy machine. Without the port's immediate forwarding it
      // would be seconds, without the bridge learning the way it could be minutes.
      expect(Number(first.atNs - connectedAtNs) / 1e6).toBeLessThan(100);
      expect(late()).toEqual([]);
      // One MAC, before and after.
      const where = asker === 'the host' ? [] : ['-n', c];
      expect(ip(...where, 'neigh', 'show', guest.address)).toContain(guest.mac);
    } finally {
      cleanUp();
      rmSync(join(echo, '..'), { recursive: true, force: true });
    }
  });

  test('an announcement reaches the other ports as gratuitous ARP', async () => {
    const network = Network.open(OPTIONS);
    const namespace = NAMESPACES[0]!;
    const port = `v${TAG.slice(0, 4)}a`;
    ip('netns', 'add', namespace);
    ip('link', 'add', port, 'type', 'veth', 'peer', 'name', 'guest0', 'netns', namespace);
    ip('-n', namespace, 'addr', 'add', '10.213.197.43/24', 'dev', 'guest0');
    ip('-n', namespace, 'link', 'set', 'guest0', 'up');
    network.connectTap(port, null);
    // The neighbour knows the address under another MAC; the announcement has to correct it.
    ip('-n', namespace, 'neigh', 'add', '10.213.197.9', 'lladdr', '02:00:00:00:00:99', 'dev', 'guest0', 'nud', 'stale');
    native.announce(BRIDGE, '52:54:00:00:00:09', '10.213.197.9');
    await waitFor(() => ip('-n', namespace, 'neigh', 'show', '10.213.197.9').includes('52:54:00:00:00:09'));
  });
});

test('with an IPv6 subnet the host has its address there, and an advertisement corrects what a neighbour knows', async () => {
  const network = Network.open({ ...OPTIONS, subnet6: 'fd00:197::/64' });
  expect([network.hostAddress6, network.address6Of('10.213.197.9')]).toEqual(['fd00:197::1', 'fd00:197::9']);
  expect(ip('-6', 'addr', 'show', 'dev', BRIDGE)).toContain('fd00:197::1/64');
  const namespace = NAMESPACES[0]!;
  const port = `v${TAG.slice(0, 4)}a`;
  ip('netns', 'add', namespace);
  ip('link', 'add', port, 'type', 'veth', 'peer', 'name', 'guest0', 'netns', namespace);
  ip('-n', namespace, 'link', 'set', 'guest0', 'up');
  ip('-n', namespace, 'addr', 'add', 'fd00:197::43/64', 'dev', 'guest0', 'nodad');
  network.connectTap(port, null);
  ip('-n', namespace, 'neigh', 'add', 'fd00:197::9', 'lladdr', '02:00:00:00:00:99', 'dev', 'guest0', 'nud', 'stale');
  native.announce(BRIDGE, '52:54:00:00:00:09', 'fd00:197::9');
  await waitFor(() => ip('-n', namespace, 'neigh', 'show', 'fd00:197::9').includes('52:54:00:00:00:09'));
  const taken = { ...OPTIONS, bridge: `${BRIDGE.slice(0, 14)}o`, subnet: '10.213.198.0/24' };
  expect(() => Network.open({ ...taken, subnet6: 'fd00:197::/48' })).toThrow(
    expect.objectContaining({ code: 'NETWORK_CONFLICT' }),
  );
  expect(() => Network.open({ ...taken, subnet6: 'fd00:198::/121' })).toThrow(/\/16 to \/120|16 to 120/);
  expect(() => Network.open({ ...taken, subnet: '10.192.0.0/16', subnet6: 'fd00:198::/120' })).toThrow(
    /smaller than the IPv4/,
  );
});

describe('the addon’s boundary', () => {
  const names: unknown[] = [
    '',
    'x'.repeat(16),
    'é'.repeat(8),
    '.',
    '..',
    'a/b',
    'a:b',
    'a b',
    'a%d',
    'a\0b',
    'a\n',
    5,
    null,
  ];
  test.each(names)('%j is not an interface name to any function', (name) => {
    const bad = name as string;
    for (const call of [
      () => native.createBridge(bad),
      () => native.deleteBridge(bad),
      () => native.setAddress(bad, '10.0.0.1', 24),
      () => native.setUp(bad, true),
      () => native.setMac(bad, '52:54:00:00:00:01'),
      () => native.createTap(bad, 0, ''),
      () => native.deleteTap(bad),
      () => native.addToBridge(bad, 'lo'),
      () => native.addToBridge('lo', bad),
      () => native.removeFromBridge(bad, 'lo'),
      () => native.interfaceExists(bad),
      () => native.counters(bad),
      () => native.announce(bad, '52:54:00:00:00:01', '10.0.0.1'),
      () => native.learnAddress(bad, '52:54:00:00:00:01'),
      () => native.setNeighbour(bad, '10.0.0.1', '52:54:00:00:00:01'),
      () => native.setPortForwarding(bad, true),
      () => native.shapeEgress(bad, 1000, 1000, 1000),
    ])
      expect(call).toThrow(/interface name|\(/);
  });

  test.each([
    '',
    '52:54:00:00:00',
    '52:54:00:00:00:0g',
    '52-54-00-00-00-01',
    '01:00:5e:00:00:01',
    '52:54:00:00:00:01 ',
  ])('%j is not a MAC address', (mac) =>
    expect(() => native.setMac('lo', mac)).toThrow(expect.objectContaining({ code: 'EINVAL' })),
  );

  test.each(['', '10.0.0', '10.0.0.256', '10.0.0.1\0', '::1::', 'fe80::1%lo', '::1\0'])(
    '%j is not an address',
    (address) =>
      expect(() => native.setAddress('lo', address, 24)).toThrow(expect.objectContaining({ code: 'EINVAL' })),
  );

  test.each([0, 129, -1])('%d is not a prefix length of IPv6', (length) =>
    expect(() => native.setAddress('lo', 'fd00::1', length)).toThrow(RangeError),
  );

  test.each([0, 33, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])('%d is not a prefix length', (length) =>
    expect(() => native.setAddress('lo', '10.0.0.1', length)).toThrow(RangeError),
  );

  test.each([-1, 0.5, 2 ** 32 - 1, 2 ** 32, Number.NaN])('%d is not an owner', (uid) =>
    expect(() => native.createTap('svtnever', uid, '')).toThrow(RangeError),
  );

  test('what is no tap is not deleted as one, what is no bridge not as one', () => {
    expect(() => native.deleteTap('lo')).toThrow(expect.objectContaining({ code: 'ENOTSUP' }));
    expect(() => native.deleteBridge('lo')).toThrow(expect.objectContaining({ code: 'ENOTSUP' }));
    expect(() => native.deleteTap('svtnever')).toThrow(expect.objectContaining({ code: 'ENODEV' }));
  });

  test('a tap has its alias before it lasts', () => {
    const name = tapName(TAG, 3, 'p');
    expect(() => native.createTap(name, 0, 'x'.repeat(256))).toThrow(expect.objectContaining({ code: 'EINVAL' }));
    expect(native.interfaceExists(name)).toBe(false);
    native.createTap(name, 0, 'of the test');
    try {
      expect(readFileSync(`/sys/class/net/${name}/ifalias`, 'utf8')).toBe('of the test\n');
    } finally {
      native.deleteTap(name);
    }
  });

  test('an existing tap is not taken over', () => {
    const name = tapName(TAG, 3, 'p');
    native.createTap(name, 0, '');
    try {
      expect(() => native.createTap(name, 0, '')).toThrow(expect.objectContaining({ code: 'EEXIST' }));
    } finally {
      native.deleteTap(name);
    }
    expect(() => native.createTap('lo', 0, '')).toThrow(expect.objectContaining({ code: 'EEXIST' }));
  });
});

async function waitFor(condition: () => boolean, deadlineMs = 5000): Promise<void> {
  const end = Date.now() + deadlineMs;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not within ${deadlineMs} ms: ${condition}`);
    await sleep(10);
  }
}
