/**
 * The life of the daemon: lock, log, events, manager, API, in this order, and back in the other. Whatever ends it, a
 * signal, an error while it starts or a defect, goes the same way out, so there is one way to leave nothing behind.
 */
import { mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Logger, multistream, pino } from 'pino';
import { serveApi } from '../api/server.js';
import { type ShadowVmError, toShadowVmError } from '../errors.js';
import type { ForecastSettings } from '../forecast/outlook.js';
import { EventLog } from '../manager/events.js';
import type { AllocationSettings } from '../manager/host.js';
import { openManager } from '../manager/manager.js';
import { RotatingFile } from '../manager/rotating-file.js';
import { fileError, StateDir } from '../manager/state-dir.js';
import { logLines } from './log-lines.js';
import { VERSION } from './package.js';
import { exitWhenReaderLeaves } from './session.js';

export interface DaemonOptions {
  statePath: string;
  imagesDir: string;
  bridge?: string;
  subnet?: string;
  forecasts: ForecastSettings;
  allocation: Partial<AllocationSettings>;
  letCpusSleep: boolean;
  logLevel: string;
  logToStderr: boolean;
  json: boolean;
}

/**
 * npm and a terminal both pass on one Ctrl-C, so two signals this close are one wish. Later ones are a second wish: to
 * end now, whatever is left behind.
 */
const SECOND_SIGNAL_MS = 1000;
/** After a defect nothing is certain, not even that closing comes to an end. */
const CLOSE_AFTER_CRASH_MS = 20_000;

/** Runs until a signal, and gives the exit code. @throws what kept it from starting, after taking back what was made */
export async function runDaemon(options: DaemonOptions): Promise<number> {
  process.umask(0o077);
  // A daemon outlives the terminal that it was started from.
  for (const output of [process.stdout, process.stderr])
    output.off('error', exitWhenReaderLeaves).on('error', () => {});
  const undo: Undo = [];
  const ending = new Ending();
  try {
    await startAndWait(options, ending, undo);
  } finally {
    await unwind(undo, (error) => ending.failed(toShadowVmError(error, 'end cleanly')));
    ending.dispose();
  }
  return ending.exitCode;
}

type Undo = (() => void | Promise<void>)[];

async function startAndWait(options: DaemonOptions, ending: Ending, undo: Undo): Promise<void> {
  const startedAt = new Date().toISOString();
  const stateDir = StateDir.open(options.statePath);
  undo.push(() => stateDir.close());
  const imagesDir = resolve(options.imagesDir);
  try {
    mkdirSync(imagesDir, { recursive: true });
  } catch (error) {
    throw fileError(error, 'make the folder of the images', imagesDir);
  }

  const logFile = await RotatingFile.open(stateDir.logPath, {
    onError: (error) => process.stderr.write(`shadowvm: the log can not be written: ${error.message}\n`),
  }).catch((error: unknown) => {
    throw fileError(error, 'open the log', stateDir.logPath);
  });
  undo.push(() => logFile.close());
  const level = options.logLevel as pino.Level;
  const log = pino(
    { level, base: null },
    multistream([
      { level, stream: logFile },
      ...(options.logToStderr ? [{ level, stream: logLines(process.stderr) }] : []),
    ]),
  );
  ending.log = log;
  undo.push(() => log.info('daemon has ended'));
  const events = await EventLog.open(stateDir.eventsPath, { log });
  undo.push(() => events.close());
  ending.onCrash = (error) => {
    events.append('error', 'daemon.crashed', null, `the daemon ends because of a defect: ${String(error)}`);
  };
  ending.onHardExit = () => {
    events.flushSync();
    logFile.flushSync();
  };

  log.info({ version: VERSION, pid: process.pid, state: stateDir.root, images: imagesDir }, 'daemon starts');
  if (ending.begun) return;
  const manager = await openManager({
    stateDir,
    imagesDir,
    events,
    log,
    forecasts: options.forecasts,
    allocation: options.allocation,
    letCpusSleep: options.letCpusSleep,
    ...(options.bridge === undefined ? {} : { bridge: options.bridge }),
    ...(options.subnet === undefined ? {} : { subnet: options.subnet }),
  });
  const closeManager = () => manager.close();
  undo.push(closeManager);

  if (ending.begun) return;
  const api = await serveApi({
    socketPath: stateDir.socketPath,
    manager,
    log,
    about: { version: VERSION, startedAt, stateDir: stateDir.root, imagesDir },
  });
  // The API goes last, against the order: whoever waits for an answer can see how the end goes.
  undo.pop();
  undo.push(
    () => api.close(),
    closeManager,
    () => api.refuseChanges(),
  );

  events.append('info', 'daemon.ready', null, `the daemon is ready on ${stateDir.socketPath}`, { pid: process.pid });
  process.stdout.write(
    options.json
      ? JSON.stringify({ ready: { socket: stateDir.socketPath, pid: process.pid } }) + '\n'
      : `shadowvm: ready on ${stateDir.socketPath}\n`,
  );
  const why = await ending.promise;
  log.info({ why }, 'daemon ends');
  events.append('info', 'daemon.stopping', null, `the daemon ends: ${why}`);
  if (!options.json) process.stderr.write('shadowvm: stopping\n');
}

/** Every step back is made, also when one before it failed: a bridge must not stay because a file did. */
async function unwind(undo: Undo, onError: (error: unknown) => void): Promise<void> {
  for (const step of undo.reverse()) {
    try {
      await step();
    } catch (error) {
      onError(error);
    }
  }
}

/** What makes the daemon end: a signal, or a defect that nobody caught. */
class Ending {
  exitCode = 0;
  log: Pick<Logger, 'error' | 'fatal'> | undefined;
  onCrash: (error: unknown) => void = () => {};
  onHardExit: () => void = () => {};
  readonly promise: Promise<string>;
  #resolve!: (why: string) => void;
  #begunAtMs: number | undefined;
  readonly #signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

  constructor() {
    this.promise = new Promise((resolve) => {
      this.#resolve = resolve;
    });
    for (const signal of this.#signals) process.on(signal, this.#onSignal);
    process.on('uncaughtException', this.#onDefect);
    process.on('unhandledRejection', this.#onRejection);
  }

  get begun(): boolean {
    return this.#begunAtMs !== undefined;
  }

  /** A step of the way out went wrong; the others are made all the same. */
  failed(error: ShadowVmError): void {
    this.exitCode = 1;
    this.log?.error({ err: error }, 'a step of ending failed');
    process.stderr.write(`shadowvm: ${error.message} [${error.code}]\n`);
  }

  dispose(): void {
    for (const signal of this.#signals) process.off(signal, this.#onSignal);
    process.off('uncaughtException', this.#onDefect);
    process.off('unhandledRejection', this.#onRejection);
  }

  #begin(why: string): void {
    this.#begunAtMs ??= performance.now();
    this.#resolve(why);
  }

  readonly #onSignal = (signal: NodeJS.Signals): void => {
    if (this.#begunAtMs === undefined) this.#begin(signal);
    else if (performance.now() - this.#begunAtMs > SECOND_SIGNAL_MS) this.#exitNow('a second signal');
  };

  readonly #onDefect = (error: unknown): void => this.#crash(error, 'an exception that nobody caught');
  readonly #onRejection = (error: unknown): void => this.#crash(error, 'a promise that nobody waited for');

  #crash(error: unknown, origin: string): void {
    this.log?.fatal({ err: error }, `defect: ${origin}`);
    this.onCrash(error);
    process.stderr.write(`shadowvm: ${origin}: ${error instanceof Error ? error.stack : String(error)}\n`);
    if (this.exitCode === 0)
      setTimeout(() => this.#exitNow('closing took too long after a defect'), CLOSE_AFTER_CRASH_MS).unref();
    this.exitCode = 1;
    this.#begin('a defect');
  }

  #exitNow(why: string): never {
    this.log?.error(`${why}: the daemon exits without taking back what was made`);
    process.stderr.write(`shadowvm: ${why}: exiting at once; the next daemon on this state cleans up\n`);
    this.onHardExit();
    process.exit(1);
  }
}
