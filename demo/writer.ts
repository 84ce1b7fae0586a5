/** The demo's client: it keeps the account of every write, and reads all of them back. */
import { nowMs, sleep } from '../harness/daemon.js';
import { RedisConnection, type Reply } from '../harness/redis.js';
import { type Acknowledged, Writer } from '../harness/writer.js';

const READ_BATCH = 500;

export class NumberedWriter {
  readonly acknowledged: Acknowledged[] = [];
  private readonly writer: Writer;

  constructor(
    private readonly host: string,
    private readonly port: number,
    /** Longer than an interruption where the connection is to survive it. */
    replyTimeoutMs?: number,
  ) {
    this.writer = new Writer({
      host,
      port,
      command: (number) => ['SET', keyOf(number), textOf(number)],
      onAcknowledged: (write) => this.acknowledged.push(write),
      ...(replyTimeoutMs === undefined ? {} : { replyTimeoutMs }),
    });
  }

  get connections(): number {
    return this.writer.connections;
  }

  start(): void {
    this.writer.start();
  }

  stop(): Promise<void> {
    return this.writer.stop();
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
      const values = (await connection.send('MGET', ...batch.map((a) => keyOf(a.number)))) as Reply[];
      batch.forEach((a, j) => {
        if (values[j] !== textOf(a.number)) missing.push(a);
      });
    }
    connection.close();
    return missing;
  }
}

/** Replies still in the sockets' buffers at the kill are read within this. */
const SETTLE_MS = 5;
const keyOf = (number: number) => `key:${number}`;
const textOf = (number: number) => `value-${number}-${'x'.repeat(64)}`;
