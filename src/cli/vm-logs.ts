/** `shadowvm vm logs` */
import { setTimeout as sleep } from 'node:timers/promises';
import { LOG_BYTES_MAX } from '../api/schemas.js';
import { usageError } from './parse.js';
import type { Session } from './session.js';

const BYTES_DEFAULT = 64 * 1024;
/** QEMU says something once in a blue moon. */
const POLL_MS = 500;

export async function printLog(
  session: Session,
  name: string,
  options: { qemu?: boolean; bytes?: number; follow?: boolean },
): Promise<void> {
  const bytes = options.bytes ?? BYTES_DEFAULT;
  if (bytes < 1 || bytes > LOG_BYTES_MAX)
    throw usageError(`${bytes} bytes of log are asked for`, 'Ask for 1 to 1M with --bytes');
  const which = options.qemu === true ? 'qemu' : 'console';
  if (options.follow !== true) {
    const text = await session.client.readLog(name, which, bytes);
    session.result({ which, text }, text === '' || text.endsWith('\n') ? text : text + '\n');
    return;
  }
  if (session.json) throw usageError('--follow prints text as it comes, which is no JSON', 'Leave out --json');
  await (which === 'console' ? followConsole(session, name, bytes) : followByAsking(session, name, bytes));
}

/**
 * Listens before it reads, so that nothing falls between the two. What was both read and heard is printed once: it is
 * the longest end of what was read with which what was heard begins.
 */
async function followConsole(session: Session, name: string, bytes: number): Promise<void> {
  const line = await session.client.openConsole(name);
  try {
    let heard = '';
    const hear = (chunk: string) => {
      heard += chunk;
    };
    line.setEncoding('utf8');
    line.on('data', hear);
    const past = await session.client.readLog(name, 'console', bytes);
    line.off('data', hear);
    process.stdout.write(past + heard.slice(overlap(past, heard)));
    for await (const chunk of line as AsyncIterable<string>)
      if (!process.stdout.write(chunk)) await new Promise((resolve) => process.stdout.once('drain', resolve));
  } finally {
    line.destroy();
  }
}

async function followByAsking(session: Session, name: string, bytes: number): Promise<void> {
  let past = await session.client.readLog(name, 'qemu', bytes);
  process.stdout.write(past);
  for (;;) {
    await sleep(POLL_MS);
    const now = await session.client.readLog(name, 'qemu', LOG_BYTES_MAX);
    process.stdout.write(now.slice(now.startsWith(past) ? past.length : after(past, now)));
    past = now;
  }
}

/** Where in `now`, which may begin earlier or later than `past`, the end of `past` is over. */
function after(past: string, now: string): number {
  const at = past === '' ? 0 : now.lastIndexOf(past);
  return at === -1 ? overlap(past, now) : at + past.length;
}

/** Length of the longest end of `first` that is a beginning of `second`. */
export function overlap(first: string, second: string): number {
  for (let length = Math.min(first.length, second.length); length > 0; length--)
    if (first.endsWith(second.slice(0, length))) return length;
  return 0;
}
