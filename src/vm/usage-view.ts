/** What the manager tells about usage: history, analysis, forecasts, thresholds. The JSON of the API and of `--json`. */
import { z } from 'zod';
import { FORECAST_METRICS, METRICS } from '../history/metrics.js';
import { ALLOCATION_MODES } from './spec.js';

export const metricSchema = z.enum(METRICS);
const unitSchema = z.enum(['%', 'B', 'B/s', '/s', 'ms']);

export const historyViewSchema = z.object({
  vm: z.string(),
  metric: metricSchema,
  unit: unitSchema,
  /** Distance of the points: 1 s for the last hour, 60 s for a week, 300 s for 90 days, or a multiple. */
  stepS: z.number().int(),
  points: z.array(
    z.object({
      /** Begin, ISO 8601. Where nothing was measured there is no point. */
      at: z.string(),
      mean: z.number(),
      max: z.number(),
    }),
  ),
});
export type HistoryView = z.infer<typeof historyViewSchema>;

export const analysisViewSchema = z.object({
  vm: z.string(),
  metric: metricSchema,
  unit: unitSchema,
  since: z.string(),
  /** Of the samples that were looked at. */
  intervalS: z.number().int(),
  samples: z.number().int(),
  class: z.enum(['unknown', 'idle', 'steady', 'periodic', 'bursty']),
  mean: z.number().nullable(),
  median: z.number().nullable(),
  p99: z.number().nullable(),
  /** p99 over the median. */
  burstiness: z.number().nullable(),
  /** Strongest first; how alike two periods are, 0–1. */
  periods: z.array(z.object({ seconds: z.number(), strength: z.number() })),
  trendPerDay: z.number(),
  /** When the level changed for good. */
  changePoints: z.array(z.object({ at: z.string(), before: z.number(), after: z.number() })),
  words: z.string(),
});
export type AnalysisView = z.infer<typeof analysisViewSchema>;

/** A threshold that moves with what is usual for the VM. */
export const thresholdViewSchema = z.object({
  metric: z.enum(['cpu', 'memory', 'network']),
  /** cpu: percent of all vCPUs together; memory: percent of the RAM. */
  unit: unitSchema,
  value: z.number(),
  /** Why it is what it is. */
  reason: z.string(),
  floor: z.number(),
  ceiling: z.number(),
  /** How far above the upper bound it stands, as a share of it. */
  margin: z.number(),
  /** It moves only when it is off by more than this share; an alarm ends only this share below it. */
  hysteresis: z.number(),
  measured: z.number().nullable(),
  /** The value has been above for so long that it is told. */
  alarm: z.boolean(),
  unchangedForMs: z.number(),
});
export type ThresholdView = z.infer<typeof thresholdViewSchema>;

const aheadSchema = z.object({
  /** Which moment is meant. */
  at: z.string(),
  expected: z.number(),
  /** What it will not exceed, with so much probability. */
  upper80: z.number(),
  upper95: z.number(),
  upper99: z.number(),
});
export const forecastViewSchema = z.object({
  vm: z.string(),
  /** Whose highest second in each interval is forecast. */
  metric: z.enum(FORECAST_METRICS),
  unit: unitSchema,
  intervalS: z.number(),
  /** How many intervals it was learnt from. */
  samples: z.number().int(),
  last: z.number(),
  /** The held limit: what 99 % of the time stays below, with two changes a day at most. */
  limit: z.number().nullable(),
  ahead: z.array(aheadSchema),
});
export type ForecastView = z.infer<typeof forecastViewSchema>;

const expectedSchema = z.object({ expected: z.number(), bound: z.number() });
export const allocationViewSchema = z.object({
  vm: z.string(),
  mode: z.enum(ALLOCATION_MODES),
  priority: z.number().int(),
  cpu: z.object({
    /** Of one CPU; null: no quota. */
    quotaPercent: z.number().nullable(),
    weight: z.number(),
    minPercent: z.number(),
    maxPercent: z.number(),
    usedPercent: z.number().nullable(),
    throttledPercent: z.number().nullable(),
    /** In the time that the next decision is for. */
    forecast: expectedSchema.nullable(),
  }),
  memory: z.object({
    /** What the balloon leaves to the guest. */
    bytes: z.number(),
    minBytes: z.number(),
    maxBytes: z.number(),
    workingSetBytes: z.number().nullable(),
    /** What is expected to hold 99 % of the time. */
    limitBytes: z.number().nullable(),
  }),
  /** null without a shadow. */
  shadow: z.object({ standby: z.string(), cpuPercent: z.number(), memoryBytes: z.number() }).nullable(),
  /** How likely a failure is taken to be, 0–1, and why. */
  risk: z.object({ score: z.number(), reasons: z.array(z.string()) }),
  /** Newest last, at most eight. */
  decisions: z.array(
    z.object({
      at: z.string(),
      resource: z.enum(['cpu', 'memory', 'standby']),
      from: z.string(),
      to: z.string(),
      cause: z.enum(['forecast', 'pressure', 'capacity', 'risk']),
      why: z.string(),
      /** Only told, as the mode is `recommend`. */
      applied: z.boolean(),
    }),
  ),
});
export type AllocationView = z.infer<typeof allocationViewSchema>;

const outlaySchema = z.object({
  capacity: z.number(),
  /** Sum of what the VMs are given. */
  limits: z.number(),
  used: z.number(),
  /** The highest sum that is expected. */
  expected: z.number(),
  /** Sum of the VMs' own peaks, each of which holds 95 % of the time. */
  peaks: z.number(),
  /** The chance that the VMs together need more than there is, 0–1. */
  shortChance: z.number(),
});
export const capacityViewSchema = z.object({
  /** How far ahead is looked: an hour, or less where forecasts are made more often than each 5 minutes. */
  horizonS: z.number(),
  vms: z.number().int(),
  /** VMs of which nothing is known yet: what they use now is taken for what they will. */
  unknown: z.number().int(),
  /** Percent of one CPU. */
  cpu: outlaySchema,
  /** Bytes; what standbys and QEMU itself take is in it. */
  memory: outlaySchema,
});
export type CapacityView = z.infer<typeof capacityViewSchema>;
