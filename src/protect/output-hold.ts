/**
 * Output commit: what a guest sends is held in its QEMU until the epoch in which it was sent is committed. One
 * `filter-buffer` for each epoch: the next one is switched on in the pause, and the older ones go, and what they hold with
 * them, when the epoch is committed. It is made before that: the order to make one is long, and QEMU reads slowly.
 *
 *   guest runs, epoch 7  │ hold3: packets of epoch 7   hold4: made behind it, and lets all pass
 *   pause                │ hold4 is switched on
 *   guest runs, epoch 8  │ hold3 ║ hold4: packets of epoch 8          while epoch 7 is being committed
 *   epoch 7 committed    │ hold3 is deleted: its packets leave        hold5 is made
 *
 * Nobody may have to wait for ever. Whoever finds that no epoch is committed lets everything go: this object when it
 * takes too long, the shim in QEMU when the manager is gone, and QEMU's own timer when both have failed.
 */
import { monotonicMs } from '../clock.js';
import { messageOf } from '../errors.js';
import { privateBytes } from '../host/process-stat.js';
import type { ThreadWatch } from '../native/memory.js';
import type { PacketTrail } from '../network/native.js';
import type { QemuProcess } from '../qemu/process.js';
import type { Waiting } from './pacing.js';
import { COUNTER_MASK, findSentCounter, type SentCounter } from './sent-counter.js';
import { watchVcpus } from './vcpu-watch.js';

/** So many at once at most: one that is kept, one that is filled, and those of epochs that were given up. The shim knows. */
const HOLDS_MAX = 8;
/** Packets that are older than this leave without their epoch. */
export const HELD_MS_MAX = 2000;
/**
 * What is held takes memory of QEMU's heap, outside of what the VM was promised. A hold takes 10,000 packets (QEMU's own
 * limit; the next are dropped, as by any full queue), which is little for most guests but may be of 64 KiB each.
 */
const HELD_BYTES_MAX = 128 * 2 ** 20;
const WATCH_MS = 100;
/** So long the end of a switchover waits for packets to leave. */
const RELEASED_MS_MAX = 200;
/** QEMU's own timer, on the clock of its guest, from the moment a hold is switched on; behind ours, which is told of. */
const DEAD_MAN_US = 3_000_000;

export interface OutputHoldEvents {
  /** What the guest sends leaves at once from now on, committed or not. */
  suspended(why: string): void;
  /** From now on everything that leaves is of committed epochs. */
  active(): void;
  /** What the guest had sent in an epoch has just left. */
  left(): void;
}

interface Hold {
  id: string;
  madeAtMs: number;
  /** Of the trail of what the guest is sent, when the hold was made. */
  mark: number;
}

export class OutputHold {
  /** Oldest first. */
  private holds: Hold[] = [];
  /** The id of one that is made and not switched on yet, behind all of these. */
  private spare: string | null = null;
  private making: Promise<void> | null = null;
  private next = 0;
  private active = false;
  /** An epoch was committed since the holding was suspended: it can be tried again. */
  private worthATry = false;
  private closed = false;
  private readonly watch: NodeJS.Timeout;
  private sent: SentCounter | null = null;
  private vcpus: ThreadWatch | null = null;
  private sentAtCut = 0;
  private sentLast = 0;
  /** What the counter says when everybody who was answered by the last commit has been answered again; null: no telling. */
  private sentExpected: number | null = null;
  private sentAtCutBefore = 0;
  private firstSentMs: number | null = null;
  private lastSentMs: number;
  /** What is held at most. For tests: a guest on a slow machine can not send as much within HELD_MS_MAX. */
  heldBytesMax = HELD_BYTES_MAX;
  /** QEMU's heap when the hold that is the oldest was first seen to be. */
  private heapBytes = 0;
  private oldestSeen: Hold | undefined;

  /**
   * @param trail what the guest is sent; null where that can not be seen
   * @param before that of the primary before this one: its guest is the same, and counts at the same place
   */
  constructor(
    private readonly qemu: QemuProcess,
    private readonly trail: PacketTrail | null,
    private readonly events: OutputHoldEvents,
    before: OutputHold | null = null,
  ) {
    this.lastSentMs = monotonicMs();
    this.watch = setInterval(() => this.check(), WATCH_MS).unref();
    if (before?.sent) this.sent = before.sent.of(qemu);
    else void findSentCounter(qemu).then((sent) => (this.sent = sent));
    // Behind what a promotion has to tell its QEMU at once: its guest waits for that.
    setImmediate(() => void this.watchVcpus());
  }

  private async watchVcpus(): Promise<void> {
    if (this.closed) return;
    const vcpus = await watchVcpus(this.qemu);
    if (this.closed) vcpus?.close();
    else this.vcpus = vcpus;
  }

  get isActive(): boolean {
    return this.active;
  }

  /** Before the first instruction of a promoted guest: all that it sends belongs to an epoch that is not cut yet. */
  holdFromStart(): void {
    this.noteCut();
    this.worthATry = true;
    const id = this.nextId();
    // That of the next epoch is made once this one is there: nothing is to come between it and the guest's first instruction.
    void this.make(id, 'on').then(
      () => this.prepare(),
      (error: unknown) => this.failed(messageOf(error)),
    );
    this.push(id);
    this.active = true;
  }

  /**
   * Before a pause in which QEMU is to switch a hold on: it is made. An epoch without one of its own would let nothing go,
   * and whoever waits would wait for the next.
   */
  async prepared(): Promise<void> {
    if (this.closed || (!this.active && !this.worthATry)) return;
    this.prepare();
    await this.making;
  }

  /**
   * What the guest sends after the pause that is about to come goes into a hold of its own. Where QEMU serves pauses, it
   * switches it on in there; else it is told now, through its monitor, and the `stop` must be on its way already.
   * @returns the hold, for commit(); null when nothing is to be held now
   */
  begin(): { id: string; number: number } | null {
    if (this.closed || (!this.active && !this.worthATry)) return null;
    const newest = this.holds.at(-1);
    const inside = this.qemu.servesPauses;
    // Epochs that are given up leave one each, and the next one may not be made yet. What comes now joins the newest: it is
    // held longer, never shorter.
    if (this.holds.length >= HOLDS_MAX || (inside && this.spare === null)) {
      this.prepare();
      return newest === undefined ? null : { id: newest.id, number: numberOf(newest.id) };
    }
    const id = this.spare ?? this.nextId();
    if (!inside) {
      const sent =
        this.spare === null
          ? this.make(id, 'on')
          : this.qemu.qmp.execute('qom-set', { path: `/objects/${id}`, property: 'status', value: 'on' });
      sent.catch((error: unknown) => this.failed(messageOf(error)));
    }
    this.spare = null;
    this.push(id);
    return { id, number: numberOf(id) };
  }

  /** A hold that begin() gave does not hold. */
  failed(why: string): void {
    if (this.closed || this.qemu.hasDied) return;
    this.suspend(`QEMU can not hold its packets: ${why}`);
  }

  private push(id: string): void {
    this.holds.push({ id, madeAtMs: monotonicMs(), mark: this.trail?.mark() ?? 0 });
  }

  private nextId(): string {
    return `hold${this.next++ % HOLDS_MAX}`;
  }

  private make(id: string, status: 'on' | 'off'): Promise<unknown> {
    const newest = this.holds.at(-1);
    const behind = newest === undefined ? {} : { position: `id=${newest.id}`, insert: 'behind' as const };
    return this.qemu.qmp.execute('object-add', {
      ...{ 'qom-type': 'filter-buffer', id, netdev: 'net0', queue: 'rx', interval: DEAD_MAN_US, status },
      ...behind,
    });
  }

  /** Makes the hold of the next epoch. */
  private prepare(): void {
    if (this.spare !== null || this.making !== null || this.closed || this.holds.length >= HOLDS_MAX - 1) return;
    const id = this.nextId();
    this.making = this.make(id, 'off')
      .then(
        () => {
          if (this.closed) this.delete(id);
          else this.spare = id;
        },
        (error: unknown) => this.failed(messageOf(error)),
      )
      .finally(() => {
        this.making = null;
      });
  }

  /**
   * What is counted from here on is of the next epoch.
   * @param sent the counter when the guest stood still; without it, it does now
   */
  noteCut(sent = this.sent?.read() ?? 0): void {
    this.sentAtCutBefore = this.sentAtCut;
    this.sentAtCut = sent;
    this.sentExpected = null;
    this.firstSentMs = null;
  }

  /** The holds that leave with the epoch of `hold`, as QemuControl has them: a bit for each. 0 where QEMU must be told by its monitor. */
  releasedBy(hold: string): number {
    const end = this.holds.findIndex(({ id }) => id === hold);
    return this.qemu.servesPauses ? bitsOf(this.holds.slice(0, Math.max(0, end))) : 0;
  }

  /** Those that were not let go, in the same way; but for those that an epoch's commit lets go before commit() is told. */
  get kept(): number {
    return bitsOf(this.holds);
  }

  /**
   * An epoch is committed, and what was sent before its hold was made may leave.
   * @param released QEMU was told already
   */
  commit(hold: string | null, released = false): void {
    this.worthATry = true;
    if (hold === null || !this.holds.some(({ id }) => id === hold)) return;
    while (this.holds[0]?.id !== hold) {
      const old = this.holds.shift() as Hold;
      if (!released) this.delete(old.id);
      // One epoch more than must be: what lay at the tap when the guest stood still was seen by none of the two.
      this.trail?.forget(old.mark);
    }
    this.expectAnswers();
    this.prepare();
    if (this.active || this.closed) return;
    this.active = true;
    this.events.active();
  }

  /** Now that an epoch's packets leave: each of them brings forth another one, on top of what waits already. */
  private expectAnswers(): void {
    if (this.sent === null) return;
    const left = (this.sentAtCut - this.sentAtCutBefore) & COUNTER_MASK;
    this.sentExpected = left === 0 ? null : (this.sent.read() + left) & COUNTER_MASK;
    if (left > 0) this.events.left();
  }

  /** What the guest has sent since the last cut: how long that has been waiting. null when it has sent nothing. */
  waiting(nowMs: number): Waiting | null {
    // Not known where to look: as if something came all the time.
    if (this.sent === null)
      return { oldestMs: nowMs - (this.holds.at(-1)?.madeAtMs ?? nowMs), newestMs: 0, complete: false, idle: null };
    const sent = this.sent.read();
    if (sent !== this.sentLast) this.lastSentMs = nowMs;
    this.sentLast = sent;
    if (sent === this.sentAtCut) return null;
    this.firstSentMs ??= nowMs;
    const [oldestMs, newestMs] = [nowMs - this.firstSentMs, nowMs - this.lastSentMs];
    return { oldestMs, newestMs, complete: this.isComplete(sent), idle: this.vcpus?.allSleep() ?? null };
  }

  /** Where in the guest's RAM is counted what it sends; undefined while that is not known. */
  get sentOffset(): number | undefined {
    return this.sent?.offset;
  }

  /** By what the guest shows that all are answered who were at the last commit; null: by nothing. */
  expected(): { offset: number; count: number; vcpus: ThreadWatch | null } | null {
    if (this.sent === null || this.sentExpected === null) return null;
    return { offset: this.sent.offset, count: this.sentExpected, vcpus: this.vcpus };
  }

  private isComplete(sent: number): boolean {
    return this.sentExpected !== null && ((sent - this.sentExpected) & COUNTER_MASK) <= COUNTER_MASK / 2;
  }

  /** How long the guest has sent nothing. */
  silentMs(nowMs: number): number {
    return nowMs - this.lastSentMs;
  }

  /** Lets everything go until an epoch is committed again. */
  suspend(why: string): void {
    const was = this.active;
    this.active = false;
    this.worthATry = false;
    this.releaseAll();
    if (was && !this.closed) this.events.suspended(why);
  }

  /** Everything leaves, as the guest stands still and its last epoch is committed. */
  releaseAll(): void {
    for (const { id } of this.holds.splice(0)) this.delete(id);
    if (this.spare !== null) this.delete(this.spare);
    this.spare = null;
  }

  /** Resolves when what was let go has left, or QEMU does not get on. */
  async released(): Promise<void> {
    const untilMs = monotonicMs() + RELEASED_MS_MAX;
    const left = () => this.qemu.hasDied || !this.qemu.servesPauses || this.qemu.control.releaseHolds(0);
    while (!left() && monotonicMs() < untilMs) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  /** The QEMU is dead or nobody's business any more: what it holds stays where it is. Idempotent. */
  close(): void {
    this.closed = true;
    clearInterval(this.watch);
    this.vcpus?.close();
    this.vcpus = null;
  }

  private check(): void {
    const [oldest] = this.holds;
    if (oldest === undefined) return;
    const ageMs = monotonicMs() - oldest.madeAtMs;
    const bytes = privateBytes(this.qemu.pid) ?? 0;
    if (oldest !== this.oldestSeen) this.heapBytes = bytes;
    this.oldestSeen = oldest;
    const heldBytes = bytes - this.heapBytes;
    if (ageMs > HELD_MS_MAX) this.suspend(`no epoch was committed for ${Math.round(ageMs)} ms`);
    else if (heldBytes > this.heldBytesMax)
      this.suspend(`its guest has sent ${Math.round(heldBytes / 2 ** 20)} MiB in one epoch`);
  }

  private delete(id: string): void {
    if (this.qemu.servesPauses) this.qemu.control.releaseHolds(1 << numberOf(id));
    // Of a QEMU that has died nothing leaves any more, and its tap is cut.
    else this.qemu.qmp.execute('object-del', { id }).catch(() => {});
  }
}

const numberOf = (id: string): number => Number(id.slice('hold'.length));
const bitsOf = (holds: readonly Hold[]): number => holds.reduce((bits, { id }) => bits | (1 << numberOf(id)), 0);
