/** One who follows the events over a socket. What waits for a reader that does not read is bounded. */
import type { Writable } from 'node:stream';
import type { Event } from '../vm/view.js';
import { EVENTS_MAX } from './schemas.js';

/** A whole backlog, and a quarter of that which happens while it is being read. */
export const FOLLOWER_QUEUE_MAX = EVENTS_MAX + EVENTS_MAX / 4;
/** As many events become one write at most, so that the socket's own bound is looked at in between. */
const BATCH_EVENTS = 64;

export class Follower {
  readonly #out: Writable;
  readonly #onSlow: () => void;
  #queue: Event[] = [];
  #blocked = false;
  #ended = false;

  /** @param onSlow called once, when the reader is cut off for being too slow */
  constructor(out: Writable, onSlow: () => void) {
    this.#out = out;
    this.#onSlow = onSlow;
    out.on('drain', () => {
      this.#blocked = false;
      this.#pump();
    });
    out.on('close', () => this.#stop());
    // A reader that went away shows as an error of the write that came too late; 'close' follows and does the rest.
    out.on('error', () => {});
  }

  push(event: Event): void {
    if (this.#ended) return;
    if (this.#queue.length >= FOLLOWER_QUEUE_MAX) {
      // Leaving out events would look like nothing happened. An end is seen, and `since` picks up where it was.
      this.#stop();
      this.#out.destroy();
      this.#onSlow();
      return;
    }
    this.#queue.push(event);
    this.#pump();
  }

  /** The stream is over: what is queued goes out as fast as the reader takes it, then the end. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#out.end(lines(this.#queue));
    this.#queue = [];
  }

  #stop(): void {
    this.#ended = true;
    this.#queue = [];
  }

  #pump(): void {
    while (!this.#blocked && this.#queue.length > 0)
      this.#blocked = !this.#out.write(lines(this.#queue.splice(0, BATCH_EVENTS)));
  }
}

function lines(events: Event[]): string {
  return events.map((event) => JSON.stringify(event) + '\n').join('');
}
