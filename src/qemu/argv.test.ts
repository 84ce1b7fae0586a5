import { describe, expect, test } from 'vitest';
import { type NetworkAttachment, type QemuShape, qemuArgv } from './argv.js';

const tap: NetworkAttachment = {
  mode: 'tap',
  tap: 'v1a2b3p0',
  mac: '52:54:00:00:00:01',
  address: '10.213.0.2',
  prefixLength: 24,
  gateway: '10.213.0.1',
  ipv6: null,
};

function shape(changes: Partial<QemuShape> = {}): QemuShape {
  return {
    spec: { name: 'web', ramBytes: 256 * 1024 * 1024, vcpus: 1 },
    version: { major: 7, minor: 2, micro: 22 },
    dataDirs: [],
    accelerator: 'tcg',
    kernel: { kernelPath: '/images/vmlinuz', initrdPath: '/images/initrd' },
    tscKhz: 2_600_000,
    network: { mode: 'none' },
    sockets: { qmp: '/run/a.qmp', heartbeat: '/run/a.hb', console: '/run/a.con' },
    consoleLogPath: '/log/console',
    uid: 1_900_000_000,
    incoming: false,
    ...changes,
  };
}

/** The words after each `name`. */
function values(argv: string[], name: string): string[] {
  return argv.flatMap((word, i) => (word === name ? [argv[i + 1] as string] : []));
}
const kernelWords = (argv: string[]) => (values(argv, '-append')[0] as string).split(' ');

describe('network', () => {
  test('a tap that exists already, without scripts and without vhost, which would escape write tracking', () => {
    const argv = qemuArgv(shape({ network: tap }));
    expect(values(argv, '-netdev')).toEqual(['tap,id=net0,ifname=v1a2b3p0,script=no,downscript=no,vhost=off']);
    expect(values(argv, '-device')).toContain('virtio-net-device,netdev=net0,mac=52:54:00:00:00:01');
    expect(kernelWords(argv)).toEqual(
      expect.arrayContaining(['shadowvm.ip=10.213.0.2/24', 'shadowvm.gw=10.213.0.1', 'shadowvm.host=web']),
    );
  });

  test('IPv6 is told to the guest where the network has it', () => {
    const ipv6 = { address: 'fd00:1::2', prefixLength: 64, gateway: 'fd00:1::1' };
    const argv = qemuArgv(shape({ network: { ...tap, ipv6 } }));
    expect(kernelWords(argv)).toEqual(expect.arrayContaining(['shadowvm.ip6=fd00:1::2/64', 'shadowvm.gw6=fd00:1::1']));
    expect(kernelWords(qemuArgv(shape({ network: tap }))).some((word) => word.includes('ip6'))).toBe(false);
  });

  test('user mode publishes on the host’s own address only', () => {
    const publish = [
      { hostPort: 8080, guestPort: 80 },
      { hostPort: 2222, guestPort: 22 },
    ];
    const argv = qemuArgv(shape({ network: { mode: 'user', mac: '52:54:00:00:00:01', publish } }));
    expect(values(argv, '-netdev')).toEqual([
      'user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:2222-:22',
    ]);
    expect(kernelWords(argv)).toEqual(expect.arrayContaining(['shadowvm.ip=10.0.2.15/24', 'shadowvm.gw=10.0.2.2']));
  });

  test('none is none', () => {
    const argv = qemuArgv(shape());
    expect(argv.join(' ')).not.toMatch(/net0|shadowvm\.ip|shadowvm\.gw/);
  });
});

describe('privileges', () => {
  test.each([
    [{ major: 7, minor: 2, micro: 22 }, ['-runas', '1900000000:1900000000']],
    [{ major: 9, minor: 0, micro: 4 }, ['-runas', '1900000000:1900000000']],
    [{ major: 9, minor: 1, micro: 0 }, ['-run-with', 'user=1900000000:1900000000']],
    [{ major: 10, minor: 0, micro: 2 }, ['-run-with', 'user=1900000000:1900000000']],
  ])('are given up as QEMU %j wants it', (version, words) => {
    expect(qemuArgv(shape({ version })).join(' ')).toContain(words.join(' '));
  });

  test('the sandbox is always on; who keeps the user needs no way to change it', () => {
    const sandbox = (uid: number | null) => values(qemuArgv(shape({ uid })), '-sandbox');
    expect(sandbox(1)).toEqual(['on,obsolete=deny,elevateprivileges=allow,spawn=deny,resourcecontrol=deny']);
    expect(sandbox(null)).toEqual(['on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny']);
    expect(qemuArgv(shape({ uid: null })).join(' ')).not.toMatch(/-runas|-run-with/);
  });
});

describe('machine', () => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])(
    '%d vCPUs, and room for two where the emulation would leave out barriers',
    (vcpus) => {
      const argv = (accelerator: 'kvm' | 'tcg') =>
        qemuArgv(shape({ accelerator, spec: { name: 'web', ramBytes: 64 * 2 ** 20, vcpus } }));
      expect(values(argv('kvm'), '-smp')).toEqual([`${vcpus}`]);
      expect(values(argv('tcg'), '-smp')).toEqual([vcpus === 1 ? '1,maxcpus=2' : `${vcpus}`]);
      expect(kernelWords(argv('tcg'))).toContain(`nr_cpus=${vcpus}`);
    },
  );

  test('RAM has one size, and is the shared memory that the manager made', () => {
    const argv = qemuArgv(shape({ spec: { name: 'web', ramBytes: 3 * 2 ** 30, vcpus: 1 } }));
    expect(values(argv, '-m')).toEqual(['size=3072M']);
    expect(values(argv, '-object')[0]).toBe(
      'memory-backend-file,id=ram0,size=3221225472,mem-path=/proc/self/fd/3,share=on',
    );
  });

  test('the accelerator decides on the CPU and on what the kernel may leave out', () => {
    const [tcg, kvm] = [qemuArgv(shape()), qemuArgv(shape({ accelerator: 'kvm' }))];
    expect([values(tcg, '-accel'), values(kvm, '-accel')]).toEqual([['tcg,thread=multi'], ['kvm']]);
    expect(values(tcg, '-cpu')[0]).toMatch(/^max\b/);
    expect(values(kvm, '-cpu')).toEqual(['host']);
    expect(kernelWords(tcg)).toContain('mitigations=off');
    expect(kernelWords(kvm)).not.toContain('mitigations=off');
    for (const argv of [tcg, kvm])
      expect(kernelWords(argv)).toEqual(expect.arrayContaining(['tsc_early_khz=2600000', 'panic=-1', 'reboot=t']));
  });

  test('QEMU’s own folders come first', () =>
    expect(qemuArgv(shape({ dataDirs: ['/a', '/b'] })).slice(0, 4)).toEqual(['-L', '/a', '-L', '/b']));
});

describe('the shadow of a VM', () => {
  const primary = shape({ network: tap });
  const shadow: QemuShape = {
    ...primary,
    network: { ...tap, tap: 'v1a2b3s0' },
    sockets: { qmp: '/run/b.qmp', heartbeat: '/run/b.hb', console: '/run/b.con' },
    incoming: true,
  };

  test('differs from its primary in sockets, tap and waiting, and in nothing that a device state sees', () => {
    const argv = qemuArgv(shadow);
    // It waits stopped, and it comes last.
    expect(argv.slice(-3)).toEqual(['-S', '-incoming', 'defer']);
    const renamed = argv
      .slice(0, -3)
      .map((word) => word.replaceAll('/run/b.', '/run/a.').replace('v1a2b3s0', 'v1a2b3p0'));
    expect(renamed).toEqual(qemuArgv(primary));
  });

  test('in user mode does not publish what its primary holds', () => {
    const network = (publish: { hostPort: number; guestPort: number }[]): NetworkAttachment => ({
      mode: 'user',
      mac: '52:54:00:00:00:01',
      publish,
    });
    const devices = (argv: string[]) => values(argv, '-device');
    const [a, b] = [
      qemuArgv(shape({ network: network([{ hostPort: 80, guestPort: 80 }]) })),
      qemuArgv(shape({ network: network([]), incoming: true })),
    ];
    expect(devices(a)).toEqual(devices(b));
    expect(values(b, '-netdev')).toEqual(['user,id=net0']);
  });
});
