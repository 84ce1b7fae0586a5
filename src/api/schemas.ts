/**
 * What goes over the API's socket, as zod schemas. Requests are strict, so that a misspelt field is an error and not a
 * default; answers are what src/vm/view.ts says. Everything lives under /v1, within which fields and routes are added
 * and never changed.
 */
import { z } from 'zod';
import { ERROR_STATUS, type ErrorBody, type ErrorCode, ShadowVmError } from '../errors.js';
import { networkNameSchema, networkSpecSchema, networkViewSchema } from '../vm/network.js';
import { modeSchema, standbyLevelSchema, vmNameSchema, vmSpecSchema } from '../vm/spec.js';
import {
  epochViewSchema,
  eventSchema,
  exportViewSchema,
  promotionViewSchema,
  shadowViewSchema,
  snapshotViewSchema,
  verifyViewSchema,
  vmViewSchema,
} from '../vm/view.js';

export const LOG_BYTES_MAX = 1024 * 1024;
export const EVENTS_MAX = 4096;

/** One mebibyte of NDJSON is more than any view or event has. */
export const LINE_BYTES_MAX = 1024 * 1024;

/** Sent as `Accept` by who wants to see the steps of a long operation, and the type of every stream of lines. */
export const NDJSON = 'application/x-ndjson';
/** The `Upgrade` token of the console: after 101 both directions are raw bytes of the serial line. */
export const CONSOLE_PROTOCOL = 'shadowvm-console';

/** What `:name` stands for, by the begin of a route's path. */
export const nameParamsSchema = z.object({ name: vmNameSchema });
export const networkNameParamsSchema = z.object({ name: networkNameSchema });

export const runVmBodySchema = z.strictObject(vmSpecSchema.shape);
export const createNetworkBodySchema = z.strictObject(networkSpecSchema.shape);
export const stopVmBodySchema = z.strictObject({
  /** How long the guest has to power off before it is killed. */
  timeoutMs: z.number().int().min(0).max(600_000).default(10_000),
  /** suspend: the guest is stopped as it is, and does not shut down. */
  how: z.enum(['shutdown', 'suspend']).default('shutdown'),
  /** Keep the newest state: `start` goes on from it. */
  snapshot: z.boolean().default(true),
});
export const startVmBodySchema = z.strictObject({
  /** From power-on, whatever snapshot there is. */
  boot: z.boolean().default(false),
});
/** At most one of the two; without either, the newest epoch is meant. */
const wantedEpoch = {
  epoch: z.number().int().positive().optional(),
  /** ISO 8601: the newest epoch that was cut before this moment. */
  before: z.iso.datetime({ offset: true }).optional(),
};
const oneOfBoth = ({ epoch, before }: { epoch?: number | undefined; before?: string | undefined }) =>
  epoch === undefined || before === undefined;
const ONE_OF_BOTH = 'an epoch is named by its number or by a moment, not by both';
export const promoteBodySchema = z.strictObject(wantedEpoch).refine(oneOfBoth, ONE_OF_BOTH);
export const cloneVmBodySchema = z.strictObject({ name: vmNameSchema, ...wantedEpoch }).refine(oneOfBoth, ONE_OF_BOTH);
export const modeBodySchema = z.strictObject({ mode: modeSchema });
export const standbyBodySchema = z.strictObject({ standby: standbyLevelSchema });
const pathSchema = z.string().min(1).max(4096);
export const exportBodySchema = z.strictObject({
  /** On the manager's host, absolute; a file that is there already is never overwritten. */
  path: pathSchema,
});
export const importBodySchema = z.strictObject({
  path: pathSchema,
  /** Default: the name that it was exported under. */
  name: vmNameSchema.optional(),
});
export const faultBodySchema = z.strictObject({ fault: z.enum(['kill', 'hang', 'panic']) });
export type Fault = z.infer<typeof faultBodySchema>['fault'];
export const execBodySchema = z.strictObject({ command: z.string().min(1).max(8192) });

export const integerText = z
  .string()
  .regex(/^\d{1,15}$/, 'it is not a whole number')
  .transform(Number);
const booleanText = z.enum(['true', 'false']).transform((text) => text === 'true');

export const removeVmQuerySchema = z.strictObject({ force: booleanText.default(false) });
export const logsQuerySchema = z.strictObject({
  which: z.enum(['console', 'qemu']).default('console'),
  bytes: integerText.pipe(z.number().min(1).max(LOG_BYTES_MAX)).default(64 * 1024),
  /** Go on where an earlier answer ended: its `nextByte`. Without it the last bytes are meant. */
  from: integerText.optional(),
});
export const eventsQuerySchema = z.strictObject({
  /** Only events after the one with this number. */
  since: integerText.optional(),
  limit: integerText.pipe(z.number().min(1).max(EVENTS_MAX)).optional(),
  vm: vmNameSchema.optional(),
  /** Go on with new events as NDJSON, one event a line. Without `since` and `limit`, only new ones come. */
  follow: booleanText.default(false),
});

export const versionResponseSchema = z.object({
  version: z.string(),
  api: z.literal('v1'),
  pid: z.number().int(),
  startedAt: z.string(),
  stateDir: z.string(),
  /** Where this daemon takes images from, so that `image` verbs look at the same place. */
  imagesDir: z.string(),
});
export type VersionResponse = z.infer<typeof versionResponseSchema>;
export const openApiResponseSchema = z.record(z.string(), z.unknown());
export const healthResponseSchema = z.object({ status: z.enum(['ok', 'stopping']) });
export type HealthResponse = z.infer<typeof healthResponseSchema>;
export const vmsResponseSchema = z.object({ vms: z.array(vmViewSchema) });
export const networksResponseSchema = z.object({ networks: z.array(networkViewSchema) });
export const shadowsResponseSchema = z.object({ shadows: z.array(shadowViewSchema) });
export const epochsResponseSchema = z.object({ epochs: z.array(epochViewSchema) });
export const snapshotsResponseSchema = z.object({ snapshots: z.array(snapshotViewSchema) });
export const removedResponseSchema = z.object({ removed: z.string() });
export const logsResponseSchema = z.object({
  which: z.enum(['console', 'qemu']),
  text: z.string(),
  /** What to give as `from` for that which is written later. */
  nextByte: z.number().int(),
});
/** `atNs`: CLOCK_MONOTONIC nanoseconds as a decimal string, read just before the fault. */
export const faultResponseSchema = z.object({ fault: faultBodySchema.shape.fault, atNs: z.string() });
export const execResponseSchema = z.object({ exitCode: z.number().int() });
export const eventsResponseSchema = z.object({ events: z.array(eventSchema) });

const errorCodes = Object.keys(ERROR_STATUS) as [ErrorCode, ...ErrorCode[]];
const errorBodySchema = z.object({
  // A newer daemon may know codes that this client does not.
  code: z.enum(errorCodes).catch('INTERNAL'),
  message: z.string(),
  attempted: z.string(),
  subject: z.string().optional(),
  reason: z.string(),
  remedy: z.string().optional(),
}) satisfies z.ZodType<ErrorBody>;
export const errorResponseSchema = z.object({ error: errorBodySchema });

const progressSchema = z.object({ message: z.string(), done: z.number().min(0).max(1).optional() });
/** A line of a long operation: any number of `progress`, then `result` or `error`. */
export const operationLineSchema = z.union([
  z.object({ progress: progressSchema }),
  errorResponseSchema,
  z.object({ result: z.unknown() }),
]);

export {
  exportViewSchema,
  networkViewSchema,
  promotionViewSchema,
  shadowViewSchema,
  snapshotViewSchema,
  verifyViewSchema,
  vmViewSchema,
};

/** "ramBytes: RAM must be whole MiB; publish.0.hostPort: …" */
export function describeIssues(error: z.ZodError): string {
  return error.issues
    .slice(0, 8)
    .map((issue) => (issue.path.length === 0 ? issue.message : `${issue.path.join('.')}: ${issue.message}`))
    .join('; ');
}

/** @throws INVALID_ARGUMENT that names every field that is wrong */
export function check<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: `read ${what}`,
    reason: describeIssues(parsed.error),
    remedy: 'Correct what is named here and ask again',
    cause: parsed.error,
  });
}
