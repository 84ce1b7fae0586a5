/** Results as text for people: aligned tables, and numbers with their units. */
export * from '../vm/amount-text.js';

export interface Column<T> {
  title: string;
  /** Numbers are compared by eye when their ends are below each other. */
  align?: 'left' | 'right';
  value: (row: T) => string;
}

const GAP = '  ';

/** A heading and one line per row, each ending in a line feed. No column is wider than its longest cell. */
export function table<T>(columns: readonly Column<T>[], rows: readonly T[]): string {
  const cells = [
    columns.map((column) => column.title),
    ...rows.map((row) => columns.map((c) => printable(c.value(row)))),
  ];
  const widths = columns.map((_, i) => Math.max(...cells.map((line) => line[i]!.length)));
  return cells
    .map((line) =>
      line
        .map((cell, i) => (columns[i]!.align === 'right' ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
        .join(GAP)
        .trimEnd(),
    )
    .map((line) => line + '\n')
    .join('');
}

/** `name:  value` lines; entries whose value is null are left out. */
export function details(entries: readonly (readonly [string, string | null])[]): string {
  const shown = entries.filter((entry): entry is readonly [string, string] => entry[1] !== null);
  const width = Math.max(0, ...shown.map(([name]) => name.length + 1));
  return shown.map(([name, value]) => `${`${name}:`.padEnd(width)}${GAP}${printable(value)}\n`).join('');
}

/** What comes from a guest must not command the terminal: no control characters, so no escape sequences. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

/** How long something lasts, to two units: 45 s, 5 min 12 s, 3 h 20 min, 12 d 4 h */
export function span(value: number): string {
  const seconds = Math.floor(value / 1000);
  const units = [
    [86_400, 'd'],
    [3600, 'h'],
    [60, 'min'],
    [1, 's'],
  ] as const;
  const first = units.findIndex(([size]) => seconds >= size);
  if (first === -1) return '0 s';
  let rest = seconds;
  return units
    .slice(first, first + 2)
    .map(([size, unit]) => {
      const count = Math.floor(rest / size);
      rest -= count * size;
      return count === 0 ? '' : `${count} ${unit}`;
    })
    .join(' ')
    .trimEnd();
}

/** Local time to the second, or to the millisecond. */
export function time(iso: string, digits: 0 | 3 = 0): string {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return iso;
  const local = new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString();
  return `${local.slice(0, 10)} ${local.slice(11, digits === 3 ? 23 : 19)}`;
}
