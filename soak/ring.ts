/**
 * The account of the numbers written to Redis: which must be there, which may have been rolled back.
 *
 * Number n goes to slot n mod RING_SLOTS, so that Redis's memory stays bounded; a slot that was overwritten has a higher
 * number. A failover rolls back at most what was acknowledged after the cut of the promoted epoch.
 */
import { RedisConnection, type Reply } from '../harness/redis.js';
import type { Acknowledged } from '../harness/writer.js';

/** More than is written between two read-backs: few slots are overwritten before they are looked at. */
export const RING_SLOTS = 20_000;
const READ_BATCH = 500;
const CONNECT_TIMEOUT_MS = 10_000;
/** A connection that a rollback has cut does not end, it falls silent. */
const READ_TIMEOUT_MS = 10_000;
/** On a connection older than a promotion, replies of the old primary have been read so long after it. */
const STALE_REPLIES_MS = 1000;
const FINDINGS_MAX = 20;

const keyOf = (number: number) => `key:${number % RING_SLOTS}`;
const textOf = (number: number) => `value-${number}-${'x'.repeat(64)}`;
export const ringCommand = (number: number) => ['SET', keyOf(number), textOf(number)];

/** The number in each slot; null where there is none, NaN where there is what nobody wrote. */
export async function readRing(host: string, port: number): Promise<(number | null)[]> {
  const connection = await RedisConnection.connect(host, port, CONNECT_TIMEOUT_MS);
  const watchdog = setInterval(() => {
    if (connection.oldestWaitMs() > READ_TIMEOUT_MS) connection.close();
  }, READ_TIMEOUT_MS / 10);
  try {
    const numbers: (number | null)[] = [];
    for (let from = 0; from < RING_SLOTS; from += READ_BATCH) {
      const keys = Array.from({ length: Math.min(READ_BATCH, RING_SLOTS - from) }, (_, i) => keyOf(from + i));
      const values = (await connection.send('MGET', ...keys)) as Reply[];
      for (const [i, value] of values.entries()) numbers.push(numberIn(value, from + i));
    }
    return numbers;
  } finally {
    clearInterval(watchdog);
    connection.close();
  }
}

function numberIn(value: Reply, slot: number): number | null {
  if (value === null) return null;
  const number = Number(/^value-(\d+)-/.exec(String(value))?.[1]);
  return value === textOf(number) && number % RING_SLOTS === slot ? number : Number.NaN;
}

export interface RingFindings {
  /** Acknowledged, gone, and younger than the lag of a failover: what `async` mode allows. */
  lostWithinLag: number;
  /** Acknowledged before a cut, or after a promotion, and gone. */
  lostOlder: number;
  /** What is wrong, in words; the first of many. */
  wrong: string[];
}

/** Times are CLOCK_MONOTONIC. */
export interface Rollback {
  /** When the promoted epoch was cut. */
  cutMs: number;
  resumedMs: number;
  /** The writer's connections by then: later ones know only the new primary. */
  connections: number;
}

export class RingAccount {
  acknowledgedTotal = 0;
  /** What the next rollback may take: acknowledged since the newest promotion. */
  private acknowledged: Acknowledged[] = [];
  private rollbacks: Rollback[] = [];
  /** Newest write of each slot that no rollback can take any more: the next epoch is cut later. */
  private readonly floor: (Acknowledged | null)[] = new Array(RING_SLOTS).fill(null);

  add(write: Acknowledged): void {
    this.acknowledged.push(write);
    this.acknowledgedTotal++;
  }

  rolledBack(rollback: Rollback): void {
    this.rollbacks.push(rollback);
  }

  /** True when a write was acknowledged that only the primary of the newest promotion can have seen. */
  get goesOn(): boolean {
    const [rollback, write] = [this.rollbacks.at(-1), this.acknowledged.at(-1)];
    return rollback === undefined || (write !== undefined && isAfter(write, rollback));
  }

  /**
   * Holds what was read against what was acknowledged. No write may be under way.
   * @param next all numbers below it were sent, or tried to
   */
  check(slots: readonly (number | null)[], next: number): RingFindings {
    const findings: RingFindings = { lostWithinLag: 0, lostOlder: 0, wrong: [] };
    const say = (text: string) => {
      if (findings.wrong.length < FINDINGS_MAX) findings.wrong.push(text);
    };
    for (const [slot, number] of slots.entries())
      if (number !== null && !(number < next)) say(`slot ${slot} has what nobody wrote: ${number}`);

    // On one connection Redis saw the writes in order: of a whole state, what is missing is a tail.
    const tail = new Map<number, number>();
    const due = [...this.floor];
    const stay: Acknowledged[] = [];
    for (const write of this.acknowledged) {
      const { number, connection } = write;
      const slot = number % RING_SLOTS;
      const found = slots[slot] ?? 0;
      const newer = this.rollbacks.every((rollback) => isAfter(write, rollback));
      const safe = this.rollbacks.every((rollback) => write.atMs < rollback.cutMs || isAfter(write, rollback));
      if (safe) {
        if (number > (due[slot]?.number ?? 0)) due[slot] = write;
      } else if (found < number) {
        findings.lostWithinLag++;
        if (!tail.has(connection)) tail.set(connection, number);
      }
      if (newer) stay.push(write);
      else if ((safe || found >= number) && number > (this.floor[slot]?.number ?? 0)) this.floor[slot] = write;
      const lost = tail.get(connection);
      if (found === number && lost !== undefined && lost < number)
        say(`${number} is there, ${lost}, written before it on the same connection, is not`);
    }
    for (const [slot, write] of due.entries()) {
      const found = slots[slot] ?? 0;
      if (write === null || !(found < write.number)) continue;
      findings.lostOlder++;
      say(`slot ${slot} has ${found}, but ${write.number} was acknowledged ${this.when(write)}`);
    }
    this.acknowledged = stay;
    this.rollbacks = [];
    return findings;
  }

  /** For people who look for the reason. */
  private when({ atMs, connection }: Acknowledged): string {
    const rollbacks = this.rollbacks.map(
      ({ cutMs, resumedMs, connections }) =>
        `${(atMs - cutMs).toFixed(1)} ms after the cut, ${(atMs - resumedMs).toFixed(1)} ms after the resumption (connections: ${connections})`,
    );
    return `on connection ${connection}, ${rollbacks.join(' and ')}`;
  }
}

function isAfter(write: Acknowledged, rollback: Rollback): boolean {
  return write.connection > rollback.connections || write.atMs > rollback.resumedMs + STALE_REPLIES_MS;
}
