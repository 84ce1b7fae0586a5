/** What goes over the API's socket about disks; see schemas.ts. */
import { z } from 'zod';
import { diskExportViewSchema, diskHeatViewSchema, diskViewSchema } from '../vm/disk-view.js';
import { diskNameSchema } from '../vm/spec.js';

export const disksResponseSchema = z.object({ disks: z.array(diskViewSchema) });
export const diskHeatResponseSchema = z.object({ disks: z.array(diskHeatViewSchema) });
export const resizeDiskBodySchema = z.strictObject({
  disk: diskNameSchema,
  /** At least what it has, in whole MiB. */
  sizeBytes: z.number().int().positive(),
});
export const exportDiskBodySchema = z.strictObject({
  disk: diskNameSchema,
  /** On the manager's host, absolute; a file that is there already is never overwritten. */
  path: z.string().min(1).max(4096),
  /** Default: the newest. */
  epoch: z.number().int().positive().optional(),
});
export { diskExportViewSchema, diskViewSchema };
