/** Reads what one VM uses: often for its triggers, and each second for the history. */

import { affordableStandby } from '../allocate/standby-plan.js';
import { monotonicMs } from '../clock.js';
import type { Outlook } from '../forecast/outlook.js';
import type { ForecastMetric, UsageSample } from '../history/metrics.js';
import { cpuSeconds, waitedMs } from '../host/process-stat.js';
import { alarmWords, MovingThresholds } from '../monitor/moving-thresholds.js';
import type { Usage } from '../monitor/thresholds.js';
import { readCounters, type UsageCounters, usageBetween } from '../monitor/usage.js';
import { sampleBetween, type VmReading } from '../monitor/usage-sample.js';
import type { Shadow } from '../shadow/shadow.js';
import type { StandbyLevel } from '../vm/spec.js';
import { formatStandby } from '../vm/standby-text.js';
import type { VmCore } from './vm-core.js';

const TRIGGERS_EVERY_MS = 500;

export interface VmUsageOptions {
  core: VmCore;
  shadow: () => Shadow | null;
  /** What the triggers are judged by. */
  onUsage: (usage: Usage, nowMs: number) => void;
}

export class VmUsage {
  /** Of the last half second; null before there was one. */
  latest: Usage | null = null;
  /** What the balloon leaves to the guest, by QEMU's word; null: it was not asked yet, so all of it. */
  balloonBytes: number | null = null;
  readonly thresholds: MovingThresholds;
  /** What is expected of it, by metric; empty before anything is. */
  readonly outlooks = new Map<ForecastMetric, Outlook>();
  private timer: NodeJS.Timeout | undefined;
  private counters: UsageCounters | null = null;
  private reading: VmReading | null = null;

  constructor(private readonly options: VmUsageOptions) {
    this.thresholds = new MovingThresholds(options.core.spec, monotonicMs());
  }

  start(): void {
    this.timer = setInterval(() => this.sampleTriggers(), TRIGGERS_EVERY_MS);
  }

  stop(): void {
    clearInterval(this.timer);
  }

  /** Another process is the primary from now on. */
  restart(): void {
    this.counters = null;
    this.reading = null;
  }

  /** A new outlook was made. */
  expect(outlooks: readonly Outlook[]): void {
    for (const outlook of outlooks) this.outlooks.set(outlook.metric, outlook);
    this.thresholds.move(outlooks, monotonicMs());
  }

  /** What of a standby the host can pay for when a shadow is made. */
  affordable(level: StandbyLevel): StandbyLevel {
    const { core } = this.options;
    const affordable = affordableStandby(level, core.spec.ramBytes, this.freeBytes());
    if (affordable === level) return level;
    const what = formatStandby(affordable);
    core.event(
      'warn',
      'shadow.short',
      `the host is short of memory: the standby is ${what} and not ${formatStandby(level)}`,
      {
        level: what,
      },
    );
    return affordable;
  }
  /** Memory that the host can still give to standbys; set by who knows the other VMs. */
  freeBytes: () => number = () => Number.POSITIVE_INFINITY;

  /** What it used since the last call; null when that can not be said. */
  sample(): UsageSample | null {
    const before = this.reading;
    this.reading = this.read();
    if (before === null || this.reading === null) return null;
    return sampleBetween(before, this.reading, this.options.core.spec.vcpus);
  }

  private read(): VmReading | null {
    const { core } = this.options;
    const { primary, side, sides } = core;
    if (primary === null || primary.hasDied || core.state !== 'running') return null;
    const group = sides.groupUsage(side);
    const cpuMs = group === null ? (cpuSeconds(primary.pid) ?? Number.NaN) * 1000 : group.cpuNs / 1e6;
    if (Number.isNaN(cpuMs)) return null; // it ended a moment ago
    const network = sides.networkCounters(side);
    const beat = primary.agent.last;
    const kib = (value: number | undefined) => (value === undefined || beat?.memTotalKiB === 0 ? null : value * 1024);
    const shadow = this.options.shadow();
    return {
      atMs: monotonicMs(),
      pid: primary.pid,
      cpuMs,
      waitedMs: waitedMs(primary.pid),
      throttledMs: group === null ? null : group.throttledNs / 1e6,
      networkBytes: network === null ? null : network.rxBytes + network.txBytes,
      networkPackets: network === null ? null : network.rxPackets + network.txPackets,
      memTotalBytes: kib(beat?.memTotalKiB),
      memAvailableBytes: kib(beat?.memAvailableKiB),
      balloonBytes: this.balloonBytes ?? core.spec.ramBytes,
      residentBytes: primary.ram.residentBytes(),
      epochs:
        shadow === null
          ? null
          : {
              count: shadow.committed?.epoch ?? 0,
              changedPages: shadow.changedPages,
              pausedMs: shadow.pausedTotalMs(),
              lagMs: shadow.lagMs(),
            },
    };
  }

  private sampleTriggers(): void {
    const { core, onUsage } = this.options;
    const { primary } = core;
    if (primary === null || core.state !== 'running') return;
    const nowMs = monotonicMs();
    const next = readCounters(primary.pid, core.sides.networkBytes(core.side), primary.agent.last, nowMs);
    const usage = this.counters === null || next === null ? null : usageBetween(this.counters, next, core.spec.vcpus);
    this.counters = next;
    if (usage === null) return;
    this.latest = usage;
    for (const alarm of this.thresholds.judge(usage, nowMs)) {
      const { metric, raised, value, threshold } = alarm;
      core.event(raised ? 'warn' : 'info', raised ? 'alarm.raised' : 'alarm.cleared', alarmWords(alarm), {
        metric,
        value,
        threshold,
      });
    }
    onUsage(usage, nowMs);
  }
}
