/** A real manager process with a state directory of its own, which leaves nothing behind. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from '../src/api/client.js';
import type { Event } from '../src/vm/view.js';
import { IMAGES_DIR, SHADOWVM } from './checkout.js';
import { onInterrupt } from './interrupt.js';
import { statePrefix } from './killed-runs.js';

const START_TIMEOUT_MS = 30_000;

export interface DaemonOptions {
  bridge?: string;
  subnet?: string;
  env?: NodeJS.ProcessEnv;
  /** More options of the command line. */
  argv?: string[];
  /** Of a daemon that was killed. Default: a new one. */
  stateDir?: string;
}

export class Daemon {
  private ended = false;

  private constructor(
    readonly stateDir: string,
    readonly client: Client,
    private readonly child: ChildProcess,
    private readonly exit: Promise<number | null>,
  ) {
    onInterrupt(() => this.stop());
    const endWithUs = () => child.kill('SIGTERM');
    process.once('exit', endWithUs);
    void exit.then(() => process.off('exit', endWithUs));
  }

  /** Resolves when the API answers. */
  static async start(options: DaemonOptions = {}): Promise<Daemon> {
    const stateDir = options.stateDir ?? mkdtempSync(statePrefix());
    const argv = [SHADOWVM, 'daemon', '--state', stateDir, '--images', IMAGES_DIR];
    if (options.bridge !== undefined) argv.push('--bridge', options.bridge);
    if (options.subnet !== undefined) argv.push('--subnet', options.subnet);
    argv.push(...(options.argv ?? []));
    const child = spawn(process.execPath, argv, {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: options.env ?? process.env,
      // A process group of its own: Ctrl-C is this process's, which then ends the daemon as an operator would.
      detached: true,
    });
    let words = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      words = (words + chunk.toString()).slice(-4096);
    });
    const exit = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
    const daemon = new Daemon(stateDir, new Client(join(stateDir, 'shadowvm.sock')), child, exit);
    const until = performance.now() + START_TIMEOUT_MS;
    for (;;) {
      try {
        await daemon.client.health();
        return daemon;
      } catch (error) {
        if (child.exitCode !== null || child.signalCode !== null || performance.now() > until) {
          // A state that was there before is its owner's.
          await (options.stateDir === undefined ? daemon.stop() : daemon.kill());
          throw new Error(`the daemon did not start: ${words.trim() || String(error)}`);
        }
        await sleep(20);
      }
    }
  }

  /** Resolves with the first event after `since` that matches. @throws when it does not come in time, with what came instead */
  async waitEvent(
    what: string,
    matches: (event: Event) => boolean,
    options: { since?: number; timeoutMs?: number } = {},
  ) {
    const timeoutMs = options.timeoutMs ?? 60_000;
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), timeoutMs);
    const seen: string[] = [];
    try {
      for await (const event of this.client.followEvents({ since: options.since ?? 0, signal: abort.signal })) {
        if (matches(event)) return event;
        seen.push(event.type);
      }
    } catch (error) {
      if (!abort.signal.aborted) throw error;
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
    throw new Error(`${what} did not come within ${timeoutMs} ms; events: ${seen.slice(-12).join(', ')}`);
  }

  log(): string {
    try {
      return readFileSync(join(this.stateDir, 'log', 'manager.log'), 'utf8');
    } catch {
      return '';
    }
  }

  /** Ends the manager as a crash would; its state and its VMs stay. */
  async kill(): Promise<void> {
    this.ended = true;
    this.child.kill('SIGKILL');
    await this.exit;
  }

  /** Ends the manager as an operator would, and takes its state away. Idempotent. */
  async stop(): Promise<void> {
    if (this.ended) return;
    this.ended = true;
    this.child.kill('SIGTERM');
    await this.exit;
    rmSync(this.stateDir, { recursive: true, force: true });
  }
}

export const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
/** CLOCK_MONOTONIC in ms: comparable with the manager's times. */
export const nowMs = () => Number(process.hrtime.bigint()) / 1e6;
