/** What the manager tells about usage: history, analysis, forecasts, thresholds. The JSON of the API and of `--json`. */
import { z } from 'zod';
import { METRICS } from '../history/metrics.js';

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
