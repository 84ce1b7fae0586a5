/** Everything about the VMs' usage in one place: what is measured goes to the history, and questions are answered. */
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { COVERAGES, type ForecastSettings } from '../forecast/outlook.js';
import type { VmSecond } from '../history/archive.js';
import { METRIC_UNITS, type Metric } from '../history/metrics.js';
import { HistoryService } from '../history/service.js';
import { CPU_PERCENT_MAX } from '../vm/spec.js';
import type {
  AllocationView,
  AnalysisView,
  CapacityView,
  ForecastView,
  HistoryView,
  ThresholdView,
} from '../vm/usage-view.js';
import { Allocation } from './allocation.js';
import type { Host } from './host.js';
import { Repeated } from './repeated.js';
import { UsageFeed } from './usage-feed.js';
import type { AllocationChange, HistoryQuery, UsagePort } from './usage-port.js';
import type { ManagedVm } from './vm.js';

const TROUBLE_TOLD_EVERY_MS = 60_000;
const DAILY: ForecastSettings = { intervalS: 300, seasonS: 86_400 };

export class UsageDesk implements UsagePort {
  private readonly service: HistoryService;
  private readonly feed: UsageFeed;
  readonly allocation: Allocation;
  /** A full disk is trouble each second. */
  private readonly troubles = new Repeated(TROUBLE_TOLD_EVERY_MS);

  constructor(
    host: Host,
    private readonly vms: ReadonlyMap<string, ManagedVm>,
  ) {
    const { events, log, stateDir } = host.options;
    this.allocation = new Allocation(host, vms);
    this.service = new HistoryService({
      path: stateDir.historyPath,
      forecasts: host.options.forecasts ?? DAILY,
      onOutlook: (vm, outlooks) => vms.get(vm)?.usage.expect(outlooks),
      onTrouble: (error, retryMs) => {
        if (this.troubles.count(monotonicMs()) === 0) return;
        const then = retryMs === null ? '' : `; it is tried again in ${retryMs} ms`;
        events.append('error', 'history.trouble', null, `usage is not recorded: ${error.message}${then}`, {
          code: error.code,
          retryMs,
        });
      },
      onLoss: (seconds) =>
        events.append('warn', 'history.lost', null, `${seconds} s of usage were lost: the history did not keep up`, {
          seconds,
        }),
    });
    this.feed = new UsageFeed({
      sources: () =>
        [...vms.values()].map(({ spec, usage }) => ({
          name: spec.name,
          read: () => usage.read(),
          sample: () => usage.sample(),
        })),
      take: (seconds) => this.take(seconds),
      onError: (error) => log.warn({ err: error }, 'reading the usage of a VM'),
    });
  }

  start(): void {
    this.feed.start();
  }

  async close(): Promise<void> {
    await this.feed.stop();
    this.allocation.close();
    await this.service.close();
  }

  /** A VM is gone, and so is what it used. */
  forget(vm: string): void {
    this.service.ask('remove', vm).catch(() => {}); // no history, nothing to forget; else told by onTrouble
  }

  async history(vm: string, { metric, sinceMs, untilMs, pointsMax }: HistoryQuery): Promise<HistoryView> {
    this.requireVm(vm, 'show the history');
    const { stepS, points } = await this.service.ask(
      'points',
      vm,
      metric,
      Math.floor(sinceMs / 1000),
      Math.ceil(untilMs / 1000),
      pointsMax,
    );
    return {
      ...about(vm, metric),
      stepS,
      points: points.map(({ atS, mean, max }) => ({ at: isoOf(atS), mean, max })),
    };
  }

  async analysis(vm: string, { metric, sinceMs, untilMs }: Omit<HistoryQuery, 'pointsMax'>): Promise<AnalysisView> {
    this.requireVm(vm, 'analyze the VM');
    const { intervalS, sinceS, analysis } = await this.service.ask(
      'analysis',
      vm,
      metric,
      Math.floor(sinceMs / 1000),
      Math.ceil(untilMs / 1000),
    );
    const known = (value: number) => (Number.isFinite(value) ? value : null);
    return {
      ...about(vm, metric),
      ...analysis,
      since: isoOf(sinceS),
      intervalS,
      mean: known(analysis.mean),
      median: known(analysis.median),
      p99: known(analysis.p99),
      burstiness: known(analysis.burstiness),
      periods: analysis.periods.map(({ samples, strength }) => ({ seconds: samples * intervalS, strength })),
      changePoints: analysis.changePoints.map(({ at, before, after }) => ({
        at: isoOf(sinceS + at * intervalS),
        before,
        after,
      })),
    };
  }

  forecasts(vm: string): ForecastView[] {
    const { outlooks } = this.requireVm(vm, 'show the forecasts').usage;
    const [at80, at95, at99] = ([0.8, 0.95, 0.99] as const).map((coverage) => COVERAGES.indexOf(coverage));
    return [...outlooks.values()].map(({ metric, atS, intervalS, samples, last, limit, ahead }) => ({
      ...about(vm, metric),
      metric,
      ...{ intervalS, samples, last, limit },
      ahead: ahead.map(({ steps, expected, bounds }) => ({
        at: isoOf(atS + steps * intervalS),
        expected,
        upper80: bounds[at80!]!,
        upper95: bounds[at95!]!,
        upper99: bounds[at99!]!,
      })),
    }));
  }

  thresholds(vm: string): ThresholdView[] {
    return this.requireVm(vm, 'show the thresholds').usage.thresholds.view(monotonicMs());
  }

  capacity(): CapacityView {
    return this.allocation.view();
  }

  allocations(): AllocationView[] {
    return [...this.vms.keys()].flatMap((name) => this.allocation.viewOf(name) ?? []);
  }

  async allocate(name: string, change: AllocationChange): Promise<AllocationView> {
    const attempted = 'change what the VM is given';
    const vm = this.requireVm(name, attempted);
    vm.requireRunning(attempted);
    const { spec, core } = vm;
    const wanted = { ...spec.allocation, ...change };
    if (
      (wanted.cpuMaxPercent ?? CPU_PERCENT_MAX) < wanted.cpuMinPercent ||
      (wanted.memoryMaxBytes ?? Infinity) < wanted.memoryMinBytes
    )
      throw new ShadowVmError('INVALID_ARGUMENT', {
        attempted,
        subject: name,
        reason: 'a minimum is above the maximum',
        remedy: 'Choose a minimum that is not above the maximum',
      });
    Object.assign(spec.allocation, wanted);
    await core.save();
    await this.allocation.redeclare(name);
    core.event('info', 'allocation.declared', `what it may be given was changed by hand, mode ${wanted.mode}`, {
      ...wanted,
    });
    return this.allocation.viewOf(name) as AllocationView;
  }

  private take(seconds: VmSecond[]): void {
    this.service.take(seconds);
    this.allocation.second(seconds);
  }

  private requireVm(name: string, attempted: string): ManagedVm {
    const vm = this.vms.get(name);
    if (vm !== undefined) return vm;
    throw vmNotFound(name, attempted);
  }
}

export function vmNotFound(name: string, attempted: string): ShadowVmError {
  return new ShadowVmError('VM_NOT_FOUND', {
    attempted,
    subject: name,
    reason: 'no VM has this name',
    remedy: 'See which there are: shadowvm vm ls',
  });
}

const about = (vm: string, metric: Metric) => ({ vm, metric, unit: METRIC_UNITS[metric] });
const isoOf = (unixS: number): string => new Date(unixS * 1000).toISOString();
