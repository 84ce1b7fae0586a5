/** What the API may ask about usage; see port.ts. */
import type { Metric } from '../history/metrics.js';
import type { AllocationSpec } from '../vm/spec.js';
import type {
  AllocationView,
  AnalysisView,
  CapacityView,
  ForecastView,
  HistoryView,
  ThresholdView,
} from '../vm/usage-view.js';

export interface HistoryQuery {
  metric: Metric;
  /** Unix time, ms. */
  sinceMs: number;
  untilMs: number;
  pointsMax: number;
}

/** What is left out stays as it is. */
export type AllocationChange = Partial<AllocationSpec>;

export interface UsagePort {
  /** @throws VM_NOT_FOUND, STATE_CORRUPT when there is no history */
  history(vm: string, query: HistoryQuery): Promise<HistoryView>;
  /** What kind of load it was, in words and figures. @throws VM_NOT_FOUND, STATE_CORRUPT */
  analysis(vm: string, query: Omit<HistoryQuery, 'pointsMax'>): Promise<AnalysisView>;
  /** What is expected of it, by metric; empty before anything is. @throws VM_NOT_FOUND */
  forecasts(vm: string): ForecastView[];
  /** Those that move, and why they are what they are. @throws VM_NOT_FOUND */
  thresholds(vm: string): ThresholdView[];
  /** Whether the host has enough for all VMs. */
  capacity(): CapacityView;
  /** Of the VMs that run. */
  allocations(): AllocationView[];
  /** @throws VM_NOT_FOUND, VM_NOT_RUNNING, INVALID_ARGUMENT */
  allocate(vm: string, change: AllocationChange): Promise<AllocationView>;
}
