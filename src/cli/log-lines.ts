/** The log's JSON lines as short lines for people who watch the daemon: `12:34:56.789 warn  message vm=web`. */
import { printable } from './table.js';

const LEVELS: Record<number, string> = { 10: 'trace', 20: 'debug', 30: 'info', 40: 'warn', 50: 'error', 60: 'fatal' };

export function logLine(json: string): string {
  const { time, level, msg, err, ...rest } = JSON.parse(json) as {
    time: number;
    level: number;
    msg?: string;
    err?: { message?: string };
  };
  const at = new Date(time - new Date(time).getTimezoneOffset() * 60_000).toISOString().slice(11, 23);
  const fields = Object.entries(rest).map(
    ([name, value]) => ` ${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  const cause = err?.message === undefined || err.message === msg ? '' : `: ${err.message}`;
  return `${at} ${(LEVELS[level] ?? String(level)).padEnd(5)} ${printable(`${msg ?? ''}${cause}${fields.join('')}`)}\n`;
}

/** A destination for pino that writes such lines. */
export function logLines(out: Pick<NodeJS.WritableStream, 'write'>): { write(json: string): void } {
  return { write: (json) => void out.write(logLine(json)) };
}
