/** What this host gives to VMs: a QEMU, an accelerator, cgroups, a network. Found out once, when the manager opens. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Logger } from 'pino';
import { type CgroupDriver, openCgroups } from '../allocate/cgroup.js';
import type { Capacity } from '../allocate/plan.js';
import { ShadowVmError } from '../errors.js';
import type { ForecastSettings } from '../forecast/outlook.js';
import { AwakeCpus, hostWakeLatencyUs } from '../host/awake-cpus.js';
import { BaseImages } from '../image/base-images.js';
import { stateTag } from '../network/address.js';
import { type Network, tapsPermitted } from '../network/network.js';
import { findQemu, hostTscKhz, probeKvm, type Qemu } from '../qemu/probe.js';
import { DEFAULT_NETWORK } from '../vm/network.js';
import type { VmSpec } from '../vm/spec.js';
import type { EventLog } from './events.js';
import { type Guest, Networks } from './networks.js';
import type { StateDir } from './state-dir.js';

/** Above every range that login.defs, systemd or containers hand out; one per VM, so that VMs can not reach each other. */
const UID_BASE = 1_900_000_000;
const MANAGER_NICE = -10;
/** Left free when a VM is admitted: for QEMU's own memory and the manager. */
const RESERVE_BYTES = 128 * 1024 * 1024;

export interface HostOptions {
  stateDir: StateDir;
  imagesDir: string;
  events: EventLog;
  log: Logger;
  bridge?: string | undefined;
  subnet?: string | undefined;
  /** How far apart the samples of forecasts are, and after what loads repeat. Default: 5 minutes, a day. */
  forecasts?: ForecastSettings | undefined;
  allocation?: Partial<AllocationSettings> | undefined;
  /** Idle CPUs may sleep while clients of VMs in strict mode wait. Default: false. */
  letCpusSleep?: boolean | undefined;
}

export interface AllocationSettings {
  /** What all VMs together may be given. Default: the whole host but for a reserve. */
  capacity: Partial<Capacity>;
  /** Two changes of one thing are so far apart, unless it is pressure. */
  coolDownMs: number;
  /** false: decisions are made by what was used in the last seconds, as a reactive scaler would. For comparisons. */
  foresight: boolean;
}

export class Host {
  readonly networks: Networks;
  readonly bases = new BaseImages();
  readonly awakeCpus: AwakeCpus;
  private kvm: { usable: boolean; reason: string } | null = null;
  private warnedOfTcg = false;
  private readonly slots = new Set<number>();

  private constructor(
    readonly options: HostOptions,
    readonly qemu: Qemu,
    readonly tscKhz: number,
    readonly tag: string,
    /** null where cgroups can not be used: VMs then run without limits, after a warning. */
    readonly cgroups: CgroupDriver | null,
  ) {
    const { bridge, subnet, stateDir, events } = options;
    this.networks = new Networks({ stateDir: stateDir.root, path: stateDir.networksPath, events, bridge, subnet });
    this.awakeCpus = new AwakeCpus(options.letCpusSleep === true ? null : hostWakeLatencyUs());
  }

  /** @throws QEMU_MISSING, QEMU_TOO_OLD */
  static async open(options: HostOptions): Promise<Host> {
    runAhead();
    const qemu = await findQemu();
    const tag = stateTag(options.stateDir.root);
    const cgroups = openCgroups(`shadowvm-${tag}`);
    if (cgroups.driver === null)
      options.events.append(
        'warn',
        'host.no-cgroups',
        null,
        `cgroups can not be used, shadows run without limits: ${cgroups.reason}`,
        {},
      );
    return new Host(options, qemu, hostTscKhz(), tag, cgroups.driver);
  }

  /** Takes away what an earlier run of this manager left on the host, but for what VMs that were taken over have. */
  async sweep(adopted: readonly Guest[]): Promise<string[]> {
    const left = await this.networks.recover(adopted);
    // Those in which processes live are left by themselves.
    return [...left, ...((await this.cgroups?.sweep(''))?.removed ?? [])];
  }

  /** Takes away everything that VMs share. */
  async close(): Promise<void> {
    this.awakeCpus.close();
    await this.networks.close();
    await this.cgroups?.sweep('');
    this.cgroups?.close();
  }

  /** KVM where it really runs guest code, else TCG with one warning. @throws INVALID_ARGUMENT when KVM was demanded */
  async accelerator(wanted: VmSpec['accelerator']): Promise<'kvm' | 'tcg'> {
    if (wanted === 'tcg') return 'tcg';
    this.kvm ??= await probeKvm({
      qemu: this.qemu,
      cacheFile: path.join(this.options.imagesDir, '.kvm-probe.json'),
    });
    if (this.kvm.usable) return 'kvm';
    if (wanted === 'kvm')
      throw new ShadowVmError('INVALID_ARGUMENT', {
        attempted: 'use KVM',
        reason: this.kvm.reason,
        remedy: 'Use --accelerator auto or tcg; `shadowvm doctor` tells more',
      });
    if (!this.warnedOfTcg)
      this.options.events.append(
        'warn',
        'host.no-kvm',
        null,
        `VMs run under TCG emulation, several times slower: ${this.kvm.reason}`,
        {},
      );
    this.warnedOfTcg = true;
    return 'tcg';
  }

  /**
   * The network of a VM, made at its first use; null where user-mode networking must do.
   * @throws NETWORK_NOT_FOUND, NETWORK_CONFLICT, NETWORK_FAILED, INVALID_ARGUMENT when it asks for what only a tap has
   */
  tapNetwork({ name, network: wanted, net, bandwidthBitsPerSecond }: VmSpec): Network | null {
    const named = net !== DEFAULT_NETWORK;
    if (wanted === 'user' || wanted === 'none') {
      if (!named && bandwidthBitsPerSecond === null) return null;
      throw new ShadowVmError('INVALID_ARGUMENT', {
        attempted: 'connect the VM',
        subject: name,
        reason: `${named ? `the network ${net}` : 'a bandwidth limit'} needs a tap, and the VM is to have ${wanted === 'none' ? 'no network' : 'user-mode networking'}`,
        remedy: 'Leave --network out, or use --network tap',
      });
    }
    const permitted = tapsPermitted();
    if (permitted.ok) return this.networks.open(net);
    if (wanted === 'tap' || named || bandwidthBitsPerSecond !== null)
      throw new ShadowVmError('NETWORK_FAILED', {
        attempted: 'connect the VM to a tap',
        reason: permitted.reason,
        remedy: 'Run the manager as root, or use --network user',
      });
    this.options.events.append(
      'warn',
      'host.no-taps',
      null,
      `taps are not permitted, using user-mode networking: ${permitted.reason}`,
      {},
    );
    return null;
  }

  /** A small number of its own for each VM; freed with freeSlot. */
  takeSlot(): number {
    let slot = 0;
    while (this.slots.has(slot)) slot++;
    return this.reserveSlot(slot);
  }
  /** The one that a VM of an earlier manager has. */
  reserveSlot(slot: number): number {
    this.slots.add(slot);
    return slot;
  }
  freeSlot(slot: number): void {
    this.slots.delete(slot);
  }

  /** The user that a VM's QEMU changes to; null where the manager itself is not root. */
  uidFor(slot: number): number | null {
    return process.getuid?.() === 0 ? UID_BASE + slot : null;
  }

  /** @throws NO_SPACE when the host has not enough memory for one more QEMU with this RAM */
  requireMemory(ramBytes: number, attempted: string, subject: string): void {
    const available = availableBytes();
    if (available >= ramBytes + RESERVE_BYTES) return;
    throw new ShadowVmError('NO_SPACE', {
      attempted,
      subject,
      reason: `it needs ${mib(ramBytes + RESERVE_BYTES)} MiB of memory and the host has ${mib(available)} MiB available`,
      remedy: 'Stop other VMs or give this one less RAM',
    });
  }
}

/**
 * The manager uses little CPU, but what it does in an epoch's pause a guest waits for: ahead of other work, if we may.
 * The same for its session, since the kernel's autogroups weigh sessions before they weigh processes.
 */
function runAhead(): void {
  try {
    os.setPriority(MANAGER_NICE);
    fs.writeFileSync('/proc/self/autogroup', `${MANAGER_NICE}`);
  } catch {
    // Not root, or a kernel without autogroups: longer pauses on a busy host, nothing else.
  }
}

const mib = (bytes: number) => Math.round(bytes / (1024 * 1024));

function availableBytes(): number {
  const match = /^MemAvailable:\s+(\d+) kB/m.exec(fs.readFileSync('/proc/meminfo', 'utf8'));
  return match === null ? os.freemem() : Number(match[1]) * 1024;
}
