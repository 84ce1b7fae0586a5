/** `shadowvm vm console`: the terminal becomes the guest's. */
import type { Session } from './session.js';

/** Ctrl-], as telnet and virsh have it: a key that no guest needs. */
const LEAVE_BYTE = 0x1d;

/** Resolves when the user leaves or the console ends. */
export async function attachConsole(session: Session, name: string): Promise<void> {
  const line = await session.client.openConsole(name);
  const { stdin, stdout } = process;
  const isTerminal = stdin.isTTY === true;
  session.remark(`connected to ${name}; ${isTerminal ? 'leave with Ctrl-]' : 'end with Ctrl-C'}`);

  const restore = () => {
    if (isTerminal) stdin.setRawMode(false);
  };
  // A terminal left raw is unusable, so it is given back on every way out.
  process.once('exit', restore);
  const leave = () => line.destroy();
  process.once('SIGTERM', leave).once('SIGHUP', leave).once('SIGINT', leave);

  let typed = false;
  const send = (chunk: Buffer) => {
    const end = isTerminal ? chunk.indexOf(LEAVE_BYTE) : -1;
    if (end === -1) {
      typed = true;
      // A guest that takes nothing stops us reading, and so the terminal taking.
      if (!line.write(chunk)) {
        stdin.pause();
        line.once('drain', () => stdin.resume());
      }
      return;
    }
    if (end > 0) line.write(chunk.subarray(0, end));
    line.destroy();
  };
  try {
    if (isTerminal) {
      stdin.setRawMode(true);
      if (!typed) line.write('\r'); // A login prompt that was printed long ago comes again.
    }
    stdin.on('data', send);
    line.pipe(stdout, { end: false });
    await new Promise<void>((resolve, reject) => {
      line.once('close', resolve);
      line.once('end', () => line.destroy());
      line.once('error', reject);
    });
  } finally {
    stdin.off('data', send);
    stdin.pause();
    stdin.unref?.();
    restore();
    process.off('exit', restore).off('SIGTERM', leave).off('SIGHUP', leave).off('SIGINT', leave);
  }
  session.remark(`${isTerminal ? '\r\n' : ''}disconnected from ${name}`);
}
