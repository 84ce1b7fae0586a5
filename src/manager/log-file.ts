/** Reads a growing log of bytes in whole characters of UTF-8, from where an earlier read ended. */
import { open } from 'node:fs/promises';
import type { LogPart, LogText } from './port.js';

/** A file that does not exist is an empty log: its VM never got so far. A `fromByte` behind its end begins anew. */
export async function readLogPart(path: string, { maxBytes, fromByte }: LogPart): Promise<LogText> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { text: '', nextByte: 0 };
    throw error;
  }
  try {
    const { size } = await file.stat();
    // A log that became shorter is the log of another VM of this name.
    const from = fromByte === undefined ? Math.max(0, size - maxBytes) : fromByte <= size ? fromByte : 0;
    const wanted = Math.min(maxBytes, size - from);
    const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(wanted), position: from });
    const bytes = buffer.subarray(0, bytesRead);
    const begin = fromByte === undefined && from > 0 ? bytesOfCutHead(bytes) : 0;
    const end = bytesRead - bytesOfCutTail(bytes.subarray(begin));
    return { text: bytes.toString('utf8', begin, end), nextByte: from + end };
  } finally {
    await file.close();
  }
}

const isContinuation = (byte: number): boolean => (byte & 0xc0) === 0x80;

/** How many bytes of a character begun earlier stand at the beginning: at most three, or it is no UTF-8. */
function bytesOfCutHead(bytes: Uint8Array): number {
  let count = 0;
  while (count < 3 && count < bytes.length && isContinuation(bytes[count]!)) count++;
  return count;
}

/** How many bytes at the end are the beginning of a character whose rest is missing. */
function bytesOfCutTail(bytes: Uint8Array): number {
  for (let count = 1; count <= 3 && count <= bytes.length; count++) {
    const byte = bytes[bytes.length - count]!;
    if (isContinuation(byte)) continue;
    const whole = byte >= 0xf5 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 1;
    // All that was asked for is one piece of a character: it is given as it is, or no reader would get on.
    return whole > count && count < bytes.length ? count : 0;
  }
  return 0;
}
