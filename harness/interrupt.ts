/** Ctrl-C and SIGTERM: what was opened is closed, newest first, and then the process ends. */
import { messageOf } from '../src/errors.js';

const closers = new Set<() => Promise<void> | void>();
let installed = false;

/** @returns a function that takes it back: what is closed already need not be closed again */
export function onInterrupt(close: () => Promise<void> | void): () => void {
  closers.add(close);
  if (!installed) {
    installed = true;
    for (const [signal, code] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
    ] as const)
      process.once(signal, () => void closeAll().finally(() => process.exit(code)));
  }
  return () => closers.delete(close);
}

async function closeAll(): Promise<void> {
  for (const close of [...closers].reverse())
    try {
      await close();
    } catch (error) {
      console.error(`closing at the end: ${messageOf(error)}`);
    }
}
