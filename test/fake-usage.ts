/** Usage of VMs that there are not, for tests of what is between a user and the manager. */
import { METRIC_UNITS } from '../src/history/metrics.js';
import type { AllocationChange, HistoryQuery, UsagePort } from '../src/manager/usage-port.js';
import { MIB } from '../src/vm/spec.js';
import type {
  AllocationView,
  AnalysisView,
  CapacityView,
  ForecastView,
  HistoryView,
  ThresholdView,
} from '../src/vm/usage-view.js';

export class FakeUsage implements UsagePort {
  readonly asked: HistoryQuery[] = [];

  /** @param find throws where there is no such VM */
  constructor(private readonly find: (vm: string) => unknown) {}

  async history(vm: string, query: HistoryQuery): Promise<HistoryView> {
    this.find(vm);
    this.asked.push(query);
    const { metric, sinceMs } = query;
    const points = [10, 20, 90].map((mean, i) => ({
      at: new Date(sinceMs + i * 1000).toISOString(),
      mean,
      max: mean + 5,
    }));
    return { vm, metric, unit: METRIC_UNITS[metric], stepS: 1, points };
  }

  async analysis(vm: string, { metric, sinceMs }: Omit<HistoryQuery, 'pointsMax'>): Promise<AnalysisView> {
    this.find(vm);
    const since = new Date(sinceMs).toISOString();
    return {
      ...{ vm, metric, unit: METRIC_UNITS[metric], since, intervalS: 300, samples: 4032, class: 'periodic' },
      ...{ mean: 30, median: 25, p99: 90, burstiness: 3.6, trendPerDay: 1.5, words: 'periodic: as it is' },
      periods: [{ seconds: 86_400, strength: 0.9 }],
      changePoints: [{ at: since, before: 10, after: 25 }],
    };
  }

  forecasts(vm: string): ForecastView[] {
    this.find(vm);
    const at = '2026-01-01T00:05:00.000Z';
    const ahead = [{ at, expected: 40, upper80: 50, upper95: 60, upper99: 70 }];
    return [{ vm, metric: 'demand', unit: '%', intervalS: 300, samples: 600, last: 35, limit: 80, ahead }];
  }

  thresholds(vm: string): ThresholdView[] {
    this.find(vm);
    const reason = '60.0% is expected and at most 70.0%: 10% above that';
    const policy = { floor: 50, ceiling: 95, margin: 0.1, hysteresis: 0.1 };
    return [
      { metric: 'cpu', unit: '%', value: 77, reason, ...policy, measured: 81, alarm: true, unchangedForMs: 60_000 },
    ];
  }

  capacity(): CapacityView {
    const cpu = { capacity: 200, limits: 260, used: 80, expected: 110, peaks: 190, shortChance: 0.025 };
    const memory = {
      capacity: 4096 * MIB,
      limits: 5120 * MIB,
      used: 900 * MIB,
      expected: MIB,
      peaks: 2 * MIB,
      shortChance: 0,
    };
    return { horizonS: 3600, vms: 3, unknown: 1, cpu, memory };
  }

  allocations(): AllocationView[] {
    return [this.allocation('web', {})];
  }

  readonly changes: AllocationChange[] = [];
  async allocate(vm: string, change: AllocationChange): Promise<AllocationView> {
    this.find(vm);
    this.changes.push(change);
    return this.allocation(vm, change);
  }

  private allocation(vm: string, { mode = 'auto', priority = 5 }: AllocationChange): AllocationView {
    const forecast = { expected: 30, bound: 40 };
    const used = { usedPercent: 20, throttledPercent: 0, forecast };
    const decision = { at: '2026-01-01T00:00:00.000Z', resource: 'cpu', from: '100.0%', to: '44.0%' } as const;
    return {
      ...{ vm, mode, priority },
      cpu: { quotaPercent: 44, weight: 44, minPercent: 10, maxPercent: 100, ...used },
      memory: {
        bytes: 128 * MIB,
        minBytes: 64 * MIB,
        maxBytes: 256 * MIB,
        workingSetBytes: 60 * MIB,
        limitBytes: 70 * MIB,
      },
      shadow: { standby: 'process', cpuPercent: 1, memoryBytes: 192 * MIB },
      risk: { score: 0.3, reasons: ['it uses more than is usual for it'] },
      decisions: [{ ...decision, cause: 'forecast', why: '30.0% is expected', applied: true }],
    };
  }
}
