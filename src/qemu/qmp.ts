/** A client of QEMU's machine protocol: typed commands, time-outs, events, and peers that are slow, silent or gone. */

import net from 'node:net';
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';

/** The commands that ShadowVM uses, with their arguments and answers. */
export interface QmpCommands {
  qmp_capabilities: { args: undefined; result: object };
  stop: { args: undefined; result: object };
  cont: { args: undefined; result: object };
  quit: { args: undefined; result: object };
  'query-status': { args: undefined; result: { status: string; running: boolean } };
  'query-version': {
    args: undefined;
    result: { qemu: { major: number; minor: number; micro: number }; package: string };
  };
  'xen-save-devices-state': { args: { filename: string; live: boolean }; result: object };
  'migrate-set-capabilities': {
    args: { capabilities: { capability: string; state: boolean }[] };
    result: object;
  };
  'migrate-incoming': { args: { uri: string }; result: object };
  'migrate-set-parameters': { args: Record<string, number>; result: object };
  migrate: { args: { uri: string }; result: object };
  'query-migrate': { args: undefined; result: { status?: string } };
  'human-monitor-command': { args: { 'command-line': string }; result: string };
  balloon: { args: { value: number }; result: object };
  'query-balloon': { args: undefined; result: { actual: number } };
  'query-blockstats': { args: undefined; result: DeviceStats[] };
  'query-named-block-nodes': {
    args: { flat: boolean };
    result: { 'node-name': string; image: { 'virtual-size': number } }[];
  };
  block_resize: { args: { 'node-name': string; size: number }; result: object };
  'object-add': {
    args: {
      'qom-type': string;
      id: string;
      netdev: string;
      queue: string;
      interval: number;
      status: 'on' | 'off';
      position?: string;
      insert?: 'behind';
    };
    result: object;
  };
  'object-del': { args: { id: string }; result: object };
  'qom-set': { args: { path: string; property: string; value: string }; result: object };
  'qom-list': { args: { path: string }; result: { name: string; type: string }[] };
  'query-cpus-fast': { args: undefined; result: { 'thread-id': number }[] };
  'x-query-virtio': { args: undefined; result: { name: string; path: string }[] };
  'x-query-virtio-queue-status': { args: { path: string; queue: number }; result: { 'vring-used': number } };
}

export interface DeviceStats {
  qdev?: string;
  stats: {
    rd_operations: number;
    wr_operations: number;
    unmap_operations: number;
    failed_wr_operations: number;
    rd_bytes: number;
    wr_bytes: number;
  };
}

export interface QmpEvent {
  event: string;
  data?: Record<string, unknown>;
}

const LINE_BYTES_MAX = 4 * 1024 * 1024;
const PENDING_MAX = 64;
const TIMEOUT_MS_DEFAULT = 5000;

interface Pending {
  command: string;
  resolve: (value: never) => void;
  reject: (error: ShadowVmError) => void;
  timer: NodeJS.Timeout;
}

interface Message {
  QMP?: unknown;
  event?: string;
  data?: Record<string, unknown>;
  id?: number;
  return?: unknown;
  error?: { class?: string; desc?: string } | null;
}

/** null when it is no JSON object: a QEMU that its guest has taken over may say anything. */
function parseMessage(line: string): Message | null {
  try {
    const message: unknown = JSON.parse(line);
    return typeof message === 'object' && message !== null ? message : null;
  } catch {
    return null;
  }
}

export class QmpClient {
  private readonly pending = new Map<number, Pending>();
  private readonly listeners = new Set<(event: QmpEvent) => void>();
  private buffer = '';
  private nextId = 1;
  private greeted: (() => void) | undefined;
  /** Why the connection has ended, when it has. */
  closedBy: ShadowVmError | undefined;
  /** Resolves with the reason when the connection has ended, whoever ended it. Never rejects. */
  readonly closed: Promise<ShadowVmError>;
  private resolveClosed!: (reason: ShadowVmError) => void;
  /** When the peer last said anything, CLOCK_MONOTONIC ms. */
  lastHeardMs = monotonicMs();

  private constructor(
    private readonly socket: net.Socket,
    private readonly vm: string,
  ) {
    this.closed = new Promise((resolve) => {
      this.resolveClosed = resolve;
    });
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => this.read(chunk));
    socket.on('error', (error) => this.close(error.message));
    socket.on('close', () => this.close('QEMU closed the connection'));
  }

  /** Connects, waits for the greeting and negotiates. @throws QMP_CLOSED, QMP_TIMEOUT */
  static async connect(path: string, vm: string, timeoutMs = TIMEOUT_MS_DEFAULT): Promise<QmpClient> {
    const client = new QmpClient(net.connect(path), vm);
    const greeting = new Promise<void>((resolve) => {
      client.greeted = resolve;
    });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () =>
          reject(
            new ShadowVmError('QMP_TIMEOUT', {
              attempted: 'greet QEMU',
              subject: vm,
              reason: `no greeting within ${timeoutMs} ms`,
            }),
          ),
        timeoutMs,
      );
    });
    try {
      await Promise.race([greeting, late, client.closed.then((reason) => Promise.reject(reason))]);
      await client.execute('qmp_capabilities');
      return client;
    } catch (error) {
      client.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Sends a command at once (commands may be pipelined: QEMU runs them in order).
   * @throws QMP_TIMEOUT with no answer in `timeoutMs` (a late answer is ignored), QMP_CLOSED, QMP_ERROR with QEMU's own
   * words, QUEUE_FULL with 64 commands unanswered.
   */
  execute<C extends keyof QmpCommands>(
    command: C,
    ...[args, options]: QmpCommands[C]['args'] extends undefined
      ? [args?: undefined, options?: { timeoutMs?: number }]
      : [args: QmpCommands[C]['args'], options?: { timeoutMs?: number }]
  ): Promise<QmpCommands[C]['result']> {
    const timeoutMs = options?.timeoutMs ?? TIMEOUT_MS_DEFAULT;
    const attempted = `run the QMP command ${command}`;
    return new Promise((resolve, reject) => {
      if (this.closedBy !== undefined) return reject(this.closedBy);
      if (this.pending.size >= PENDING_MAX)
        return reject(
          new ShadowVmError('QUEUE_FULL', {
            attempted,
            subject: this.vm,
            reason: `${PENDING_MAX} commands are unanswered`,
          }),
        );
      const id = this.nextId++;
      const timer = setTimeout(() => {
        this.pending.delete(id);
        reject(
          new ShadowVmError('QMP_TIMEOUT', {
            attempted,
            subject: this.vm,
            reason: `QEMU did not answer within ${timeoutMs} ms`,
          }),
        );
      }, timeoutMs);
      this.pending.set(id, { command, resolve, reject, timer });
      this.socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** Calls `listener` for each event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Resolves with the first event that `matches`. @throws QMP_TIMEOUT, QMP_CLOSED */
  waitEvent(what: string, matches: (event: QmpEvent) => boolean, timeoutMs: number): Promise<QmpEvent> {
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        clearTimeout(timer);
        off();
        act();
      };
      const off = this.onEvent((event) => {
        if (matches(event)) settle(() => resolve(event));
      });
      const timer = setTimeout(
        () =>
          settle(() =>
            reject(
              new ShadowVmError('QMP_TIMEOUT', {
                attempted: `wait for QEMU to ${what}`,
                subject: this.vm,
                reason: `it did not within ${timeoutMs} ms`,
              }),
            ),
          ),
        timeoutMs,
      );
      void this.closed.then((reason) => settle(() => reject(reason)));
    });
  }

  /** Ends the connection; every unanswered command rejects at once, without waiting for a peer that may be frozen. */
  destroy(): void {
    this.close('the manager closed the connection');
  }

  private close(reason: string): void {
    if (this.closedBy !== undefined) return;
    this.closedBy = new ShadowVmError('QMP_CLOSED', { attempted: 'talk to QEMU', subject: this.vm, reason });
    this.socket.destroy();
    for (const { reject, timer } of this.pending.values()) {
      clearTimeout(timer);
      reject(this.closedBy);
    }
    this.pending.clear();
    this.resolveClosed(this.closedBy);
  }

  private read(chunk: string): void {
    this.lastHeardMs = monotonicMs();
    this.buffer += chunk;
    for (let end = this.buffer.indexOf('\n'); end >= 0; end = this.buffer.indexOf('\n')) {
      const line = this.buffer.slice(0, end).trim();
      this.buffer = this.buffer.slice(end + 1);
      if (line !== '') this.readMessage(line);
      if (this.closedBy !== undefined) return;
    }
    if (this.buffer.length > LINE_BYTES_MAX) this.close('QEMU sent a line beyond all measure');
  }

  private readMessage(line: string): void {
    const message = parseMessage(line);
    if (message === null) {
      this.close('QEMU sent what is no message');
      return;
    }
    if (message.QMP !== undefined) {
      this.greeted?.();
      return;
    }
    if (message.event !== undefined) {
      const event: QmpEvent =
        message.data === undefined ? { event: message.event } : { event: message.event, data: message.data };
      for (const listener of [...this.listeners]) listener(event);
      return;
    }
    const waiting = message.id === undefined ? undefined : this.pending.get(message.id);
    if (waiting === undefined) return; // the answer to a command that timed out
    this.pending.delete(message.id as number);
    clearTimeout(waiting.timer);
    if (message.error !== undefined)
      waiting.reject(
        new ShadowVmError('QMP_ERROR', {
          attempted: `run the QMP command ${waiting.command}`,
          subject: this.vm,
          reason: message.error?.desc ?? 'it gave no reason',
        }),
      );
    else waiting.resolve(message.return as never);
  }
}
