/** Arguments and options of the command line as values. All of these throw INVALID_ARGUMENT, which is exit code 2. */
import { ShadowVmError } from '../errors.js';
import { networkNameSchema } from '../vm/network.js';
import {
  formatBytesExact,
  malformed,
  parseBitsPerSecond,
  parseBytes,
  parseDurationMs,
  parseShare,
} from '../vm/quantity-text.js';
import type { Mode } from '../vm/spec.js';
import { diskNameSchema, MIB, RAM_BYTES_MAX, RAM_BYTES_MIN, vmNameSchema } from '../vm/spec.js';

export function vmName(text: string): string {
  if (vmNameSchema.safeParse(text).success) return text;
  throw malformed(
    'the name of the VM',
    JSON.stringify(text),
    'a name has 1 to 32 characters: lower-case letters, digits and hyphens, beginning with a letter',
    'Choose a name such as web or db-2',
  );
}

export function networkName(text: string): string {
  if (networkNameSchema.safeParse(text).success) return text;
  throw malformed(
    'the name of the network',
    JSON.stringify(text),
    'a name has 1 to 32 characters: lower-case letters, digits and hyphens, beginning with a letter',
    'Choose a name such as backend',
  );
}

export function diskName(text: string): string {
  const parsed = diskNameSchema.safeParse(text);
  if (parsed.success) return text;
  const [issue] = parsed.error.issues;
  throw malformed('the name of the disk', JSON.stringify(text), issue?.message ?? 'it is no name', 'Such as data');
}

export function ramBytes(text: string): number {
  const bytes = parseBytes(text, 'the RAM');
  if (bytes >= RAM_BYTES_MIN && bytes <= RAM_BYTES_MAX && bytes % MIB === 0) return bytes;
  const range = `${formatBytesExact(RAM_BYTES_MIN)} to ${formatBytesExact(RAM_BYTES_MAX)}`;
  throw malformed('the RAM', text, `a VM has ${range} in whole MiB`, 'Choose a size such as 256M or 1G');
}
export const diskBytes = (text: string): number => parseBytes(text, 'the size of the disk');
export const prefetchBytes = (text: string): number => (text === 'off' ? 0 : parseBytes(text, 'what is read ahead'));
export const logBytes = (text: string): number => parseBytes(text, 'how much of the log', { bare: true });
export const timeoutMs = (text: string): number => parseDurationMs(text, 'the timeout');
export const probeTime = (text: string): number => parseDurationMs(text, 'the time of the probes');
export const lagMs = (text: string): number => parseDurationMs(text, 'the lag');
export const bandwidth = (text: string): number => parseBitsPerSecond(text, 'the bandwidth');
export const keepMs = (text: string): number => parseDurationMs(text, 'how long epochs are kept');
export const imageBytes = (text: string): number => parseBytes(text, 'the size of the shadow image');
export const pausedShare = (text: string): number => parseShare(text, 'the share of paused time');
export const cpuShare = (text: string): number => parseShare(text, 'the CPU budget');

export function wholeNumber(what: string, min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    const reason = Number.isNaN(value) ? 'it is not a whole number' : `it is not from ${min} to ${max}`;
    throw malformed(what, JSON.stringify(text), reason, `Write a whole number from ${min} to ${max}`);
  };
}

export interface PublishedPort {
  hostPort: number;
  guestPort: number;
}

/** `8080:80`: host port, guest port. */
export function publishedPort(text: string): PublishedPort {
  const remedy = 'Write HOST:GUEST, such as 8080:80';
  const match = /^(\d{1,5}):(\d{1,5})$/.exec(text);
  if (match === null) throw malformed('the published port', text, 'it does not have the form HOST:GUEST', remedy);
  const [hostPort, guestPort] = [Number(match[1]), Number(match[2])];
  const wrong = [hostPort, guestPort].find((port) => port < 1 || port > 65535);
  if (wrong !== undefined)
    throw malformed('the published port', text, `${wrong} is not a port from 1 to 65535`, remedy);
  return { hostPort, guestPort };
}

export const coolDownMs = (text: string): number => parseDurationMs(text, 'the cool-down');
export const forecastIntervalS = wholeSeconds('the interval of the forecasts', 1, 3600);
export const seasonS = wholeSeconds('the season', 4, 4 * 7 * 86_400);

export const memoryBytes = (text: string): number => parseBytes(text, 'the memory');

/** Percent of one CPU, which may be above 100: `150%`. */
export function cpuPercent(max: number): (text: string) => number {
  return (text) => {
    const match = /^(\d{1,6})%$/.exec(text);
    const percent = Number(match?.[1]);
    if (percent >= 1 && percent <= max) return percent;
    const reason = match === null ? 'it is not a whole percentage' : `it is not from 1% to ${max}%`;
    throw malformed('the share of CPU', text, reason, 'Write whole percent of one CPU, such as 50% or 150%');
  };
}

function wholeSeconds(what: string, min: number, max: number): (text: string) => number {
  return (text) => {
    const seconds = parseDurationMs(text, what) / 1000;
    if (Number.isInteger(seconds) && seconds >= min && seconds <= max) return seconds;
    throw malformed(what, text, `it is not whole seconds from ${min} to ${max}`, 'Write a number and s, m or h');
  };
}

/** @throws INVALID_ARGUMENT */
export function mode(text: string): Mode {
  if (text === 'async' || text === 'strict') return text;
  throw usageError(`"${text}" is no mode`, 'The modes are async and strict');
}

export const epochNumber = wholeNumber('the epoch', 1, Number.MAX_SAFE_INTEGER);

/** A moment as ISO 8601 text: said so, or as a time that has passed since, such as `30s`. */
export function moment(text: string, nowMs = Date.now()): string {
  if (/^\d[\d.]*(ms|s|m|h)$/.test(text)) return new Date(nowMs - parseDurationMs(text, 'the moment')).toISOString();
  const ms = Date.parse(text);
  if (/^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}/.test(text) && !Number.isNaN(ms)) return new Date(ms).toISOString();
  throw malformed(
    'the moment',
    text,
    'it is neither a time of day with its date nor a time that has passed since',
    'Write 2026-01-31T12:00:00Z, or 30s for half a minute ago',
  );
}

/** An option that may be given several times. */
export function collect<T>(parse: (text: string) => T): (text: string, before: T[] | undefined) => T[] {
  return (text, before = []) => [...before, parse(text)];
}

export function usageError(reason: string, remedy: string): ShadowVmError {
  return new ShadowVmError('INVALID_ARGUMENT', { attempted: 'read the command line', reason, remedy });
}
