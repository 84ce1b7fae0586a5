/** A client that writes numbered keys as fast as they are acknowledged, and comes back when the server goes away. */

import { nowMs, sleep } from '../harness/daemon.js';
import { RedisConnection, type Reply } from '../harness/redis.js';

/** Commands on the way at once: "as fast as they are acknowledged" without waiting a round trip for each. */
const WINDOW = 16;
/** So long without a reply means that the connection is of no use any more: a client's usual read time-out, kept short. */
const REPLY_TIMEOUT_MS = 150;
const CONNECT_TIMEOUT_MS = 200;
const CHECK_MS = 5;
const READ_BATCH = 500;

export interface Acknowledged {
  key: number;
  /** CLOCK_MONOTONIC ms. */
  atMs: number;
}

export class NumberedWriter {
  readonly acknowledged: Acknowledged[] = [];
  connections = 0;
  private next = 1;
  private stopping = false;
  private done: Promise<void> | undefined;
  /** When the last reply came, CLOCK_MONOTONIC ms. */
  lastReplyMs = 0;
  longestSilenceMs = 0;

  constructor(
    private readonly host: string,
    private readonly port: number,
  ) {}

  start(): void {
    this.done = this.run();
  }

  async stop(): Promise<void> {
    this.stopping = true;
    await this.done;
  }

  /** Resolves with the moment of the first reply to anything sent after `afterMs`. */
  async firstReplyAfter(afterMs: number, timeoutMs: number): Promise<number> {
    const until = nowMs() + timeoutMs;
    while (nowMs() < until) {
      // Replies that were on their way at that moment are the old server's: they come at once or never.
      const reply = this.acknowledged.findLast((a) => a.atMs > afterMs);
      const first = reply && this.acknowledged.find((a) => a.atMs > afterMs + SETTLE_MS);
      if (first !== undefined) return first.atMs;
      await sleep(1);
    }
    throw new Error(`no reply of Redis within ${timeoutMs} ms`);
  }

  /** Reads every acknowledged key back; tells which are not there or not as written. */
  async readBack(): Promise<Acknowledged[]> {
    const connection = await RedisConnection.connect(this.host, this.port, 5000);
    const missing: Acknowledged[] = [];
    for (let i = 0; i < this.acknowledged.length; i += READ_BATCH) {
      const batch = this.acknowledged.slice(i, i + READ_BATCH);
      const values = (await connection.send('MGET', ...batch.map((a) => keyOf(a.key)))) as Reply[];
      batch.forEach((a, j) => {
        if (values[j] !== textOf(a.key)) missing.push(a);
      });
    }
    connection.close();
    return missing;
  }

  private async run(): Promise<void> {
    while (!this.stopping) {
      const connection = await RedisConnection.connect(this.host, this.port, CONNECT_TIMEOUT_MS).catch(() => null);
      if (connection === null) {
        await sleep(CHECK_MS);
        continue;
      }
      this.connections++;
      const watchdog = setInterval(() => {
        if (connection.oldestWaitMs() > REPLY_TIMEOUT_MS) connection.close();
      }, CHECK_MS);
      await Promise.all(Array.from({ length: WINDOW }, () => this.writeOn(connection)));
      clearInterval(watchdog);
      connection.close();
    }
  }

  private async writeOn(connection: RedisConnection): Promise<void> {
    while (!this.stopping) {
      const key = this.next++;
      try {
        if ((await connection.send('SET', keyOf(key), textOf(key))) !== 'OK') return;
      } catch {
        return; // not acknowledged: whether it is there, nobody was promised
      }
      const atMs = nowMs();
      if (this.lastReplyMs > 0) this.longestSilenceMs = Math.max(this.longestSilenceMs, atMs - this.lastReplyMs);
      this.lastReplyMs = atMs;
      this.acknowledged.push({ key, atMs });
    }
  }
}

/** Replies still in the sockets' buffers at the kill are read within this. */
const SETTLE_MS = 5;
const keyOf = (key: number) => `key:${key}`;
const textOf = (key: number) => `value-${key}-${'x'.repeat(64)}`;
