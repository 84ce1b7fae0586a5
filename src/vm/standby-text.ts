/** Standby levels as people write them, and back: `image`, `process`, `resident`, `resident=50`. */
import { malformed } from './quantity-text.js';
import type { StandbyLevel } from './spec.js';

/** @throws INVALID_ARGUMENT */
export function parseStandby(text: string): StandbyLevel {
  if (text === 'image' || text === 'process') return { level: text };
  const match = /^resident(?:=(\d{1,3})%?)?$/.exec(text);
  const percent = Number(match?.[1] ?? 100);
  if (match === null || percent < 1 || percent > 100)
    throw malformed(
      'the standby level',
      text,
      'it is not a level that a shadow can have',
      'Write image, process, resident, or resident=PERCENT with a whole number from 1 to 100',
    );
  return { level: 'resident', percent };
}

/** The shortest text that `parseStandby` reads back. */
export function formatStandby(standby: StandbyLevel): string {
  if (standby.level !== 'resident') return standby.level;
  return standby.percent === 100 ? 'resident' : `resident=${standby.percent}`;
}
