/** Follows a primary through its epochs from outside, to hit a phase of one and to tell afterwards which was hit. */
import { nowMs, sleep } from '../harness/daemon.js';
import type { QemuProcess } from '../src/qemu/process.js';
import type { Shadow } from '../src/shadow/shadow.js';

/** between: no epoch is under way. See src/protect/epoch.ts for the others. */
export type Phase = 'between' | 'pre-copy' | 'pause' | 'commit';

/** Until the first ones are measured. */
const LENGTH_MS_DEFAULT = { 'pre-copy': 6, pause: 1, commit: 4 };
const ENTER_TIMEOUT_MS = 5000;
const POLL_MS = 1;

export class EpochPhases {
  private stoppedAtNs = 0n;
  private resumedAtNs = 0n;
  private committedAtNs = 0n;
  /** When the epoch begins that no guest was stopped for yet. */
  private dueAtMs = Number.POSITIVE_INFINITY;
  private begun = false;
  private readonly lengthMs = { ...LENGTH_MS_DEFAULT };
  private readonly off: () => void;
  private readonly timer: NodeJS.Timeout;
  private listeners: { event: 'STOP' | 'RESUME' | 'begin'; call: () => void }[] = [];

  constructor(
    primary: QemuProcess,
    private readonly shadow: () => Shadow | null,
  ) {
    this.off = primary.qmp.onEvent(({ event }) => {
      if (event === 'STOP') {
        this.stoppedAtNs = process.hrtime.bigint();
        if (nowMs() > this.dueAtMs) this.lengthMs['pre-copy'] = nowMs() - this.dueAtMs;
        this.dueAtMs = Number.POSITIVE_INFINITY;
        this.begun = false;
      } else if (event === 'RESUME') {
        this.resumedAtNs = process.hrtime.bigint();
        this.lengthMs.pause = Number(this.resumedAtNs - this.stoppedAtNs) / 1e6;
      } else return;
      this.tell(event);
    });
    this.timer = setInterval(() => this.poll(), POLL_MS);
  }

  now(): Phase {
    if (this.stoppedAtNs > this.resumedAtNs) return 'pause';
    if (this.committing) return 'commit';
    return nowMs() > this.dueAtMs ? 'pre-copy' : 'between';
  }

  /** Resolves `within` of its usual length into the next such phase. If none comes, after some seconds all the same. */
  async enter(phase: 'pre-copy' | 'pause' | 'commit', within: number): Promise<void> {
    const event = { 'pre-copy': 'begin', pause: 'STOP', commit: 'RESUME' } as const;
    const lengthMs = this.lengthMs[phase];
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ENTER_TIMEOUT_MS);
      this.listeners.push({
        event: event[phase],
        call: () => {
          clearTimeout(timer);
          resolve();
        },
      });
    });
    await sleepPrecisely(within * lengthMs);
  }

  close(): void {
    this.off();
    clearInterval(this.timer);
  }

  private poll(): void {
    const shadow = this.shadow();
    const cutAtNs = shadow?.committed?.cutAtNs ?? 0n;
    if (shadow !== null && cutAtNs !== this.committedAtNs) {
      // Nothing tells that an epoch begins; but each does when the interval since the last commit is over.
      this.committedAtNs = cutAtNs;
      this.dueAtMs = nowMs() + shadow.view().intervalMs;
    }
    if (!this.begun && this.now() === 'pre-copy') {
      this.begun = true;
      this.tell('begin');
    }
    if (this.committing) this.lengthMs.commit = Number(process.hrtime.bigint() - this.resumedAtNs) / 1e6;
  }

  private tell(event: 'STOP' | 'RESUME' | 'begin'): void {
    const listeners = this.listeners;
    this.listeners = listeners.filter((listener) => listener.event !== event);
    for (const { event: wanted, call } of listeners) if (wanted === event) call();
  }

  /** The guest runs again and its epoch is not committed yet. */
  private get committing(): boolean {
    return this.resumedAtNs > this.stoppedAtNs && (this.shadow()?.committed?.cutAtNs ?? 0n) < this.stoppedAtNs;
  }
}

/** A timer's millisecond is as long as a phase; the rest is waited in turns of the event loop, which goes on meanwhile. */
export async function sleepPrecisely(ms: number): Promise<void> {
  const untilMs = nowMs() + ms;
  if (ms > 3) await sleep(ms - 2);
  while (nowMs() < untilMs) await new Promise((resolve) => setImmediate(resolve));
}
