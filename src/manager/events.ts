/**
 * What happened, in order: kept in memory for who asks and follows, and appended to events.jsonl for who comes later.
 * It is called from the middle of a failover, so nothing here throws or waits for the disk.
 */
import { readFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import { messageOf } from '../errors.js';
import { type Event, eventSchema } from '../vm/view.js';
import { RotatingFile } from './rotating-file.js';
import { fileError } from './state-dir.js';

/** As many newest events are kept in memory, and come back after a restart. */
const RING_EVENTS = 4096;
/** A line longer than this loses its data: one event with a guest's whole log in it must not push out the others. */
const LINE_CHARS_MAX = 16 * 1024;
const MESSAGE_CHARS_MAX = 2048;

export interface EventLogOptions {
  /** Told once when the disk fails, not at each event; the log itself must never be the reason that anything fails. */
  log: Pick<Logger, 'error'>;
  ringEvents?: number;
  fileBytesMax?: number;
}

export class EventLog {
  readonly #file: RotatingFile;
  readonly #log: Pick<Logger, 'error'>;
  /** Ring: the event with number seq is at seq % length. */
  readonly #ring: (Event | undefined)[];
  #nextSeq: number;
  #firstSeq: number;
  readonly #listeners = new Set<(event: Event) => void>();

  private constructor(file: RotatingFile, past: Event[], options: EventLogOptions) {
    this.#file = file;
    this.#log = options.log;
    this.#ring = new Array(options.ringEvents ?? RING_EVENTS);
    this.#nextSeq = (past.at(-1)?.seq ?? 0) + 1;
    this.#firstSeq = this.#nextSeq;
    for (const event of past.slice(-this.#ring.length)) {
      this.#ring[event.seq % this.#ring.length] = event;
      this.#firstSeq = Math.min(this.#firstSeq, event.seq);
    }
  }

  /**
   * Goes on where an earlier manager ended. A torn last line, as a crash leaves it, is cut; lines that are no events are
   * passed over. @throws NO_SPACE, NOT_ROOT when the file can not be opened at all
   */
  static async open(path: string, options: EventLogOptions): Promise<EventLog> {
    try {
      const older = await readEvents(`${path}.1`);
      const newer = await readEvents(path);
      const file = await RotatingFile.open(
        path,
        {
          ...(options.fileBytesMax === undefined ? {} : { fileBytesMax: options.fileBytesMax }),
          onError: (error) =>
            options.log.error({ err: error, path }, 'events can not be written to disk; they are kept in memory only'),
        },
        newer.wholeBytes,
      );
      // Only what rises in one piece to the newest: the ring finds an event by its number.
      const all = [...older.events, ...newer.events];
      let first = Math.max(0, all.length - 1);
      while (first > 0 && all[first - 1]!.seq === all[first]!.seq - 1) first--;
      return new EventLog(file, all.slice(first), options);
    } catch (error) {
      throw fileError(error, 'open the event log', path);
    }
  }

  /** Failures of the disk so far, for metrics. */
  get diskErrors(): number {
    return this.#file.errors;
  }

  /**
   * @param type dotted and stable, such as `promotion.done`
   * @param atNs when it happened, CLOCK_MONOTONIC; now when left out
   */
  append(
    level: Event['level'],
    type: string,
    vm: string | null,
    message: string,
    data: Record<string, unknown> = {},
    atNs: bigint = process.hrtime.bigint(),
  ): Event {
    const event: Event = {
      seq: this.#nextSeq++,
      at: new Date().toISOString(),
      atNs: atNs.toString(),
      level,
      type,
      vm,
      message: message.slice(0, MESSAGE_CHARS_MAX),
      data: {},
    };
    event.data = plainData(data);
    this.#ring[event.seq % this.#ring.length] = event;
    this.#firstSeq = Math.max(this.#firstSeq, event.seq - this.#ring.length + 1);
    this.#file.write(JSON.stringify(event) + '\n');
    for (const listener of this.#listeners) {
      try {
        listener(event);
      } catch (error) {
        // Whoever follows badly stops following; whoever makes events must not notice.
        this.#listeners.delete(listener);
        this.#log.error({ err: error, type }, 'a follower of the events failed and was taken off');
      }
    }
    return event;
  }

  /** The retained events with `seq` above `since`, oldest first; where there are more than `limit`, the newest. */
  list(filter: { since?: number | undefined; limit?: number | undefined; vm?: string | undefined } = {}): Event[] {
    const limit = filter.limit ?? this.#ring.length;
    const found: Event[] = [];
    for (let seq = this.#nextSeq - 1; seq >= this.#firstSeq && found.length < limit; seq--) {
      if (filter.since !== undefined && seq <= filter.since) break;
      const event = this.#ring[seq % this.#ring.length]!;
      if (filter.vm === undefined || event.vm === filter.vm) found.push(event);
    }
    return found.reverse();
  }

  /** Calls `listener` within `append`, so it must be quick. Returns what ends it. */
  follow(listener: (event: Event) => void): () => void {
    // Wrapped, so that one function given twice is two followers.
    const own = (event: Event) => listener(event);
    this.#listeners.add(own);
    return () => this.#listeners.delete(own);
  }

  flush(): Promise<void> {
    return this.#file.flush();
  }

  /** For the last moments of a process that can not wait any more. */
  flushSync(): void {
    this.#file.flushSync();
  }

  async close(): Promise<void> {
    this.#listeners.clear();
    await this.#file.close();
  }
}

/** The data as JSON gives it back: a later change by the caller, a bigint or a cycle must not reach who reads it. */
function plainData(data: Record<string, unknown>): Record<string, unknown> {
  try {
    const text = JSON.stringify(data, (_key, value: unknown) => (typeof value === 'bigint' ? value.toString() : value));
    if (text.length > LINE_CHARS_MAX) return { omitted: `${text.length} characters of data` };
    return JSON.parse(text) as Record<string, unknown>;
  } catch (error) {
    return { omitted: `data that is not JSON: ${messageOf(error)}` };
  }
}

/** The events of one file, and how many bytes of it are whole lines. */
async function readEvents(path: string): Promise<{ events: Event[]; wholeBytes: number }> {
  let content: Buffer;
  try {
    content = await readFile(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { events: [], wholeBytes: 0 };
    throw error;
  }
  const wholeBytes = content.lastIndexOf(0x0a) + 1;
  const events: Event[] = [];
  for (const line of content
    .toString('utf8', 0, wholeBytes)
    .split('\n')
    .slice(-RING_EVENTS - 1)) {
    try {
      const parsed = eventSchema.safeParse(JSON.parse(line));
      if (parsed.success) events.push(parsed.data);
    } catch {
      // Not JSON: the empty piece after the last line feed, or a line that the disk spoiled.
    }
  }
  return { events, wholeBytes };
}
