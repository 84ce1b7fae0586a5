/** What goes over the API's socket about usage; see schemas.ts. */
import { z } from 'zod';
import { allocationSchema } from '../vm/spec.js';
import {
  allocationViewSchema,
  analysisViewSchema,
  capacityViewSchema,
  forecastViewSchema,
  historyViewSchema,
  metricSchema,
  thresholdViewSchema,
} from '../vm/usage-view.js';
import { integerText } from './schemas.js';

export const POINTS_MAX = 2000;
const momentSchema = z.iso.datetime({ offset: true });

export const analysisQuerySchema = z.strictObject({
  metric: metricSchema.default('cpu'),
  /** ISO 8601. Default: a fortnight ago. */
  since: momentSchema.optional(),
  /** ISO 8601. Default: now. */
  until: momentSchema.optional(),
});
export const historyQuerySchema = z.strictObject({
  ...analysisQuerySchema.shape,
  /** Points of the answer at most: where there are more, neighbours are put together. */
  points: integerText.pipe(z.number().min(1).max(POINTS_MAX)).default(POINTS_MAX),
});
export const forecastsResponseSchema = z.object({ forecasts: z.array(forecastViewSchema) });
export const thresholdsResponseSchema = z.object({ thresholds: z.array(thresholdViewSchema) });
export const allocationsResponseSchema = z.object({ allocations: z.array(allocationViewSchema) });
const { shape } = allocationSchema;
/** What is left out stays as it is. */
export const allocationBodySchema = z
  .strictObject({
    mode: shape.mode.unwrap(),
    priority: shape.priority.unwrap(),
    cpuMinPercent: shape.cpuMinPercent.unwrap(),
    cpuMaxPercent: shape.cpuMaxPercent.unwrap(),
    memoryMinBytes: shape.memoryMinBytes.unwrap(),
    memoryMaxBytes: shape.memoryMaxBytes.unwrap(),
  })
  .partial();
export { allocationViewSchema, analysisViewSchema, capacityViewSchema, historyViewSchema };
