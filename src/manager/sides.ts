/**
 * What the QEMUs of a VM have on the host: taps, cgroups, processes. A VM has two sides; on one runs its primary, on the
 * other waits its shadow, and at each promotion they change roles while the names stay.
 */
import type { Logger } from 'pino';
import type { CgroupUsage } from '../allocate/cgroup.js';
import { cpuWeight } from '../allocate/plan.js';
import { WAITING_CPU_PERCENT, WAITING_MEMORY_BYTES } from '../allocate/standby-plan.js';
import { startTicks } from '../host/process-stat.js';
import { tapName } from '../network/address.js';
import { type InterfaceCounters, nativeNetwork, type PacketTrail } from '../network/native.js';
import type { GuestAddresses, Network } from '../network/network.js';
import type { DiskAttachment, Kernel, NetworkAttachment } from '../qemu/argv.js';
import { QemuProcess } from '../qemu/process.js';
import type { VmSpec } from '../vm/spec.js';
import type { Host } from './host.js';
import type { Guest } from './networks.js';
import type { VmRecord } from './state-dir.js';

export type Side = 'p' | 's';
export const other = (side: Side): Side => (side === 'p' ? 's' : 'p');

/** Beside its vCPUs QEMU has a main loop and, when it saves its state, helpers. */
const PRIMARY_CPU_HEADROOM = 2;

export interface PrimaryLimits {
  /** Percent of one CPU. */
  cpuPercent: number;
  cpuWeight: number;
}
export type WaitingLimits = { cpuPercent: number; memoryBytes: number };

/**
 * Above all that QEMU can use, but not "unlimited": when the last limit of a host goes, the kernel patches its own code,
 * for milliseconds that a failover does not have.
 */
export function mostCpuPercent(spec: Pick<VmSpec, 'vcpus'>): number {
  return 100 * (spec.vcpus + 1) * PRIMARY_CPU_HEADROOM;
}

export interface SideLaunch {
  incoming: boolean;
  accelerator: 'kvm' | 'tcg';
  kernel: Kernel | null;
  disks: readonly DiskAttachment[];
  signal: AbortSignal;
  /** The record of the VM has to be written anew: it has one more process. */
  onSpawn: () => void;
  /** To keep a trail of what the guest is sent. */
  trailed: boolean;
}

export class VmSides {
  private slot: number | null = null;
  private launches = 0;
  private readonly processes = new Map<Side, { pid: number; startTicks: number; tag: string }>();
  private readonly taps = new Set<string>();
  /** What the guest was sent of late at a side's tap: for strict mode. */
  private readonly trails = new Map<Side, PacketTrail>();
  /** One for each launch: memory of an earlier process may stay charged to its group for a while. */
  private readonly groups = new Map<Side, string>();
  /** Of the QEMUs that were killed for a promotion: no limits are for them any more. */
  private readonly dying = new Set<string>();
  private readonly log: Logger;
  /** What the primary may use; its shadow gets the same before it takes over. */
  private given: PrimaryLimits;
  private waiting: WaitingLimits = { cpuPercent: WAITING_CPU_PERCENT, memoryBytes: WAITING_MEMORY_BYTES };
  /** Where it is on the tap network; null in the other modes. */
  readonly guest: GuestAddresses | null;

  constructor(
    private readonly host: Host,
    private readonly spec: VmSpec,
    readonly network: Network | null,
    address: string | null,
    private readonly mac: string,
  ) {
    this.log = host.options.log;
    this.given = {
      cpuPercent: spec.allocation.cpuMaxPercent ?? mostCpuPercent(spec),
      cpuWeight: cpuWeight(100 * spec.vcpus, spec.allocation.priority),
    };
    this.guest = network === null || address === null ? null : { mac, address, address6: network.address6Of(address) };
  }

  /** Takes over what a VM of an earlier manager has on one side. */
  adopt(record: VmRecord, side: Side): void {
    if (record.slot !== null) this.slot = this.host.reserveSlot(record.slot);
    this.launches = Math.max(0, ...record.process.map(({ tag }) => Number(tag.split('_').at(-1)) || 0));
    const process = record.process.find((each) => each.side === side);
    if (process === undefined) return;
    this.processes.set(side, process);
    this.groups.set(side, process.tag);
    if (this.network !== null) this.taps.add(this.tap(side));
    this.given = { ...this.given, ...this.inForce(process.tag) };
  }

  /** What an earlier manager gave: until something new is known, it stays. */
  private inForce(group: string): Partial<PrimaryLimits> {
    try {
      const limits = this.host.cgroups?.cpuLimits(group);
      return limits === undefined || limits.cpuPercent === null ? {} : { ...limits, cpuPercent: limits.cpuPercent };
    } catch (error) {
      this.log.warn({ err: error, vm: this.spec.name }, 'reading what it was given');
      return {};
    }
  }

  /** Percent of one CPU that the primary may use; above all that it can where nobody limits it. */
  get cpuPercent(): number {
    return this.given.cpuPercent;
  }

  /** What the names of its process's sockets begin with. */
  runTag(side: Side): string {
    return this.processes.get(side)?.tag ?? '';
  }

  /** Its guest as the networks know it; null without a tap. */
  admitted(side: Side): Guest | null {
    const { guest, network, spec } = this;
    return network === null || guest === null ? null : { spec, network, addresses: guest, tap: this.tap(side) };
  }

  /** Starts a QEMU on one side; nothing of an earlier one may live there any more. */
  async launch(side: Side, how: SideLaunch): Promise<QemuProcess> {
    const { host, spec } = this;
    const { stateDir } = host.options;
    this.slot ??= host.takeSlot();
    const uid = host.uidFor(this.slot);
    const tag = `${spec.name}_${++this.launches}`;
    if (this.network !== null) {
      this.network.prepareTap(this.tap(side), uid ?? 0);
      this.taps.add(this.tap(side));
      this.closeTrail(side); // of the tap before this one
      if (how.trailed) this.trail(side);
    }
    const admitted = this.admitted(side);
    if (admitted !== null) await host.networks.admit(admitted);
    await this.removeGroup(side);
    host.cgroups?.create(tag);
    this.groups.set(side, tag);
    return QemuProcess.launch({
      qemuPath: host.qemu.path,
      dataDirs: host.qemu.dataDirs,
      version: host.qemu.version,
      tscKhz: host.tscKhz,
      spec,
      accelerator: how.accelerator,
      // Its guest's kernel is in the RAM that it will be given: not to read the files makes it start faster, and smaller.
      kernel: how.incoming ? null : how.kernel,
      network: this.attachment(side, how.incoming),
      disks: how.disks,
      uid,
      incoming: how.incoming,
      lazy: how.incoming,
      runDir: stateDir.runDir,
      tag,
      consoleLogPath: stateDir.consoleLogPath(spec.name),
      qemuLogPath: stateDir.qemuLogPath(spec.name),
      signal: how.signal,
      onSpawn: (pid) => {
        host.cgroups?.addProcess(tag, pid);
        this.processes.set(side, { pid, startTicks: startTicks(pid) ?? -1, tag });
        how.onSpawn();
      },
    });
  }

  /**
   * What the QEMU of a side may use of the host. awakening: a guest that has just been promoted has a whole CPU per vCPU
   * until it beats, or its first moment would be cut into slices of the quota's period. @throws CGROUP_FAILED
   */
  limit(side: Side, as: 'waiting' | 'awakening' | 'primary'): void {
    const group = this.groups.get(side);
    if (group === undefined || this.dying.has(group)) return;
    const { cpuPercent, cpuWeight } = this.given;
    this.host.cgroups?.setLimits(
      group,
      as === 'waiting'
        ? this.waiting
        : {
            cpuPercent: as === 'awakening' ? Math.max(cpuPercent, 100 * this.spec.vcpus) : cpuPercent,
            cpuWeight,
            memoryBytes: null,
          },
    );
  }

  /**
   * To take the memory of a killed QEMU apart costs the kernel 30 ms of CPU per GiB, which the awakening guest would wait
   * for. @throws CGROUP_FAILED
   */
  letDie(side: Side): void {
    const group = this.groups.get(side);
    if (group === undefined) return;
    this.dying.add(group);
    this.host.cgroups?.makeIdle(group);
  }

  /** From now on the primary, and who becomes it, may use this. @throws CGROUP_FAILED */
  give(side: Side, limits: PrimaryLimits): void {
    this.given = limits;
    this.limit(side, 'primary');
  }

  /** The same for what waits on the other side; no effect on a process that is not there. @throws CGROUP_FAILED */
  giveWaiting(side: Side, limits: WaitingLimits): void {
    this.waiting = limits;
    if (this.processes.has(side)) this.limit(side, 'waiting');
  }

  /** Made at its first use, some ms: before a failover. null without a tap, and where packets can not be seen. */
  trail(side: Side): PacketTrail | null {
    const made = this.trails.get(side);
    if (made !== undefined || this.network === null) return made ?? null;
    try {
      const trail = new (nativeNetwork().PacketTrail)(this.tap(side));
      this.trails.set(side, trail);
      return trail;
    } catch (error) {
      this.log.warn({ err: error, vm: this.spec.name }, 'keeping a trail of what the guest is sent');
      return null;
    }
  }

  /** What the guest was sent at the other side's tap, and its epoch has not seen, is sent to it again. */
  replayTo(side: Side): void {
    try {
      this.trails.get(other(side))?.replay(this.tap(side));
    } catch (error) {
      // Their senders will find out by themselves.
      this.log.warn({ err: error, vm: this.spec.name }, 'sending to the guest again');
    }
  }

  private closeTrail(side: Side): void {
    this.trails.get(side)?.close();
    this.trails.delete(side);
  }

  /** Lets a side's traffic flow, to wait at its tap when its guest does; no effect without taps. @throws NETWORK_FAILED */
  connect(side: Side, guestWaits = false): void {
    if (this.guest !== null) this.network?.connectTap(this.tap(side), this.guest, guestWaits);
  }

  /** Tells the others on the network where the guest is; no effect without taps. @throws NETWORK_FAILED */
  announce(side: Side): void {
    if (this.guest !== null) this.network?.announce(this.tap(side), this.guest);
  }

  /** After this nothing that the side's QEMU sends gets anywhere, until a QEMU attaches to its tap anew. */
  cut(side: Side): void {
    this.network?.cutTap(this.tap(side));
  }

  /** The process of this side has ended for good: its tap goes down and its group away. */
  async retire(side: Side): Promise<void> {
    this.closeTrail(side);
    this.network?.severTap(this.tap(side));
    this.processes.delete(side);
    await this.removeGroup(side);
  }

  /** null without a tap. @throws NETWORK_FAILED */
  networkCounters(side: Side): InterfaceCounters | null {
    return this.network?.counters(this.tap(side)) ?? null;
  }

  /** What the QEMU of a side has used by its cgroup's count; null without cgroups. */
  groupUsage(side: Side): CgroupUsage | null {
    const group = this.groups.get(side);
    return group === undefined ? null : (this.host.cgroups?.usage(group) ?? null);
  }

  tap(side: Side): string {
    return tapName(this.host.tag, this.slot ?? 0, side);
  }

  /** What a later manager has to know to take this VM over, or to take it away. */
  facts(primarySide: Side): Pick<VmRecord, 'slot' | 'side' | 'process' | 'taps' | 'cgroups' | 'bridge'> {
    return {
      slot: this.slot,
      side: primarySide,
      process: [...this.processes].map(([side, p]) => ({
        ...p,
        side,
        role: side === primarySide ? 'primary' : 'shadow',
      })),
      taps: [...this.taps],
      cgroups: [...this.groups.values()],
      bridge: this.network?.bridge ?? null,
    };
  }

  /** Gives everything back; the processes have ended. Idempotent. */
  async release(): Promise<void> {
    this.processes.clear();
    for (const side of ['p', 's'] as const) this.closeTrail(side);
    const taps = [...this.taps];
    this.taps.clear();
    for (const tap of taps) this.network?.deleteTap(tap);
    if (this.network !== null)
      await this.host.networks
        .dismiss(this.spec.name, taps)
        .catch((error: unknown) => this.log.error({ err: error, vm: this.spec.name }, 'taking its rules away'));
    await this.removeGroup('p');
    await this.removeGroup('s');
    if (this.slot !== null) this.host.freeSlot(this.slot);
    this.slot = null;
  }

  private attachment(side: Side, incoming: boolean): NetworkAttachment {
    const { guest, network } = this;
    if (network !== null)
      return {
        mode: 'tap',
        tap: this.tap(side),
        mac: this.mac,
        address: guest?.address ?? null,
        prefixLength: network.subnet.prefixLength,
        gateway: network.hostAddress,
        ipv6:
          guest === null || guest.address6 === null || network.subnet6 === null || network.hostAddress6 === null
            ? null
            : {
                address: guest.address6,
                prefixLength: network.subnet6.prefixLength,
                gateway: network.hostAddress6,
              },
      };
    if (this.spec.network === 'none') return { mode: 'none' };
    // Two processes can not listen on one port: the shadow publishes when it has become the primary.
    return { mode: 'user', mac: this.mac, publish: incoming ? [] : this.spec.publish };
  }

  /** The group of a process that has ended, or never lived. One that can not go now is swept when the manager ends. */
  private async removeGroup(side: Side): Promise<void> {
    const group = this.groups.get(side);
    this.groups.delete(side);
    if (group === undefined) return;
    this.dying.delete(group);
    await this.host.cgroups
      ?.remove(group)
      .catch((error: unknown) => this.log.error({ err: error, vm: this.spec.name }, 'removing a cgroup'));
  }
}
