/** A series drawn with characters: one column for a part of the time, as high as its mean; its highest value is a dot. */
export interface ChartPoint {
  atMs: number;
  mean: number;
  max: number;
}

export interface ChartOptions {
  fromMs: number;
  toMs: number;
  /** Of the drawing, without its scale. */
  columns: number;
  rows: number;
  /** The scale's figures. */
  label: (value: number) => string;
}

const EIGHTHS = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const DOT = '·';

/** Lines with a scale on the left, each ending in a line feed. Where nothing was measured, nothing is drawn. */
export function chart(points: readonly ChartPoint[], { fromMs, toMs, columns, rows, label }: ChartOptions): string {
  const cells = Array.from({ length: columns }, () => ({ sum: 0, count: 0, max: 0 }));
  for (const { atMs, mean, max } of points) {
    const column = Math.floor(((atMs - fromMs) / (toMs - fromMs)) * columns);
    const cell = cells[Math.max(0, Math.min(columns - 1, column))]!;
    cell.sum += mean;
    cell.count++;
    cell.max = Math.max(cell.max, max);
  }
  const top = Math.max(0, ...cells.map((cell) => cell.max));
  // All zeros are a line at the bottom and not a division by zero.
  const height = (value: number) => (top > 0 ? (value / top) * rows : 0);
  const lines = Array.from({ length: rows }, (_, i) => {
    const bottom = rows - 1 - i;
    return cells.map(({ sum, count, max }) => {
      if (count === 0) return ' ';
      const eighths = Math.max(bottom === 0 ? 1 : 0, Math.round((height(sum / count) - bottom) * 8));
      if (eighths > 0) return EIGHTHS[Math.min(8, eighths)]!;
      return Math.max(0, Math.ceil(height(max)) - 1) === bottom ? DOT : ' ';
    });
  });
  const scale = [label(top), ...Array<string>(rows - 1).fill('')];
  if (rows > 1) scale[rows - 1] = label(0);
  const width = Math.max(...scale.map((text) => text.length));
  return lines.map((line, i) => `${scale[i]!.padStart(width)} │${line.join('').trimEnd()}\n`).join('');
}
