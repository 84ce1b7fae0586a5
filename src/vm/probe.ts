/** Liveness probes as users declare them: `tcp:6379`, `http:80/health`, `redis:6379`, `exec:test -e /run/ready`. */
import { z } from 'zod';
import { malformed } from './quantity-text.js';

function wholeNumber(min: number, max: number, told: string) {
  return z.number(told).int(told).min(min, told).max(max, told);
}

const port = wholeNumber(1, 65_535, 'a port is 1 to 65535');
/** What an agent takes in one line, less its own words. */
const COMMAND_CHARS_MAX = 1024;

export const probeCheckSchema = z.discriminatedUnion('kind', [
  /** Something accepts a connection. */
  z.object({ kind: z.literal('tcp'), port }),
  /** GET is answered with a status from 200 to 399. */
  z.object({
    kind: z.literal('http'),
    port,
    path: z.string().regex(/^\/[\x21-\x7e]{0,1023}$/, 'a path begins with / and has no spaces'),
  }),
  /** PING is answered, with whatever. */
  z.object({ kind: z.literal('redis'), port }),
  /** A shell command in the guest ends with 0. */
  z.object({
    kind: z.literal('exec'),
    command: z.string().regex(new RegExp(`^[^\\n]{1,${COMMAND_CHARS_MAX}}$`), 'a command is one line'),
  }),
]);
export type ProbeCheck = z.infer<typeof probeCheckSchema>;

export const probeSchema = z.object({
  check: probeCheckSchema,
  /** From the begin of one to the begin of the next. */
  periodMs: wholeNumber(100, 3_600_000, 'a probe’s period is 100 to 3600000 ms').default(2000),
  /** Without an answer for so long it has failed. */
  timeoutMs: wholeNumber(50, 60_000, 'a probe’s timeout is 50 to 60000 ms').default(1000),
  /** So many in a row, and the guest counts as failed. */
  failures: wholeNumber(1, 100, 'a guest counts as failed after 1 to 100 probes in a row').default(3),
});
export type Probe = z.infer<typeof probeSchema>;

/** How a probe stands. `unproven`: it has never succeeded, and can not fail before it has. */
export const probeViewSchema = z.object({
  probe: z.string(),
  health: z.enum(['unproven', 'well', 'failing', 'failed']),
  failuresInRow: z.number().int(),
  /** Why the last one failed; null after one that succeeded. */
  reason: z.string().nullable(),
});
export type ProbeView = z.infer<typeof probeViewSchema>;

/** @throws INVALID_ARGUMENT */
export function parseProbe(text: string): ProbeCheck {
  const remedy = 'Write tcp:PORT, http:PORT/PATH, redis:PORT or exec:COMMAND, such as http:80/health';
  const match = /^(tcp|http|redis|exec):(.*)$/s.exec(text);
  if (match === null)
    throw malformed('the probe', text, 'it begins with none of tcp:, http:, redis: and exec:', remedy);
  const [, kind, rest = ''] = match;
  const [, digits, path] = /^(\d{1,5})(\/.*)?$/.exec(rest) ?? [];
  if (kind !== 'exec' && digits === undefined) throw malformed('the probe', text, 'it has no port', remedy);
  if (path !== undefined && kind !== 'http') throw malformed('the probe', text, `${kind} has no path`, remedy);
  const parsed = probeCheckSchema.safeParse(
    kind === 'exec' ? { kind, command: rest } : { kind, port: Number(digits), path: path ?? '/' },
  );
  if (parsed.success) return parsed.data;
  throw malformed('the probe', text, parsed.error.issues[0]?.message ?? 'it is none', remedy);
}

/** The text that `parseProbe` reads back. */
export function formatProbe(check: ProbeCheck): string {
  switch (check.kind) {
    case 'exec':
      return `exec:${check.command}`;
    case 'http':
      return `http:${check.port}${check.path}`;
    default:
      return `${check.kind}:${check.port}`;
  }
}
