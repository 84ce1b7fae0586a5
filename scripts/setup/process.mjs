// Runs the commands of the setup: their output goes to a log file, and a failure shows both ends of that file.
import { spawn } from 'node:child_process';
import { appendFileSync, closeSync, openSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';

const HEAD_LINES = 10;
const TAIL_LINES = 25;

/** A failure that the user can do something about: shown as its message alone, without a stack. */
export class SetupError extends Error {}

/** @type {Set<import('node:child_process').ChildProcess>} */
const children = new Set();
/** @type {NodeJS.Signals | null} */
let stopping = null;
/** @type {number | null} */
let lockFd = null;

/**
 * Gives all later commands the descriptor of a lock, as their descriptor 3: when this process is killed outright, the
 * compiler that it leaves behind holds the lock until it too has ended, and does not write beside the next setup's.
 * @param {number} fd
 */
export function shareLock(fd) {
  lockFd = fd;
}

/**
 * Makes SIGINT, SIGTERM and SIGHUP end the running command, with all that it started, before this process ends.
 * The commands run in process groups of their own: otherwise Ctrl-C would reach them, but `kill` of this process would
 * leave npm or apt-get running.
 */
export function stopChildrenOnSignals() {
  for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
    process.on(signal, () => {
      // The second signal is from someone who does not want to wait for a clean end.
      const kill = stopping === null ? 'SIGTERM' : 'SIGKILL';
      stopping = signal;
      if (children.size === 0) exitAsKilledBy(signal);
      for (const child of children) {
        try {
          process.kill(-(/** @type {number} */ (child.pid)), kill);
        } catch (error) {
          // Ended between its last message to us and now.
          if (/** @type {NodeJS.ErrnoException} */ (error).code !== 'ESRCH') throw error;
        }
      }
    });
  }
}

/**
 * @param {NodeJS.Signals} signal
 * @returns {never}
 */
function exitAsKilledBy(signal) {
  process.stderr.write(`\nsetup: stopped by ${signal}; run it again to continue\n`);
  process.exit(128 + constants.signals[signal]);
}

/**
 * @typedef {object} CommandOptions
 * @property {string} [cwd]
 * @property {Record<string, string>} [env] added to this process's
 * @property {string} [name] what messages call the command
 * @property {boolean} [withoutLock] for commands that may start services, which would hold the lock for ever
 */

/**
 * Runs a command to its end, output appended to `log`. Resolves to its exit code (127 when it does not exist).
 * @param {string} log
 * @param {string} command
 * @param {string[]} args
 * @param {CommandOptions} [options]
 * @returns {Promise<number>}
 */
export async function exitCode(log, command, args, options = {}) {
  appendFileSync(log, `$ ${[command, ...args].join(' ')}\n`);
  const output = openSync(log, 'a');
  try {
    const child = spawn(command, args, {
      cwd: options.cwd,
      // C messages: some of them are read by us, all of them go into bug reports.
      env: { ...process.env, LC_ALL: 'C.UTF-8', ...options.env },
      stdio: ['ignore', output, output, ...(lockFd === null || options.withoutLock ? [] : [lockFd])],
      detached: true,
    });
    children.add(child);
    /** @type {number} */
    const code = await new Promise((resolve) => {
      child.on('error', (error) => {
        appendFileSync(log, `${command}: ${error.message}\n`);
        resolve(127);
      });
      child.on('exit', (status, signal) => resolve(status ?? 128 + constants.signals[signal ?? 'SIGKILL']));
    });
    children.delete(child);
    if (stopping !== null) exitAsKilledBy(stopping);
    return code;
  } finally {
    closeSync(output);
  }
}

/**
 * As exitCode, but any exit code other than 0 throws a SetupError with the output, shortened.
 * @param {string} log
 * @param {string} command
 * @param {string[]} args
 * @param {CommandOptions} [options]
 */
export async function run(log, command, args, options = {}) {
  const code = await exitCode(log, command, args, options);
  if (code !== 0) throw failure(log, options.name ?? `${command} ${args[0] ?? ''}`.trim(), code);
}

/**
 * @param {string} log
 * @param {string} what
 * @param {number} code
 */
export function failure(log, what, code) {
  return new SetupError(
    `${what} failed with exit code ${code}:\n\n${excerpt(readFileSync(log, 'utf8'))}\n\nAll output: ${log}`,
  );
}

/**
 * A command's output, shortened to what a terminal shows at once. Both ends: compilers and npm put the cause first, make
 * and apt-get put it last.
 * @param {string} text
 */
export function excerpt(text) {
  const lines = text.trimEnd().split('\n');
  const left = lines.length - HEAD_LINES - TAIL_LINES;
  // Leaving out a line or two would take as much room as showing them.
  if (left <= 2) return lines.join('\n');
  return [...lines.slice(0, HEAD_LINES), `... ${left} lines left out ...`, ...lines.slice(-TAIL_LINES)].join('\n');
}
