/** `shadowvm vm logs` */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '../api/client.js';
import { LOG_BYTES_MAX } from '../api/schemas.js';
import { usageError } from './parse.js';
import type { Session } from './session.js';

const BYTES_DEFAULT = 64 * 1024;
const POLL_MS = 200;

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
    const part = await session.client.readLog(name, which, { maxBytes: bytes });
    session.result({ which, ...part }, part.text === '' || part.text.endsWith('\n') ? part.text : part.text + '\n');
    return;
  }
  if (session.json) throw usageError('--follow prints text as it comes, which is no JSON', 'Leave out --json');
  await follow(session, name, which, bytes);
}

/** Ends when the VM has. It is asked for and not listened to: the log goes on through every promotion by itself. */
async function follow(session: Session, name: string, which: 'console' | 'qemu', bytes: number): Promise<void> {
  const { client } = session;
  let fromByte: number | undefined;
  for (let ended = false; ; ) {
    const { text, nextByte } = await client.readLog(
      name,
      which,
      fromByte === undefined ? { maxBytes: bytes } : { maxBytes: LOG_BYTES_MAX, fromByte },
    );
    fromByte = nextByte;
    if (text !== '') {
      // Waited for: what a slow reader of ours does not take must not pile up here.
      if (!process.stdout.write(text)) await new Promise((resolve) => process.stdout.once('drain', resolve));
      continue;
    }
    if (ended) break;
    // Asked before the last read, which so finds all that there will ever be.
    ended = await hasEnded(client, name);
    if (!ended) await sleep(POLL_MS);
  }
  session.remark(`${name} has ended`);
}

async function hasEnded(client: Client, name: string): Promise<boolean> {
  const { state } = await client.showVm(name);
  return state === 'stopped' || state === 'failed';
}
