// One setup at a time in a checkout: a second one waits, and then finds everything done.
import { spawnSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { exitCode, SetupError, shareLock } from './process.mjs';

/**
 * Takes the lock for as long as this process, or a command that it started, lives. It is flock(2)'s: the kernel drops it with the process, however
 * that ends, where a lock folder or a pid file needs guesses about which lock is stale. Node has no flock, and the
 * addon that has is not built yet; but the lock belongs to the open file, so flock(1), which every Debian has, can take
 * it on a descriptor that it inherits from us.
 * @param {string} file
 * @param {string} log
 * @param {() => void} onWait called once when another process holds the lock
 */
export async function takeLock(file, log, onWait) {
  const fd = openSync(file, 'a'); // never closed
  shareLock(fd);
  const attempt = spawnSync('flock', ['--nonblock', '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
  if (attempt.status === 0) return;
  if (attempt.error !== undefined) throw new SetupError(`flock cannot be run: ${attempt.error.message}`);
  onWait();
  const code = await exitCode(log, 'flock', ['3']);
  if (code !== 0) throw new SetupError(`${file} cannot be locked (exit code ${code} of flock)`);
}
