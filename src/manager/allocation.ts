/** Gives the host's CPUs and memory to the VMs, second by second: the plan is pure (allocate/plan.ts), its effects are here. */
import { outlay } from '../allocate/capacity.js';
import { type Capacity, type Decision, type Expected, plan } from '../allocate/plan.js';
import { planStandby, type Readiness, WAITING_PRIVATE_BYTES } from '../allocate/standby-plan.js';
import { monotonicMs } from '../clock.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { COVERAGES } from '../forecast/outlook.js';
import type { VmSecond } from '../history/archive.js';
import { bytes, percent } from '../vm/amount-text.js';
import { MIB, type VmSpec } from '../vm/spec.js';
import { formatStandby } from '../vm/standby-text.js';
import type { AllocationView, CapacityView } from '../vm/usage-view.js';
import { Allotment, wholeHost } from './allotment.js';
import type { AllocationSettings, Host } from './host.js';
import type { ManagedVm } from './vm.js';

const COOL_DOWN_MS = 10 * 60_000;
/** Left to the manager and to the host itself. */
const RESERVE_BYTES = 256 * MIB;
/** A decision is for the coming interval, and for the one in which the next is made. */
const INTERVALS_AHEAD = 2;
const COVERAGE = COVERAGES.indexOf(0.99);
/** What is known from fewer samples takes nothing away: an hour, with those of 5 minutes. */
const SAMPLES_MIN = 12;
/** Of a quota that is decided by what was used. */
const SECONDS_BACK = 3;
const HOUR_S = 3600;
const OUTLOOK_STEPS = 12;
/** QEMU's own memory beside the guest's. */
const QEMU_BYTES = 40 * MIB;
const LOOK_EVERY_MS = 5000;
const DECISIONS_KEPT = 8;
/** No VM is admitted that makes the host short of memory with this chance or more. */
const SHORT_CHANCE_MAX = 0.1;
/** Twice what is used now, and much of what it has: a peak that a shadow should be ready for. */
const PEAK_FACTOR = 2;
const PEAK_SHARE = 0.5;

/** Events that make a failure likelier for a while. */
const RISKS = new Map<string, 'failed' | 'behind'>([
  ['failure.detected', 'failed'],
  ['failure.suspected', 'failed'],
  ['shadow.behind', 'behind'],
  ['epoch.aborted', 'behind'],
]);

type Told = AllocationView['decisions'][number];

interface Entry {
  allotment: Allotment;
  decisions: Told[];
  /** What was last recommended, by resource: it is not told each second. */
  recommended: Map<string, { to: string; atMs: number }>;
  recentDemand: number[];
  changing: Promise<void>;
}

export class Allocation {
  private readonly entries = new Map<string, Entry>();
  private readonly settings: AllocationSettings;
  private readonly capacity: Capacity;
  private readonly unfollow: () => void;
  /** How the host stood when it was last looked at. */
  private lookedAtMs = Number.NEGATIVE_INFINITY;
  private memoryShort = 0;
  private freeBytes = Number.POSITIVE_INFINITY;

  constructor(
    host: Host,
    private readonly vms: ReadonlyMap<string, ManagedVm>,
  ) {
    this.settings = { capacity: {}, coolDownMs: COOL_DOWN_MS, foresight: true, ...host.options.allocation };
    this.capacity = { ...wholeHost(RESERVE_BYTES), ...this.settings.capacity };
    this.unfollow = host.options.events.follow(({ type, vm }) => {
      const risk = RISKS.get(type);
      if (vm === null || risk === undefined) return;
      const seen = this.entryOf(vm)?.allotment.seenAtMs;
      if (seen === undefined) return;
      seen[risk] = monotonicMs();
    });
  }

  close(): void {
    this.unfollow();
  }

  /** Takes a second's usage of the VMs, decides, and begins what was decided. */
  second(seconds: readonly VmSecond[]): void {
    const nowMs = monotonicMs();
    for (const name of this.entries.keys()) if (!this.isRunning(name)) this.entries.delete(name);
    for (const { vm, usage } of seconds) {
      const entry = this.entryOf(vm);
      if (entry === null) continue;
      entry.allotment.observe(usage, nowMs);
      entry.recentDemand = [...entry.recentDemand, usage.demand ?? Number.NaN].slice(-SECONDS_BACK);
    }
    const planned = [...this.entries.values()].filter(({ allotment }) => allotment.vm.spec.allocation.mode !== 'off');
    if (planned.length > 0 && nowMs - this.lookedAtMs > LOOK_EVERY_MS) this.look(nowMs);
    const needs = planned.map((entry) => entry.allotment.need(this.expectedCpu(entry)));
    for (const decision of plan(needs, this.leftFor(planned), this.settings.coolDownMs, nowMs))
      this.decided(decision, nowMs);
    for (const entry of planned) this.decideStandby(entry, nowMs);
  }

  /** The chance of a shortage, with a VM that is to be started. @throws NO_SPACE */
  requireRoom(spec: VmSpec, attempted: string): void {
    const refuse = (reason: string) => {
      throw new ShadowVmError('NO_SPACE', {
        attempted,
        subject: spec.name,
        reason,
        remedy: 'See `shadowvm capacity`; stop other VMs, give this one less, or lower the minimum of others',
      });
    };
    const others = [...this.vms.values()].filter((vm) => !vm.ended && vm.spec.name !== spec.name).map((vm) => vm.spec);
    const least = (pick: (each: VmSpec) => number) => [...others, spec].reduce((sum, each) => sum + pick(each), 0);
    const cpu = least(({ allocation }) => allocation.cpuMinPercent);
    if (cpu > this.capacity.cpuPercent)
      refuse(
        `the minimums of all VMs are ${percent(cpu)} of a CPU, and the host gives ${percent(this.capacity.cpuPercent)}`,
      );
    const memory = least(({ allocation }) => allocation.memoryMinBytes + QEMU_BYTES);
    if (memory > this.capacity.memoryBytes)
      refuse(
        `the minimums of all VMs are ${bytes(memory)} of memory, and the host gives ${bytes(this.capacity.memoryBytes)}`,
      );
    const chance = this.view(spec).memory.shortChance;
    if (chance >= SHORT_CHANCE_MAX)
      refuse(`with it the host is short of memory in the next hour with a chance of ${percent(100 * chance)}`);
  }

  /** @param more a VM that is to be started: it is taken to need all that it may have */
  view(more?: VmSpec): CapacityView {
    const entries = [...this.entries.values()];
    const intervalS =
      entries.flatMap(({ allotment }) => [...allotment.vm.usage.outlooks.values()])[0]?.intervalS ?? 300;
    const steps = Math.max(1, Math.min(OUTLOOK_STEPS, Math.round(HOUR_S / intervalS)));
    const ahead = ({ allotment }: Entry, metric: 'demand' | 'memory') =>
      allotment.vm.usage.outlooks.get(metric)?.ahead ?? [];
    const fixed =
      entries.reduce((sum, { allotment }) => sum + standbyBytes(allotment), 0) + QEMU_BYTES * entries.length;
    const memoryMore = more === undefined ? 0 : more.ramBytes + QEMU_BYTES;
    const sum = (pick: (entry: Entry) => number) => entries.reduce((total, entry) => total + pick(entry), 0);
    const cpu = outlay(
      entries.map((entry) => ({
        ahead: ahead(entry, 'demand'),
        otherwise: entry.allotment.last.demand ?? 0,
        max: entry.allotment.cpuMaxPercent,
      })),
      this.capacity.cpuPercent,
      steps,
    );
    const memory = outlay(
      entries.map((entry) => ({
        ahead: ahead(entry, 'memory'),
        otherwise: entry.allotment.last.memory ?? entry.allotment.memoryBytes,
        max: entry.allotment.memoryMaxBytes,
      })),
      this.capacity.memoryBytes - fixed - memoryMore,
      steps,
    );
    const beside = fixed + memoryMore;
    return {
      horizonS: steps * intervalS,
      vms: entries.length,
      unknown: entries.filter((entry) => ahead(entry, 'demand').length === 0).length,
      cpu: {
        ...cpu,
        capacity: this.capacity.cpuPercent,
        limits: sum(({ allotment }) => allotment.cpuPercent),
        used: sum(({ allotment }) => allotment.last.cpu ?? 0),
      },
      memory: {
        capacity: this.capacity.memoryBytes,
        limits: sum(({ allotment }) => allotment.memoryBytes) + beside,
        used: sum(({ allotment }) => allotment.last['guest-memory'] ?? 0) + beside,
        expected: memory.expected + beside,
        peaks: memory.peaks + beside,
        shortChance: memory.shortChance,
      },
    };
  }

  /** null for a VM that does not run. */
  viewOf(name: string): AllocationView | null {
    const entry = this.entryOf(name);
    if (entry === null) return null;
    const { allotment } = entry;
    const { allocation } = allotment.vm.spec;
    const expected = this.expectedCpu(entry);
    const need = allotment.describe(expected);
    const readiness = allotment.readiness();
    return {
      vm: name,
      mode: allocation.mode,
      priority: allocation.priority,
      cpu: {
        quotaPercent: allotment.hasQuota ? need.cpu.now : null,
        weight: allotment.weight,
        minPercent: need.cpu.min,
        maxPercent: need.cpu.max,
        usedPercent: allotment.last.cpu ?? null,
        throttledPercent: allotment.last.throttled ?? null,
        forecast: expected,
      },
      memory: {
        bytes: need.memory.nowBytes,
        minBytes: need.memory.minBytes,
        maxBytes: need.memory.maxBytes,
        workingSetBytes: need.memory.workingSetBytes,
        limitBytes: need.memory.limitBytes,
      },
      shadow:
        readiness === null
          ? null
          : {
              standby: formatStandby(readiness.level),
              cpuPercent: readiness.cpuPercent,
              memoryBytes: readiness.memoryBytes,
            },
      risk: allotment.risk(monotonicMs(), this.memoryShort),
      decisions: entry.decisions,
    };
  }

  /** Takes what was declared anew for a VM: its own limits hold from now on. */
  async redeclare(name: string): Promise<void> {
    const entry = this.entryOf(name);
    if (entry === null) return;
    entry.recommended.clear();
    const { allotment } = entry;
    if (allotment.vm.spec.allocation.mode === 'auto') await allotment.keepWithin();
    else await allotment.release();
  }

  private isRunning(name: string): boolean {
    const vm = this.vms.get(name);
    return vm !== undefined && !vm.ended && this.entries.get(name)?.allotment.vm === vm;
  }

  private entryOf(name: string): Entry | null {
    const vm = this.vms.get(name);
    if (vm === undefined || vm.ended) return null;
    const known = this.entries.get(name);
    if (known !== undefined && known.allotment.vm === vm) return known;
    const entry: Entry = {
      allotment: new Allotment(vm),
      decisions: [],
      recommended: new Map(),
      recentDemand: [],
      changing: Promise.resolve(),
    };
    this.entries.set(name, entry);
    vm.usage.freeBytes = () => this.freeBytes;
    return entry;
  }

  /** How the host stands: some ms for hundreds of VMs, so not each second. */
  private look(nowMs: number): void {
    const { capacity, peaks, shortChance } = this.view().memory;
    this.lookedAtMs = nowMs;
    this.memoryShort = shortChance;
    this.freeBytes = capacity - peaks;
  }

  private expectedCpu({ allotment, recentDemand }: Entry): Expected | null {
    if (!this.settings.foresight) {
      const bound = Math.max(...recentDemand);
      return recentDemand.length < SECONDS_BACK ? null : { expected: bound, bound };
    }
    const outlook = allotment.vm.usage.outlooks.get('demand');
    if (outlook === undefined || outlook.samples < SAMPLES_MIN) return null;
    const next = outlook.ahead.slice(0, INTERVALS_AHEAD);
    return {
      expected: Math.max(...next.map((each) => each.expected)),
      bound: Math.max(...next.map((each) => each.bounds[COVERAGE]!)),
    };
  }

  /** Of the capacity, what those leave that nobody plans for: what they use, and they may use up to their maximum. */
  private leftFor(planned: readonly Entry[]): Capacity {
    const others = [...this.entries.values()].filter((entry) => !planned.includes(entry));
    const cpu = others.reduce(
      (sum, { allotment }) => sum + Math.min(allotment.cpuMaxPercent, allotment.last.demand ?? 0),
      0,
    );
    const memory = others.reduce((sum, { allotment }) => sum + allotment.memoryBytes, 0);
    const beside = [...this.entries.values()].reduce(
      (sum, { allotment }) => sum + standbyBytes(allotment) + QEMU_BYTES,
      0,
    );
    return {
      cpuPercent: Math.max(0, this.capacity.cpuPercent - cpu),
      memoryBytes: Math.max(0, this.capacity.memoryBytes - memory - beside),
    };
  }

  private decided(decision: Decision, nowMs: number): void {
    const entry = this.entries.get(decision.vm);
    if (entry === undefined) return;
    const { resource, from, to, cause, why, forecast } = decision;
    const amount = resource === 'cpu' ? percent : bytes;
    const told = { resource, from: amount(from), to: amount(to), cause, why };
    this.tell(entry, told, { from, to, forecast }, nowMs, () => entry.allotment.apply(decision, nowMs));
  }

  private decideStandby(entry: Entry, nowMs: number): void {
    const { allotment } = entry;
    const { vm } = allotment;
    const now = allotment.readiness();
    if (now === null || vm.shadow?.state !== 'ready') return;
    const expected = this.expectedCpu(entry);
    const used = allotment.last.demand ?? Number.NaN;
    const decision = planStandby(
      {
        ramBytes: vm.spec.ramBytes,
        declared: vm.declaredStandby,
        now,
        risk: allotment.risk(nowMs, this.memoryShort),
        peak:
          expected !== null &&
          expected.expected > PEAK_FACTOR * used &&
          expected.expected > PEAK_SHARE * allotment.cpuMaxPercent,
        changedAtMs: allotment.changedAtMs.standby,
        freeBytes: this.freeBytes,
      },
      this.settings.coolDownMs,
      nowMs,
    );
    if (decision === null) return;
    const { to, why } = decision;
    const told = {
      resource: 'standby',
      from: readinessWords(now),
      to: readinessWords(to),
      cause: 'risk',
      why,
    } as const;
    this.tell(entry, told, { from: now, to }, nowMs, () => allotment.applyStandby(to, nowMs));
  }

  /** Tells a decision, and brings it about where that is wanted. One after the other for each VM. */
  private tell(
    entry: Entry,
    told: Omit<Told, 'at' | 'applied'>,
    data: Record<string, unknown>,
    nowMs: number,
    act: () => Promise<void>,
  ): void {
    const { allotment, recommended } = entry;
    const { core, spec } = allotment.vm;
    const { resource, from, to, why, cause } = told;
    const applied = spec.allocation.mode === 'auto';
    if (!applied) {
      const before = recommended.get(resource);
      if (before !== undefined && (before.to === to || nowMs - before.atMs < this.settings.coolDownMs)) return;
      recommended.set(resource, { to, atMs: nowMs });
    }
    entry.decisions = [...entry.decisions, { ...told, at: new Date().toISOString(), applied }].slice(-DECISIONS_KEPT);
    core.event(
      cause === 'pressure' ? 'warn' : 'info',
      applied ? 'allocation.changed' : 'allocation.recommended',
      `${resource} ${applied ? '' : 'should go '}from ${from} to ${to} (${cause}): ${why}`,
      { resource, cause, why, ...data },
    );
    if (!applied) return;
    entry.changing = entry.changing.then(act).catch((error: unknown) => {
      if (core.primary?.hasDied !== false) return; // what it was given goes to its shadow
      core.event('warn', 'allocation.failed', `${resource} could not be changed to ${to}: ${messageOf(error)}`, {
        resource,
      });
    });
  }
}

function standbyBytes(allotment: Allotment): number {
  const readiness = allotment.readiness();
  if (readiness === null || readiness.level.level === 'image') return 0;
  const share = readiness.level.level === 'resident' ? readiness.level.percent / 100 : 0;
  return WAITING_PRIVATE_BYTES + share * allotment.vm.spec.ramBytes;
}

function readinessWords({ level, cpuPercent, memoryBytes }: Readiness): string {
  return `${formatStandby(level)} with ${percent(cpuPercent)} of a CPU and ${bytes(memoryBytes)}`;
}
