/**
 * Sizes, durations and shares as people write them: `256M`, `500ms`, `3%`. A unit is asked for wherever leaving it out
 * could mean two things, and decimal-looking units of RAM (`MB`) are refused: 256 MB and 256 MiB are 12 MB apart.
 */
import { ShadowVmError } from '../errors.js';

const BINARY_UNIT_BYTES: Record<string, number> = {
  K: 1024,
  KiB: 1024,
  M: 1024 ** 2,
  MiB: 1024 ** 2,
  G: 1024 ** 3,
  GiB: 1024 ** 3,
};

/** Of networks, in powers of 1000 as everywhere there. */
const RATE_UNIT_BITS: Record<string, number> = { K: 1e3, M: 1e6, G: 1e9, Kbit: 1e3, Mbit: 1e6, Gbit: 1e9 };

const DURATION_UNIT_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

export function malformed(what: string, text: string, reason: string, remedy: string): ShadowVmError {
  return new ShadowVmError('INVALID_ARGUMENT', { attempted: `read ${what}`, subject: text, reason, remedy });
}

/** Digits, at most one point, an optional unit of letters: what all quantities here look like. */
function split(text: string): { value: number; unit: string } | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,9})?)([A-Za-z%]*)$/.exec(text);
  return match === null ? undefined : { value: Number(match[1]), unit: match[2]! };
}

/**
 * Bytes from `64K`, `256M`, `1.5G`, `256MiB`. With `bare`, a number without unit is taken as bytes.
 * @throws INVALID_ARGUMENT
 */
export function parseBytes(text: string, what: string, options: { bare?: boolean } = {}): number {
  const remedy = `Write a number and K, M or G (powers of 1024)${options.bare ? ', or plain bytes' : ''}, such as 256M or 1G`;
  const parts = split(text);
  if (parts === undefined) throw malformed(what, text, 'it is not a size', remedy);
  if (parts.unit === '' && options.bare !== true) throw malformed(what, text, 'it has no unit', remedy);
  const unitBytes = parts.unit === '' ? 1 : BINARY_UNIT_BYTES[parts.unit];
  if (unitBytes === undefined) throw malformed(what, text, `"${parts.unit}" is not a unit of size`, remedy);
  const bytes = parts.value * unitBytes;
  if (!Number.isSafeInteger(bytes)) throw malformed(what, text, 'it is not a whole number of bytes', remedy);
  return bytes;
}

/** The shortest exact text that `parseBytes` reads back. */
export function formatBytesExact(bytes: number): string {
  for (const unit of ['G', 'M', 'K']) {
    const unitBytes = BINARY_UNIT_BYTES[unit]!;
    if (bytes > 0 && bytes % unitBytes === 0) return `${bytes / unitBytes}${unit}`;
  }
  return String(bytes);
}

/** Bits per second from `100M`, `1.5G`, `100Mbit`. @throws INVALID_ARGUMENT */
export function parseBitsPerSecond(text: string, what: string): number {
  const remedy = 'Write a number and K, M or G bits per second (powers of 1000), such as 100M';
  const parts = split(text);
  if (parts === undefined) throw malformed(what, text, 'it is not a rate', remedy);
  if (parts.unit === '') throw malformed(what, text, 'it has no unit', remedy);
  const unitBits = RATE_UNIT_BITS[parts.unit];
  if (unitBits === undefined) throw malformed(what, text, `"${parts.unit}" is not a unit of bits per second`, remedy);
  return Math.round(parts.value * unitBits);
}

/** The shortest exact text that `parseBitsPerSecond` reads back. */
export function formatBitsPerSecond(bits: number): string {
  const unit = ['G', 'M'].find((name) => bits % RATE_UNIT_BITS[name]! === 0) ?? 'K';
  return `${bits / RATE_UNIT_BITS[unit]!}${unit}`;
}

/** Whole milliseconds from `500ms`, `1.5s`, `2m`, `1h`. @throws INVALID_ARGUMENT */
export function parseDurationMs(text: string, what: string): number {
  const remedy = 'Write a number and ms, s, m or h, such as 500ms or 5s';
  const parts = split(text);
  if (parts === undefined) throw malformed(what, text, 'it is not a duration', remedy);
  if (parts.unit === '') throw malformed(what, text, 'it has no unit', remedy);
  const unitMs = DURATION_UNIT_MS[parts.unit];
  if (unitMs === undefined) throw malformed(what, text, `"${parts.unit}" is not a unit of time`, remedy);
  // 1.1 s is 1100.0000000000002 ms in binary floating point; anything nearer than that to a whole is meant as one.
  const ms = parts.value * unitMs;
  const wholeMs = Math.round(ms);
  if (Math.abs(ms - wholeMs) > 1e-6) throw malformed(what, text, 'it is not a whole number of milliseconds', remedy);
  if (!Number.isSafeInteger(wholeMs)) throw malformed(what, text, 'it is too long', remedy);
  return wholeMs;
}

/** The shortest exact text that `parseDurationMs` reads back. */
export function formatDurationExact(ms: number): string {
  for (const unit of ['h', 'm', 's']) {
    const unitMs = DURATION_UNIT_MS[unit]!;
    if (ms > 0 && ms % unitMs === 0) return `${ms / unitMs}${unit}`;
  }
  return `${ms}ms`;
}

/** A share 0–1 from `3%`. @throws INVALID_ARGUMENT */
export function parseShare(text: string, what: string): number {
  const remedy = 'Write a percentage, such as 3% or 0.5%';
  const parts = split(text);
  if (parts === undefined) throw malformed(what, text, 'it is not a percentage', remedy);
  if (parts.unit !== '%') throw malformed(what, text, 'it does not end in %', remedy);
  if (parts.value > 100) throw malformed(what, text, 'it is above 100%', remedy);
  return parts.value / 100;
}
