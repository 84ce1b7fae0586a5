/** What one VM is given at the moment, how it got it, and the effects that change it. */
import os from 'node:os';
import { cpuWeight, type Decision, type VmNeed } from '../allocate/plan.js';
import {
  type Readiness,
  type Risk,
  riskOf,
  sameLevel,
  WAITING_CPU_PERCENT,
  WAITING_MEMORY_BYTES,
} from '../allocate/standby-plan.js';
import type { UsageSample } from '../history/metrics.js';
import type { QemuProcess } from '../qemu/process.js';
import { MIB } from '../vm/spec.js';
import { OomWatch } from './oom-watch.js';
import { mostCpuPercent, other } from './sides.js';
import type { ManagedVm } from './vm.js';

/** Taken back by a guest in need, beyond what it was given. */
const TAKEN_BACK_BYTES = 4 * MIB;
const BALLOON_TIMEOUT_MS = 10_000;

export class Allotment {
  cpuPercent: number;
  readonly changedAtMs: Record<'cpu' | 'memory' | 'standby', number | null> = {
    cpu: null,
    memory: null,
    standby: null,
  };
  /** Events of the VM that make a failure likelier, by when they last were. */
  readonly seenAtMs: Record<'failed' | 'behind' | 'ranOut', number | null> = {
    failed: null,
    behind: null,
    ranOut: null,
  };
  last: UsageSample = {};
  private readonly oom: OomWatch;
  private ranOut = false;
  private primary: QemuProcess | null = null;
  /** What the balloon was last told to leave to the guest; null: nobody has asked for less than all. */
  private targetBytes: number | null = null;
  /** The balloon has been at its target. */
  private settled = false;
  private standby: Pick<Readiness, 'cpuPercent' | 'memoryBytes'> = {
    cpuPercent: WAITING_CPU_PERCENT,
    memoryBytes: WAITING_MEMORY_BYTES,
  };

  constructor(readonly vm: ManagedVm) {
    const { spec, core } = vm;
    this.cpuPercent = Math.min(this.cpuMaxPercent, core.sides.cpuPercent);
    this.oom = new OomWatch(core.host.options.stateDir.consoleLogPath(spec.name));
  }

  get cpuMaxPercent(): number {
    return this.vm.spec.allocation.cpuMaxPercent ?? 100 * this.vm.spec.vcpus;
  }
  get memoryMaxBytes(): number {
    const { allocation, ramBytes } = this.vm.spec;
    return Math.min(allocation.memoryMaxBytes ?? ramBytes, ramBytes);
  }
  get memoryBytes(): number {
    return this.targetBytes ?? this.vm.usage.balloonBytes ?? this.vm.spec.ramBytes;
  }

  /** Takes a second's usage, and looks what else has happened. */
  observe(usage: UsageSample, nowMs: number): void {
    this.last = usage;
    const { primary } = this.vm.core;
    if (primary !== null && primary !== this.primary) this.follow(primary);
    if (this.oom.kills() > 0) this.ranOut = true;
    if (this.ranOut) this.seenAtMs.ranOut = nowMs;
  }

  get hasQuota(): boolean {
    return this.cpuPercent < this.cpuMaxPercent || this.vm.spec.allocation.cpuMaxPercent !== null;
  }
  get weight(): number {
    return cpuWeight(this.cpuPercent, this.vm.spec.allocation.priority);
  }

  /** What it needs, for a plan: what has happened since the last one is in it, and only once. */
  need(outlook: VmNeed['cpu']['outlook']): VmNeed {
    const need = this.describe(outlook);
    this.ranOut = false;
    return need;
  }

  describe(outlook: VmNeed['cpu']['outlook']): VmNeed {
    const { spec, usage, core } = this.vm;
    const { allocation } = spec;
    const beat = core.primary?.agent.last;
    const memoryLimit = usage.outlooks.get('memory')?.limit ?? null;
    return {
      vm: spec.name,
      priority: allocation.priority,
      cpu: {
        min: Math.min(allocation.cpuMinPercent, this.cpuMaxPercent),
        max: this.cpuMaxPercent,
        now: this.cpuPercent,
        demand: this.last.demand ?? Number.NaN,
        throttled: this.last.throttled ?? 0,
        outlook,
        changedAtMs: this.changedAtMs.cpu,
      },
      memory: {
        minBytes: Math.min(allocation.memoryMinBytes, this.memoryMaxBytes),
        maxBytes: this.memoryMaxBytes,
        nowBytes: this.memoryBytes,
        workingSetBytes: this.last.memory ?? null,
        availableBytes: beat === undefined || beat === null ? null : beat.memAvailableKiB * 1024,
        limitBytes: memoryLimit,
        ranOut: this.ranOut,
        changedAtMs: this.changedAtMs.memory,
      },
    };
  }

  readiness(): Readiness | null {
    const { shadow } = this.vm;
    return shadow === null ? null : { level: shadow.standbyLevel, ...this.standby };
  }

  risk(nowMs: number, hostShort: number): Risk {
    const ago = (atMs: number | null) => (atMs === null ? null : nowMs - atMs);
    const beat = this.vm.core.primary?.agent.last;
    return riskOf({
      failedAgoMs: ago(this.seenAtMs.failed),
      ranOutAgoMs: ago(this.seenAtMs.ranOut),
      behindAgoMs: ago(this.seenAtMs.behind),
      alarmed: this.vm.usage.thresholds.alarmed,
      availableShare: beat == null || beat.memTotalKiB === 0 ? null : beat.memAvailableKiB / beat.memTotalKiB,
      hostShort,
    });
  }

  /** Brings a decision about. @throws CGROUP_FAILED, QMP_* */
  async apply({ resource, to }: Decision, nowMs: number): Promise<void> {
    this.changedAtMs[resource] = nowMs;
    if (resource === 'cpu') return this.giveCpu(to);
    await this.giveMemory(to);
  }

  async applyStandby(to: Readiness, nowMs: number): Promise<void> {
    const { core, shadow } = this.vm;
    this.changedAtMs.standby = nowMs;
    this.standby = { cpuPercent: to.cpuPercent, memoryBytes: to.memoryBytes };
    core.sides.giveWaiting(other(core.side), this.standby);
    if (shadow !== null && !sameLevel(shadow.standbyLevel, to.level)) await shadow.changeStandby(to.level);
  }

  /** Back to all that was declared: nobody decides any more. */
  async release(): Promise<void> {
    this.giveCpu(this.cpuMaxPercent);
    if (this.targetBytes !== null) await this.giveMemory(this.memoryMaxBytes);
  }

  /** What was declared has changed: what it has is brought within that. */
  async keepWithin(): Promise<void> {
    const { cpuMinPercent, memoryMinBytes } = this.vm.spec.allocation;
    this.giveCpu(Math.min(this.cpuMaxPercent, Math.max(cpuMinPercent, this.cpuPercent)));
    const bytes = Math.min(this.memoryMaxBytes, Math.max(memoryMinBytes, this.memoryBytes));
    if (bytes !== this.memoryBytes) await this.giveMemory(bytes);
  }

  private giveCpu(percent: number): void {
    const { core, spec } = this.vm;
    this.cpuPercent = percent;
    core.sides.give(core.side, {
      cpuPercent: this.hasQuota ? percent : mostCpuPercent(spec),
      cpuWeight: this.weight,
    });
  }

  private async giveMemory(bytes: number): Promise<void> {
    const { primary } = this.vm.core;
    this.targetBytes = bytes;
    this.settled = false;
    if (primary === null) return;
    // What is not filled yet would be given to the balloon and filled again, from the image.
    await primary.filled;
    await primary.qmp.execute('balloon', { value: bytes }, { timeoutMs: BALLOON_TIMEOUT_MS });
  }

  /** Another process is the primary: its balloon may stand where an older epoch had it. */
  private follow(primary: QemuProcess): void {
    this.primary = primary;
    primary.qmp.onEvent(({ event, data }) => {
      if (event === 'BALLOON_CHANGE' && primary === this.primary) this.balloonMoved(Number(data?.actual));
    });
    void this.syncBalloon(primary).catch((error: unknown) => {
      if (!primary.hasDied) this.vm.core.logError(error, 'setting the balloon');
    });
  }

  /** One that is above its target after it was there: the guest was in need, and took memory back (deflate-on-oom). */
  private balloonMoved(actualBytes: number): void {
    this.vm.usage.balloonBytes = actualBytes;
    if (this.targetBytes === null) return;
    const above = actualBytes > this.targetBytes + TAKEN_BACK_BYTES;
    if (above && this.settled) this.ranOut = true;
    this.settled = !above;
  }

  private async syncBalloon(primary: QemuProcess): Promise<void> {
    if (this.targetBytes !== null) return this.giveMemory(this.targetBytes);
    const { actual } = await primary.qmp.execute('query-balloon');
    this.vm.usage.balloonBytes = actual;
    if (actual < this.vm.spec.ramBytes) this.targetBytes = actual;
    if (actual > this.memoryMaxBytes) await this.giveMemory(this.memoryMaxBytes);
  }
}

/** What the host has for all VMs, where nobody said otherwise. */
export function wholeHost(reserveBytes: number): { cpuPercent: number; memoryBytes: number } {
  return { cpuPercent: 100 * os.availableParallelism(), memoryBytes: os.totalmem() - reserveBytes };
}
