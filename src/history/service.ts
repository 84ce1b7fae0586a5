/**
 * The manager's end of the history: what it is told is handed to a thread of its own, and what it is asked is answered by
 * that. A thread that falls behind loses seconds, which is counted and told; one that dies is started again.
 */
import { Worker } from 'node:worker_threads';
import { type ErrorBody, type ErrorDetail, messageOf, ShadowVmError } from '../errors.js';
import type { Outlook } from '../forecast/outlook.js';
import type { Archive, ArchiveOptions, VmSecond } from './archive.js';

/** What crosses between the threads: a method of the archive by its name, and what came of it. */
export interface Call {
  id: number;
  method: keyof Archive;
  args: unknown[];
}
/** What the thread tells unasked. */
export interface Told {
  vm: string;
  outlooks: Outlook[];
}
/** What the thread begins with. */
export type Setup = Pick<ArchiveOptions, 'path' | 'forecasts'>;
export type Answer = { id: number; result: unknown } | { id: number; error: ErrorBody };

type Arguments<M extends keyof Archive> = Parameters<Archive[M]>;
type Result<M extends keyof Archive> = ReturnType<Archive[M]>;

export interface HistoryServiceOptions extends ArchiveOptions {
  /** It can not be kept: the file is refused, or the thread has died. `retryMs`: when it is tried again; null: never. */
  onTrouble: (error: ShadowVmError, retryMs: number | null) => void;
  /** So many seconds of all VMs were lost, as the thread did not keep up. Told again once it has. */
  onLoss: (seconds: number) => void;
}

/** Seconds that may wait for the thread, and questions that may. */
const WAITING_SECONDS_MAX = 30;
const WAITING_CALLS_MAX = 64;
const RESTART_MS = 5000;

// Tests run the sources, and a thread can only run what was built of them.
const WORKER = new URL(
  import.meta.url.endsWith('.ts') ? '../../dist/src/history/worker.js' : './worker.js',
  import.meta.url,
);

export class HistoryService {
  private worker: Worker | null = null;
  private readonly calls = new Map<
    number,
    { resolve: (value: never) => void; reject: (error: ShadowVmError) => void }
  >();
  private nextId = 1;
  private waitingSeconds = 0;
  private lostSeconds = 0;
  private restart: NodeJS.Timeout | undefined;
  private closed = false;
  /** Why there is no history. */
  private refused: ShadowVmError | null = null;

  constructor(private readonly options: HistoryServiceOptions) {
    this.start();
  }

  /** Hands a second of all VMs over; never waits and never throws. */
  take(seconds: VmSecond[]): void {
    if (this.worker === null || seconds.length === 0) return;
    if (this.waitingSeconds >= WAITING_SECONDS_MAX) {
      this.lostSeconds++;
      return;
    }
    if (this.lostSeconds > 0) this.options.onLoss(this.lostSeconds);
    this.lostSeconds = 0;
    this.waitingSeconds++;
    this.call('take', seconds).then(
      () => this.waitingSeconds--,
      (error: ShadowVmError) => {
        this.waitingSeconds--;
        if (!this.closed && this.refused === null) this.options.onTrouble(error, null);
      },
    );
  }

  /** @throws STATE_CORRUPT when there is no history, QUEUE_FULL, INTERNAL when its thread died meanwhile */
  ask<M extends keyof Archive>(method: M, ...args: Arguments<M>): Promise<Result<M>> {
    if (this.calls.size >= WAITING_CALLS_MAX)
      return Promise.reject(this.failure('QUEUE_FULL', `${WAITING_CALLS_MAX} questions wait already`));
    return this.call(method, ...args);
  }

  /** Writes what it was told. Idempotent. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.restart);
    const { worker } = this;
    if (worker === null) return;
    const ended = new Promise((resolve) => worker.once('exit', resolve));
    this.call('close').catch(() => {}); // it dies without an answer: then it has ended too
    await ended;
  }

  private call<M extends keyof Archive>(method: M, ...args: Arguments<M>): Promise<Result<M>> {
    const { worker } = this;
    if (worker === null)
      return Promise.reject(this.refused ?? this.failure('INTERNAL', 'its thread is being started again'));
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject });
      worker.postMessage({ id, method, args } satisfies Call);
    });
  }

  private start(): void {
    const { path, forecasts, onOutlook } = this.options;
    const worker = new Worker(WORKER, { workerData: { path, forecasts } satisfies Setup });
    this.worker = worker;
    this.waitingSeconds = 0;
    worker.on('message', (message: Answer | Told) => {
      if ('outlooks' in message) onOutlook(message.vm, message.outlooks);
      else this.answered(message);
    });
    let why = 'it ended by itself';
    worker.on('error', (error) => {
      why = messageOf(error);
    });
    worker.once('exit', () => this.ended(why));
  }

  private answered(answer: Answer): void {
    const waiting = this.calls.get(answer.id);
    this.calls.delete(answer.id);
    if (!('error' in answer)) {
      waiting?.resolve(answer.result as never);
      return;
    }
    const { code, ...detail } = answer.error;
    const error = new ShadowVmError(code, detail as ErrorDetail);
    if (answer.id !== 0) {
      waiting?.reject(error);
      return;
    }
    // A file that is no history stays as it is, and every VM goes on: usage is not worth a refusal to start.
    this.refused = error;
    this.options.onTrouble(error, null);
    void this.worker?.terminate();
  }

  private ended(why: string): void {
    this.worker = null;
    const error = this.refused ?? this.failure('INTERNAL', `its thread ended: ${why}`);
    for (const { reject } of this.calls.values()) reject(error);
    this.calls.clear();
    if (this.closed || this.refused !== null) return;
    this.options.onTrouble(error, RESTART_MS);
    this.restart = setTimeout(() => this.start(), RESTART_MS);
  }

  private failure(code: 'QUEUE_FULL' | 'INTERNAL', reason: string): ShadowVmError {
    return new ShadowVmError(code, { attempted: 'use the history', subject: this.options.path, reason });
  }
}
