/** A Redis client that writes numbered commands without a break, and comes back when the server goes away. */
import { nowMs, sleep } from './daemon.js';
import { RedisConnection } from './redis.js';

/** Commands on the way at once: "as fast as they are acknowledged" without waiting a round trip for each. */
const WINDOW = 16;
/** A client's usual read time-out, kept short. */
const REPLY_TIMEOUT_MS = 150;
const CONNECT_TIMEOUT_MS = 200;
const CHECK_MS = 5;
/** A writer that fell behind its rate does not make up for more than this. */
const CATCH_UP_MS = 100;

export interface Acknowledged {
  number: number;
  /** When its reply was read, CLOCK_MONOTONIC ms. */
  atMs: number;
  /** Which of the writer's connections, counted from 1, it came over: on one, the server sees commands in order. */
  connection: number;
}

export interface WriterOptions {
  host: string;
  port: number;
  /** The write with this number, in Redis's words. Numbers rise by one and are never used again. */
  command: (number: number) => string[];
  onAcknowledged: (write: Acknowledged) => void;
  /** As fast as they are acknowledged when left out. */
  writesPerSecondMax?: number;
  /** So long without a reply means that the connection is of no use any more; 150 when left out. */
  replyTimeoutMs?: number;
}

export class Writer {
  connections = 0;
  /** The number of the next write: all below were sent, or tried to. */
  next = 1;
  private stopping = false;
  private done: Promise<void> | undefined;
  private dueMs = 0;

  constructor(private readonly options: WriterOptions) {}

  /** Also after stop(), where it goes on. */
  start(): void {
    this.stopping = false;
    this.done = this.run();
  }

  /** Resolves when the last write is acknowledged or given up. Idempotent. */
  async stop(): Promise<void> {
    this.stopping = true;
    await this.done;
  }

  private async run(): Promise<void> {
    const { host, port } = this.options;
    while (!this.stopping) {
      const connection = await RedisConnection.connect(host, port, CONNECT_TIMEOUT_MS).catch(() => null);
      if (connection === null) {
        await sleep(CHECK_MS);
        continue;
      }
      const number = ++this.connections;
      const watchdog = setInterval(() => {
        if (connection.oldestWaitMs() > (this.options.replyTimeoutMs ?? REPLY_TIMEOUT_MS)) connection.close();
      }, CHECK_MS);
      await Promise.all(Array.from({ length: WINDOW }, () => this.writeOn(connection, number)));
      clearInterval(watchdog);
      connection.close();
    }
  }

  private async writeOn(connection: RedisConnection, connectionNumber: number): Promise<void> {
    while (!this.stopping) {
      await this.turn();
      const number = this.next++;
      try {
        if ((await connection.send(...this.options.command(number))) !== 'OK') return;
      } catch {
        return; // not acknowledged: whether it is there, nobody was promised
      }
      this.options.onAcknowledged({ number, atMs: nowMs(), connection: connectionNumber });
    }
  }

  /** Resolves when the rate allows the next write. */
  private async turn(): Promise<void> {
    const { writesPerSecondMax } = this.options;
    if (writesPerSecondMax === undefined) return;
    const now = nowMs();
    this.dueMs = Math.max(this.dueMs + 1000 / writesPerSecondMax, now - CATCH_UP_MS);
    if (this.dueMs > now) await sleep(this.dueMs - now);
  }
}
