/** Reads what one VM uses: one reading each half second, for its triggers and for the history. */
import { affordableStandby } from '../allocate/standby-plan.js';
import { monotonicMs } from '../clock.js';
import type { Outlook } from '../forecast/outlook.js';
import type { ForecastMetric, UsageSample } from '../history/metrics.js';
import { cpuSeconds, waitedMs } from '../host/process-stat.js';
import { alarmWords, MovingThresholds } from '../monitor/moving-thresholds.js';
import type { Usage } from '../monitor/thresholds.js';
import { sampleBetween, usageOf, type VmReading } from '../monitor/usage-sample.js';
import type { QemuProcess } from '../qemu/process.js';
import type { DeviceStats } from '../qemu/qmp.js';
import type { Shadow } from '../shadow/shadow.js';
import type { StandbyLevel } from '../vm/spec.js';
import { formatStandby } from '../vm/standby-text.js';
import type { VmCore } from './vm-core.js';

/** With readings each half second, at every other one. */
const DISKS_EVERY_MS = 750;
const DISKS_TIMEOUT_MS = 5000;

type DiskCounts = Pick<VmReading, 'diskBytes' | 'diskOperations'>;
const UNKNOWN: DiskCounts = { diskBytes: null, diskOperations: null };

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
  private newest: VmReading | null = null;
  /** The reading that ended the last second. */
  private secondAgo: VmReading | null = null;
  /** What QEMU last said of the disks of one process. */
  private disks: { pid: number; askedMs: number; counts: DiskCounts } | null = null;

  constructor(private readonly options: VmUsageOptions) {
    this.thresholds = new MovingThresholds(options.core.spec.vcpus, monotonicMs());
  }

  /** A new outlook was made. */
  expect(outlooks: readonly Outlook[]): void {
    for (const outlook of outlooks) this.outlooks.set(outlook.metric, outlook);
    this.thresholds.move(outlooks, this.newest?.memTotalBytes ?? this.options.core.spec.ramBytes, monotonicMs());
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

  /** Takes a reading, and judges what was used since the one before. */
  read(): void {
    const { core, onUsage } = this.options;
    const before = this.newest;
    this.newest = this.takeReading();
    if (before === null || this.newest === null) return;
    const sample = sampleBetween(before, this.newest, core.spec.vcpus);
    if (sample === null) return;
    const { atMs } = this.newest;
    const usage = usageOf(sample, this.newest, core.spec.vcpus, this.latest);
    this.latest = usage;
    for (const alarm of this.thresholds.judge(usage, atMs)) {
      const { metric, raised, value, threshold } = alarm;
      core.event(raised ? 'warn' : 'info', raised ? 'alarm.raised' : 'alarm.cleared', alarmWords(alarm), {
        metric,
        value,
        threshold,
      });
    }
    onUsage(usage, atMs);
  }

  /** What it used between the last call and the newest reading; null when that can not be said. */
  sample(): UsageSample | null {
    const before = this.secondAgo;
    this.secondAgo = this.newest;
    if (before === null || this.newest === null) return null;
    return sampleBetween(before, this.newest, this.options.core.spec.vcpus);
  }

  private takeReading(): VmReading | null {
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
      ...this.diskCounts(primary),
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

  /**
   * As QEMU said at the last reading but one, when it was asked: nobody waits for its answer. A cgroup's counts would tell
   * when the host writes its page cache back, and of the manager's copies, and not what the guest does.
   */
  private diskCounts(primary: QemuProcess): DiskCounts {
    if (this.options.core.spec.disks.length === 0) return UNKNOWN;
    if (this.disks?.pid !== primary.pid)
      this.disks = { pid: primary.pid, askedMs: Number.NEGATIVE_INFINITY, counts: UNKNOWN };
    const { disks } = this;
    const nowMs = monotonicMs();
    if (nowMs - disks.askedMs >= DISKS_EVERY_MS) {
      disks.askedMs = Number.POSITIVE_INFINITY; // not again before it has answered
      primary.qmp
        .execute('query-blockstats', undefined, { timeoutMs: DISKS_TIMEOUT_MS })
        .then(
          (devices) => {
            disks.counts = countsOf(devices);
          },
          () => {
            disks.counts = UNKNOWN; // it hangs or has ended, which the failure watch tells
          },
        )
        .finally(() => {
          disks.askedMs = nowMs;
        });
    }
    return disks.counts;
  }
}

function countsOf(devices: readonly DeviceStats[]): DiskCounts {
  const counts = { diskBytes: 0, diskOperations: 0 };
  for (const { qdev, stats } of devices) {
    if (qdev === undefined) continue; // no disk of the guest
    counts.diskBytes += stats.rd_bytes + stats.wr_bytes;
    counts.diskOperations += stats.rd_operations + stats.wr_operations + stats.unmap_operations;
  }
  return counts;
}
