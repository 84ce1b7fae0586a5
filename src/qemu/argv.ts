/** The command line of a QEMU: a pure function of what the VM is. A device state fits only a QEMU of the same shape. */
import type { DiskCache, VmSpec } from '../vm/spec.js';

export interface QemuVersion {
  major: number;
  minor: number;
  micro: number;
}

/** File descriptors that QEMU inherits; native/shim/control.h names those that its shim uses. */
export const QEMU_FD = {
  ram: 3,
  control: 4,
  deviceState: 5,
  incoming: 6,
  lifeline: 7,
  rescue: 8,
  bell: 9,
  more: 10,
} as const;

export const HEARTBEAT_PORT = 'org.shadowvm.heartbeat';

export type NetworkAttachment =
  | { mode: 'none' }
  | {
      mode: 'tap';
      tap: string;
      mac: string;
      /** null for a guest that is told later who it is. */
      address: string | null;
      prefixLength: number;
      gateway: string;
      ipv6: { address: string; prefixLength: number; gateway: string } | null;
    }
  | { mode: 'user'; mac: string; publish: VmSpec['publish'] };

export interface Kernel {
  kernelPath: string;
  initrdPath: string;
}

/** A disk as QEMU gets it: open already, so that it needs neither a path nor the right to use it. */
export interface DiskAttachment {
  name: string;
  readOnly: boolean;
  cache: DiskCache;
  /** How finely the guest's use of it is counted: a power of 2. */
  extentBytes?: number;
  /** In this process; QEMU has them from QEMU_FD.more on, in their order. */
  fd: number;
}

/** The names that a disk's parts have in QEMU: the block node, and the guest's device. */
export const diskNode = (name: string): string => `disk-${name}`;
export const diskDevice = (name: string): string => `blk-${name}`;

export interface QemuShape {
  spec: Pick<VmSpec, 'name' | 'ramBytes' | 'vcpus'>;
  version: QemuVersion;
  dataDirs: string[];
  accelerator: 'kvm' | 'tcg';
  /** null only for a QEMU that waits: its guest's kernel is in the RAM that it is given. */
  kernel: Kernel | null;
  /** Rate of the host's time stamp counter, kHz: without it, boots under TCG hang at random in calibration. */
  tscKhz: number;
  network: NetworkAttachment;
  disks?: readonly DiskAttachment[];
  sockets: { qmp: string; heartbeat: string; console: string };
  consoleLogPath: string;
  /** uid (and gid) to change to once everything is open; null to stay. */
  uid: number | null;
  /** A shadow waits for a device state; a primary boots. */
  incoming: boolean;
}

export function qemuArgv(shape: QemuShape): string[] {
  const { spec, sockets } = shape;
  const argv = [
    ...shape.dataDirs.flatMap((dir) => ['-L', dir]),
    ...['-name', `guest=${spec.name}`],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-machine', 'microvm,acpi=on,memory-backend=ram0'],
    ...['-accel', shape.accelerator === 'kvm' ? 'kvm' : 'tcg,thread=multi'],
    // cmpxchg16b of QEMU 7.2's emulation corrupts the flags now and then: kernels 6.12 (Debian 13's) die of it.
    ...['-cpu', shape.accelerator === 'kvm' ? 'host' : 'max,cx16=off'],
    ...['-smp', processors(shape)],
    ...['-m', `size=${spec.ramBytes / (1024 * 1024)}M`],
    ...['-object', `memory-backend-file,id=ram0,size=${spec.ramBytes},mem-path=/proc/self/fd/${QEMU_FD.ram},share=on`],
    // The saved device state carries no machine description, so that it can be loaded without a migration stream.
    ...['-global', 'migration.send-configuration=off'],
    // 'deny' would kill QEMU in the setuid() with which it gives up its own privileges (so would 'children'). Without
    // exec, which spawn=deny forbids, an unprivileged QEMU has no way to elevate itself.
    ...[
      '-sandbox',
      `on,obsolete=deny,elevateprivileges=${shape.uid === null ? 'deny' : 'allow'},spawn=deny,resourcecontrol=deny`,
    ],
    ...['-chardev', `socket,id=qmp,path=${sockets.qmp},server=on,wait=off`, '-mon', 'chardev=qmp,mode=control'],
    // A monitor for the preloaded shim, which lets a guest go whose manager died while it stood still.
    ...['-chardev', `socket,id=rescue,fd=${QEMU_FD.rescue}`, '-mon', 'chardev=rescue,mode=control'],
    ...[
      '-chardev',
      `socket,id=console,path=${sockets.console},server=on,wait=off,logfile=${shape.consoleLogPath},logappend=on`,
      '-serial',
      'chardev:console',
    ],
    ...kernelArgv(shape),
    ...networkArgv(shape.network),
    ...['-device', 'virtio-serial-device'],
    ...['-chardev', `socket,id=heartbeat,path=${sockets.heartbeat},server=on,wait=off`],
    ...['-device', `virtserialport,chardev=heartbeat,name=${HEARTBEAT_PORT},nr=1`],
    // A guest that runs out of memory takes some back from the balloon before it ends a program.
    ...['-device', 'virtio-balloon-device,id=balloon,deflate-on-oom=on'],
    ...['-object', 'rng-builtin,id=rng', '-device', 'virtio-rng-device,rng=rng'],
    ...(shape.disks ?? []).flatMap(diskArgv),
  ];
  if (shape.uid !== null) argv.push(...dropPrivileges(shape.version, shape.uid));
  // -S: a shadow never runs by itself, only on the manager's `cont`, which comes after the fencing of the primary.
  if (shape.incoming) argv.push('-S', '-incoming', 'defer');
  return argv;
}

/**
 * With room for one vCPU only, QEMU's emulation leaves the guest's memory barriers out, and its devices run in another
 * thread: now and then the guest misses that the network wants to be told of the next packet, and sends nothing ever
 * again. With room for a second one it keeps them.
 */
function processors({ spec, accelerator }: QemuShape): string {
  return accelerator === 'tcg' && spec.vcpus === 1 ? '1,maxcpus=2' : `${spec.vcpus}`;
}

function kernelArgv(shape: QemuShape): string[] {
  if (shape.kernel === null) return [];
  const { kernelPath, initrdPath } = shape.kernel;
  return ['-kernel', kernelPath, '-initrd', initrdPath, '-append', kernelArguments(shape)];
}

function kernelArguments(shape: QemuShape): string {
  // reboot=t: a reset by triple fault needs no firmware. A promoted QEMU has none in its memory, as its RAM came from
  // the shadow and ROMs are not loaded into a QEMU that waits: every other way to reset would end in empty memory.
  const words = [
    'console=ttyS0',
    'quiet',
    'panic=-1',
    'reboot=t',
    `tsc_early_khz=${shape.tscKhz}`,
    'random.trust_cpu=on',
  ];
  // Under emulation there is no speculation to guard against, and crypto self-tests cost a tenth of the boot.
  if (shape.accelerator === 'tcg') words.push('mitigations=off', 'cryptomgr.notests');
  // The room that processors() leaves is for no other CPU: a kernel of one spares the locked instructions.
  words.push(`nr_cpus=${shape.spec.vcpus}`);
  words.push(`shadowvm.host=${shape.spec.name}`);
  const { network } = shape;
  if (network.mode === 'tap' && network.address !== null)
    words.push(`shadowvm.ip=${network.address}/${network.prefixLength}`, `shadowvm.gw=${network.gateway}`);
  if (network.mode === 'tap' && network.ipv6 !== null) {
    const { address, prefixLength, gateway } = network.ipv6;
    words.push(`shadowvm.ip6=${address}/${prefixLength}`, `shadowvm.gw6=${gateway}`);
  }
  if (network.mode === 'user') words.push('shadowvm.ip=10.0.2.15/24', 'shadowvm.gw=10.0.2.2');
  return words.join(' ');
}

function networkArgv(network: NetworkAttachment): string[] {
  switch (network.mode) {
    case 'none':
      return [];
    case 'tap':
      return [
        ...['-netdev', `tap,id=net0,ifname=${network.tap},script=no,downscript=no,vhost=off`],
        ...['-device', `virtio-net-device,netdev=net0,mac=${network.mac}`],
      ];
    case 'user': {
      const forwards = network.publish.map((p) => `,hostfwd=tcp:127.0.0.1:${p.hostPort}-:${p.guestPort}`).join('');
      return [
        ...['-netdev', `user,id=net0${forwards}`],
        ...['-device', `virtio-net-device,netdev=net0,mac=${network.mac}`],
      ];
    }
  }
}

function diskArgv(disk: DiskAttachment, index: number): string[] {
  const node = diskNode(disk.name);
  const options = [
    `read-only=${disk.readOnly ? 'on' : 'off'}`,
    `cache.direct=${disk.cache === 'none' ? 'on' : 'off'}`,
    `cache.no-flush=${disk.cache === 'unsafe' ? 'on' : 'off'}`,
    'discard=unmap',
  ].join(',');
  return [
    // A set and not /proc/self/fd: QEMU may open it anew when it has no right to do so any more.
    ...['-add-fd', `fd=${QEMU_FD.more + index},set=${index + 1}`],
    // Threads: through the calls by which the shim knows what is written (native/shim/disk-watch.c).
    ...['-blockdev', `driver=file,node-name=${node}-file,filename=/dev/fdset/${index + 1},aio=threads,${options}`],
    ...['-blockdev', `driver=raw,node-name=${node},file=${node}-file,${options}`],
    // A write that fails stops the guest and is tried again when it goes on: the guest does not hear of a full host.
    ...['-device', `virtio-blk-device,drive=${node},id=${diskDevice(disk.name)},serial=${disk.name},werror=stop`],
  ];
}

function dropPrivileges(version: QemuVersion, uid: number): string[] {
  const modern = version.major > 9 || (version.major === 9 && version.minor >= 1);
  return modern ? ['-run-with', `user=${uid}:${uid}`] : ['-runas', `${uid}:${uid}`];
}
