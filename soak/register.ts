/**
 * Was a register linearizable? Of a history in which every write has a value of its own, this can be told in a sorted
 * pass (Gibbons and Korach, "Testing shared memories", 1997): the operations of one value make a zone of time, in which
 * the register held that value for certain or must have held it at some moment, and zones may not contradict each other.
 */
export interface Operation {
  kind: 'write' | 'read';
  /** null: read before anything was written. */
  value: string | null;
  /** When it was asked for, and when its answer came; Infinity for a write without one. */
  fromMs: number;
  toMs: number;
}

interface Zone {
  value: string | null;
  /** The earliest answer and the latest question of all operations of the value. */
  firstEndMs: number;
  lastStartMs: number;
}

/** null when it was; else what contradicts it. */
export function contradiction(history: readonly Operation[]): string | null {
  const zones = new Map<string | null, Zone>();
  const written = new Map<string | null, number>([[null, Number.NEGATIVE_INFINITY]]);
  for (const { kind, value, fromMs } of history) {
    if (kind !== 'write') continue;
    if (written.has(value)) return `${value} was written twice`;
    written.set(value, fromMs);
  }
  // Before all: the register was empty.
  zones.set(null, { value: null, firstEndMs: Number.NEGATIVE_INFINITY, lastStartMs: Number.NEGATIVE_INFINITY });
  for (const { kind, value, fromMs, toMs } of history) {
    const writtenMs = written.get(value);
    if (writtenMs === undefined) return `${value} was read and never written`;
    if (kind === 'read' && toMs < writtenMs) return `${value} was read before it was written`;
    const zone = zones.get(value);
    if (zone === undefined) zones.set(value, { value, firstEndMs: toMs, lastStartMs: fromMs });
    else {
      zone.firstEndMs = Math.min(zone.firstEndMs, toMs);
      zone.lastStartMs = Math.max(zone.lastStartMs, fromMs);
    }
  }
  // Forward: from its first end to its last start the register held the value, and no other.
  const forward = [...zones.values()]
    .filter((zone) => zone.firstEndMs < zone.lastStartMs)
    .sort((a, b) => a.firstEndMs - b.firstEndMs);
  for (const [i, zone] of forward.entries()) {
    const next = forward[i + 1];
    if (next !== undefined && next.firstEndMs < zone.lastStartMs)
      return `the register went back and forth between ${zone.value} and ${next.value}`;
  }
  for (const zone of zones.values()) {
    if (zone.firstEndMs < zone.lastStartMs || zone.firstEndMs === Number.POSITIVE_INFINITY) continue;
    // At some moment between the two it held this value: not one in which it held another for certain.
    const around = lastBefore(forward, zone.lastStartMs);
    if (around !== null && zone.firstEndMs < around.lastStartMs)
      return `${zone.value} was acknowledged while the register held ${around.value}, and never seen`;
  }
  return null;
}

/** Of zones that do not overlap: the last one that began before a moment. */
function lastBefore(zones: readonly Zone[], atMs: number): Zone | null {
  let [low, high] = [0, zones.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((zones[middle] as Zone).firstEndMs < atMs) low = middle + 1;
    else high = middle;
  }
  return zones[low - 1] ?? null;
}
