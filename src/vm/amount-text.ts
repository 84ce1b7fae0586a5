/** Amounts as people read them, with their unit. They are rounded: see quantity-text.ts for texts that are read back. */
import type { Unit } from '../history/metrics.js';

export const NONE = '-';

/** 0.4 ms, 37 ms, 1.2 s, 3 min, 2 h */
export function ms(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (value < 9.95) return `${value.toFixed(1)} ms`;
  if (value < 999.5) return `${Math.round(value)} ms`;
  if (value < 59_950) return `${(value / 1000).toFixed(1)} s`;
  if (value < 3_600_000) return `${Math.max(1, Math.floor(value / 60_000))} min`;
  if (value < 48 * 3_600_000) return `${Math.floor(value / 3_600_000)} h`;
  return `${Math.floor(value / 86_400_000)} d`;
}

export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? NONE : `${value.toFixed(1)}%`;
}

/** Memory and files, in powers of 1024. */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  let scaled = value;
  for (const unit of ['B', 'KiB', 'MiB', 'GiB', 'TiB']) {
    if (scaled < 1023.5 || unit === 'TiB') return `${Number.isInteger(scaled) ? scaled : scaled.toFixed(1)} ${unit}`;
    scaled /= 1024;
  }
  return NONE;
}

/** Traffic, in powers of 1000 as triggers have it. */
export function bytesPerSecond(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  let scaled = value;
  for (const unit of ['B/s', 'kB/s', 'MB/s', 'GB/s']) {
    if (scaled < 999.5 || unit === 'GB/s') return `${unit === 'B/s' ? Math.round(scaled) : scaled.toFixed(1)} ${unit}`;
    scaled /= 1000;
  }
  return NONE;
}

/** A figure of the history, in the unit that it has. */
export function amount(value: number | null | undefined, unit: Unit): string {
  if (value === null || value === undefined) return NONE;
  switch (unit) {
    case '%':
      return percent(value);
    case 'B':
      return bytes(Math.round(value));
    case 'B/s':
      return bytesPerSecond(value);
    case 'ms':
      return ms(value);
    case '/s':
      return `${value < 10 ? value.toFixed(1) : Math.round(value)}/s`;
  }
}
