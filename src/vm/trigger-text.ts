/**
 * Trigger expressions as people write them, and back: `cpu>60%/5s`, `memory>80%/30s`, `network>10MB/s/3s`; with `auto` for
 * the value, such as `cpu>auto/5s`, it moves with what is usual for the VM. The part after
 * the last slash is how long the value must stay above the bound. Network units are those of network people, powers of
 * 1000 and bytes; KiB, MiB and GiB are read too.
 */
import { formatDurationExact, malformed, parseDurationMs } from './quantity-text.js';
import type { Trigger } from './spec.js';

/** Held for so long when the expression does not say: long enough that one burst makes no shadow. */
const HELD_MS_DEFAULT = 5000;
const HELD_MS_MAX = 3_600_000;

const RATE_UNIT_BYTES: Record<string, number> = {
  B: 1,
  kB: 1000,
  KB: 1000,
  MB: 1000 ** 2,
  GB: 1000 ** 3,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
};

const WHAT = 'the trigger';
const REMEDY = "Write METRIC>VALUE/TIME, such as 'cpu>60%/5s', 'memory>80%/30s' or 'network>10MB/s/3s'";

/** @throws INVALID_ARGUMENT that says which part is wrong */
export function parseTrigger(text: string): Trigger {
  const parts = /^\s*([a-z]+)\s*>\s*([^\s/]+?)(\/s)?(?:\s*\/\s*([^\s/]+))?\s*$/.exec(text);
  if (parts === null) throw malformed(WHAT, text, 'it does not have the form METRIC>VALUE/TIME', REMEDY);
  const [, metric, value, perSecond, held] = parts as unknown as [string, string, string, string?, string?];
  const heldMs = held === undefined ? HELD_MS_DEFAULT : parseDurationMs(held, `the time in the trigger ${text}`);
  if (heldMs > HELD_MS_MAX)
    throw malformed(WHAT, text, `it must be held for ${held}, and at most 1h can be asked`, REMEDY);
  if (value === 'auto' && perSecond === undefined && (metric === 'cpu' || metric === 'memory' || metric === 'network'))
    return { metric, above: 'auto', heldMs };
  switch (metric) {
    case 'cpu':
    case 'memory':
      if (perSecond !== undefined) throw malformed(WHAT, text, `${metric} is a percentage, not a rate`, REMEDY);
      return { metric, above: parsePercent(value, text), heldMs };
    case 'network':
      if (perSecond === undefined) throw malformed(WHAT, text, 'network is a rate and has no "/s"', REMEDY);
      return { metric, above: parseBytesPerSecond(value, text), heldMs };
    default:
      throw malformed(WHAT, text, `"${metric}" is not a metric; there are cpu, memory and network`, REMEDY);
  }
}

/** The canonical text that `parseTrigger` reads back exactly. */
export function formatTrigger(trigger: Trigger): string {
  const held = formatDurationExact(trigger.heldMs);
  const { metric, above } = trigger;
  if (above === 'auto') return `${metric}>auto/${held}`;
  if (metric !== 'network') return `${metric}>${above}%/${held}`;
  const unit = ['GB', 'MB', 'kB'].find((name) => Number.isInteger(above / RATE_UNIT_BYTES[name]!)) ?? 'B';
  return `network>${above / RATE_UNIT_BYTES[unit]!}${unit}/s/${held}`;
}

function parsePercent(value: string, text: string): number {
  const match = /^(\d{1,3}(?:\.\d{1,9})?)%$/.exec(value);
  if (match === null) throw malformed(WHAT, text, `"${value}" is not a percentage`, REMEDY);
  const percent = Number(match[1]);
  // A bound of 100 or more can not be passed and 0 always is: both would be a rule that does not say what it does.
  if (percent <= 0 || percent >= 100) throw malformed(WHAT, text, 'the percentage is not between 0 and 100', REMEDY);
  return percent;
}

function parseBytesPerSecond(value: string, text: string): number {
  const match = /^(\d{1,15}(?:\.\d{1,9})?)([A-Za-z]+)$/.exec(value);
  const unitBytes = match === null ? undefined : RATE_UNIT_BYTES[match[2]!];
  if (match === null || unitBytes === undefined)
    throw malformed(WHAT, text, `"${value}/s" is not a rate in B, kB, MB or GB (bytes) per second`, REMEDY);
  const bytesPerSecond = Math.round(Number(match[1]) * unitBytes);
  if (bytesPerSecond <= 0) throw malformed(WHAT, text, 'the rate is below 1 B/s', REMEDY);
  return bytesPerSecond;
}
