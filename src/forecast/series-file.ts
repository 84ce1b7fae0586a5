/** Reads one usage trace out of a CSV file, with a remark for each line that is not taken as it stands. */
import { readFile } from 'node:fs/promises';
import { ShadowVmError } from '../errors.js';
import { isUsage } from '../monitor/usage-value.js';

/** Names under which traces keep their time: seconds, or a date that JavaScript reads. */
const TIME_COLUMNS = ['t_seconds', 'timestamp', 'time', 'datetime', 'date', 't', 'ts'];
const REMARKS_MAX = 20;
/** A longer gap is a clock that was set: what is known of the series is not older for it than two weeks of samples. */
const GAP_SAMPLES_MAX = 4032;

export interface Row {
  /** As the file has it; NaN where it has no usable number. */
  value: number;
  /** Samples that are missing before this row. */
  gap: number;
  /** The row is shown but not learnt from: its time is not after the one before. */
  stale: boolean;
}

export interface Series {
  rows: Row[];
  /** What was not taken as it stands, naming the line; the first {@link REMARKS_MAX}. */
  remarks: string[];
}

interface Columns {
  value: number;
  /** −1 without one. */
  time: number;
}

/** @throws INVALID_ARGUMENT naming the line; NOT_FOUND */
export async function readSeries(path: string, column: string, intervalS: number): Promise<Series> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new ShadowVmError('NOT_FOUND', {
      attempted: 'read the trace',
      subject: path,
      reason: (cause as Error).message,
      remedy: 'Name a CSV file with a heading line',
      cause,
    });
  }
  return parseSeries(text, path, column, intervalS);
}

/** @throws INVALID_ARGUMENT naming the line */
export function parseSeries(text: string, path: string, column: string, intervalS: number): Series {
  const refuse = (line: number, reason: string, remedy: string): ShadowVmError =>
    new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'read the trace',
      subject: `${path} line ${line}`,
      reason,
      remedy,
    });
  const lines = text.replace(/^\uFEFF/, '').split(/\r?\n/);
  while (lines.length > 0 && lines.at(-1)!.trim() === '') lines.pop();
  const heading = cells(lines[0] ?? '');
  const columns = findColumns(heading, column);
  if (columns.value === -1)
    throw refuse(1, `there is no column ${JSON.stringify(column)}`, `The columns are: ${heading.join(', ') || 'none'}`);

  const remarks: string[] = [];
  const remark = (line: number, what: string) => {
    if (remarks.length < REMARKS_MAX) remarks.push(`line ${line}: ${what}`);
  };
  const parsed = lines.slice(1).map((line, i) => {
    const row = cells(line);
    if (row.length !== heading.length)
      throw refuse(
        i + 2,
        `it has ${row.length} cells and the heading has ${heading.length}`,
        'Mend or remove the line',
      );
    return { value: readValue(row[columns.value]!, i + 2, remark, refuse), time: readTime(row[columns.time]) };
  });
  const steps = usableSteps(
    parsed.map(({ time }) => time),
    intervalS,
    remark,
  );
  return {
    rows: parsed.map(({ value }, i) => ({
      value,
      gap: Math.min(GAP_SAMPLES_MAX, Math.max(0, steps[i]! - 1)),
      stale: steps[i]! < 1,
    })),
    remarks,
  };
}

function cells(line: string): string[] {
  return line.split(',').map((cell) => cell.trim().replace(/^"(.*)"$/, '$1'));
}

function findColumns(heading: string[], column: string): Columns {
  const value = heading.indexOf(column);
  const time = heading.findIndex((name, i) => i !== value && TIME_COLUMNS.includes(name.toLowerCase()));
  return { value, time };
}

function readValue(
  cell: string,
  line: number,
  remark: (line: number, what: string) => void,
  refuse: (line: number, reason: string, remedy: string) => ShadowVmError,
): number {
  if (cell === '' || /^(nan|null|none|na)$/i.test(cell)) {
    remark(line, 'no value: taken as a gap');
    return Number.NaN;
  }
  const value = Number(cell);
  if (Number.isNaN(value))
    throw refuse(line, `${JSON.stringify(cell)} is not a number`, 'Leave the cell empty for a gap');
  if (!isUsage(value)) {
    remark(line, `${cell} can not be a usage: taken as a gap`);
    return Number.NaN;
  }
  return value;
}

/** Seconds; NaN without a time. A date without zone is taken as UTC, since local time jumps twice a year. */
function readTime(cell: string | undefined): number {
  if (cell === undefined || cell === '') return Number.NaN;
  const number = Number(cell);
  if (!Number.isNaN(number)) return number;
  const iso = cell.replace(' ', 'T');
  return Date.parse(/(Z|[+-]\d\d:?\d\d)$/.test(iso) ? iso : `${iso}Z`) / 1000;
}

/**
 * How many samples each row is after the one before: 1 is normal, more is a gap, less is a time that did not go on.
 * When the times do not have the interval that was asked for, they are in another unit or irregular: then they are not
 * used, and rows count as samples.
 */
function usableSteps(times: number[], intervalS: number, remark: (line: number, what: string) => void): number[] {
  const deltas = times.slice(1).map((time, i) => time - times[i]!);
  const regular = deltas.filter((delta) => Math.abs(delta - intervalS) <= 0.1 * intervalS).length;
  if (times.length === 0 || regular < 0.5 * deltas.length) return times.map(() => 1);
  let newest = times[0]!;
  return times.map((time, i) => {
    if (i === 0 || Number.isNaN(time)) return 1;
    const steps = Math.round((time - newest) / intervalS);
    if (steps < 1) {
      remark(i + 2, 'its time is not after that of the line before: not learnt from');
      return 0;
    }
    newest = time;
    if (steps > 1) remark(i + 2, `${steps - 1} samples are missing before it`);
    return steps;
  });
}
