/** Disks as the API shows them. */
import { z } from 'zod';
import { diskCacheSchema } from './spec.js';

export const diskViewSchema = z.object({
  vm: z.string(),
  disk: z.string(),
  sizeBytes: z.number().int(),
  readOnly: z.boolean(),
  /** The file that it was copied from, or that it is; null for one that began empty. */
  path: z.string().nullable(),
  cache: diskCacheSchema,
  /** What its file takes on the host; null where there is none. */
  hostBytes: z.number().int().nullable(),
  /** The same for the shadow's file of it. */
  shadowBytes: z.number().int().nullable(),
});
export type DiskView = z.infer<typeof diskViewSchema>;

/** Pages are of 4 KiB; all counts are of the recent more than of the past. */
const usedPages = { pagesRead: z.number().int(), pagesWritten: z.number().int() };
export const diskHeatViewSchema = z.object({
  disk: z.string(),
  sizeBytes: z.number().int(),
  /** How finely it is counted. */
  extentBytes: z.number().int(),
  extentsUsed: z.number().int(),
  ...usedPages,
  /** The disk from its begin to its end, in at most 64 equal parts. */
  stripes: z.array(z.object(usedPages)),
  /** The hottest extents. */
  hottest: z.array(z.object({ offset: z.number().int(), ...usedPages })),
  prefetch: z.object({
    /** Of all disks of the VM together; 0: nothing is read ahead. */
    budgetBytes: z.number().int(),
    /** Asked of the host so far, for all disks; most of it was there already. */
    readBytes: z.number().int(),
  }),
});
export type DiskHeatView = z.infer<typeof diskHeatViewSchema>;

/** A disk as it was at an epoch, as a raw image. */
export const diskExportViewSchema = z.object({
  vm: z.string(),
  disk: z.string(),
  path: z.string(),
  epoch: z.number().int(),
  /** When it was so. */
  cutAt: z.string(),
  sizeBytes: z.number().int(),
  /** What the file takes; the rest are holes. */
  hostBytes: z.number().int(),
});
export type DiskExportView = z.infer<typeof diskExportViewSchema>;
