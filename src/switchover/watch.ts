/** Observes one primary, gathers what the detector needs, and calls back once when it is dead. */

import fs from 'node:fs';
import { monotonicMs } from '../clock.js';
import { processState } from '../host/process-stat.js';
import type { QemuProcess } from '../qemu/process.js';
import type { Probe, ProbeView } from '../vm/probe.js';
import { DETECTOR_LIMITS, type DeathCause, judge } from './detector.js';
import { Prober, type ProberOptions } from './prober.js';

export interface Death {
  cause: DeathCause;
  evidence: string;
  /** CLOCK_MONOTONIC ns of the decision. */
  decidedAtNs: bigint;
  /** Where its probes told of it: when they last found the guest well. Epochs since then may hold the failure. */
  wellAtMs?: number | null;
}

export interface FailureWatchOptions {
  primary: QemuProcess;
  /** The guest's pauses for epochs so far, ms, the one under way included. */
  pausedTotalMs: () => number;
  /** Freshly promoted: it is to beat from now on, and not only after a first heartbeat. */
  promoted: boolean;
  /** Whether a shadow could take over now, and would wake up well. */
  canTakeOver: (cause: DeathCause) => boolean;
  onDeath: (death: Death) => void;
  /** It hangs and nothing could take over. It is left alone, since it may recover; told once for each silence. */
  onHang: (evidence: string) => void;
  /** The guest ended as it had announced; no failure. */
  onShutdown: (how: 'poweroff' | 'reboot') => void;
  /** Silence began or ended without a death: for the event log. */
  onSuspicion?: (silentMs: number) => void;
  /** What the user declared to be asked of the guest, and how. */
  probes?: {
    declared: readonly Probe[];
    call: ProberOptions['call'];
    onHealth: ProberOptions['onHealth'];
  };
}

const TICK_MS = 20;
/** A tick that comes later than this was held up, and so was everything that would have been heard meanwhile. */
const LATE_TICK_MS = 20;
/** Silence from which on QEMU's waiting for a CPU is measured; before that it could not matter. */
const MEASURE_AFTER_MS = 100;

const HANGS: ReadonlySet<DeathCause> = new Set(['process-stopped', 'qemu-hung', 'guest-hung', 'probe-failed']);

export class FailureWatch {
  private readonly timer: NodeJS.Timeout;
  private readonly offEvents: () => void;
  private lastTickMs = monotonicMs();
  private lateMs = 0;
  private unannouncedReset = false;
  private monitorEnded = false;
  private processDied = false;
  private askedAtMs: number | null = null;
  private ended = false;
  private suspected = false;
  /** Hangs that were told and go on. */
  private readonly told = new Set<DeathCause>();
  private readonly prober: Prober;
  /** Baselines at the last beat (late time, pauses) and at the begin of the measured silence (waiting for CPUs). */
  private beats = 0;
  private lateAtBeatMs = 0;
  private pausedAtBeatMs = 0;
  private threadsAtSilence: { atMs: number; threads: Threads } | null = null;
  private lastBeatMs: number | null = null;

  constructor(private readonly options: FailureWatchOptions) {
    const { primary } = options;
    if (options.promoted) this.lastBeatMs = monotonicMs();
    this.prober = new Prober({
      probes: options.probes?.declared ?? [],
      call: options.probes?.call ?? (() => Promise.resolve({ kind: 'unknown' })),
      onHealth: options.probes?.onHealth ?? (() => {}),
      nowMs: monotonicMs,
      excuses: () => this.excuses(),
    });
    void primary.died.then(() => {
      // What QEMU last said is in our sockets already, and tells whether its guest reset it. One turn of the loop, well
      // below a millisecond, and it has been read.
      setImmediate(() => {
        this.processDied = true;
        this.conclude();
      });
    });
    this.offEvents = primary.qmp.onEvent(({ event, data }) => {
      if (event === 'GUEST_PANICKED') this.unannouncedReset = true;
      if (event !== 'SHUTDOWN' || data?.guest !== true) return this.conclude();
      // With -no-reboot a reset ends QEMU. Whether it was wanted, the agent has said on its own channel.
      // It is the agent's announcement that was made first: it has been read by now or was never made.
      const { bye } = primary.agent;
      if (bye !== null) this.endWithShutdown(bye);
      // Power is switched off by who means it (`poweroff -f`), never by a kernel that fails: that one resets.
      else if (data.reason === 'guest-shutdown') this.endWithShutdown('poweroff');
      else this.unannouncedReset = true;
      this.conclude();
    });
    void primary.qmp.closed.then(() => {
      // Also what the end of an announced shutdown looks like; its event came first.
      this.monitorEnded = true;
      // The kernel marks the futex of a killed process before it closes its sockets. On a busy host the thread that
      // waits for that may not have run yet, but the word is there to be read.
      if (primary.hasDied) this.processDied = true;
      setImmediate(() => this.conclude());
    });
    this.timer = setInterval(() => this.tick(), TICK_MS);
  }

  /** Nothing is called back after this. */
  close(): void {
    this.ended = true;
    clearInterval(this.timer);
    this.offEvents();
    this.prober.close();
  }

  probes(): ProbeView[] {
    return this.prober.views();
  }

  private endWithShutdown(how: 'poweroff' | 'reboot'): void {
    if (this.ended) return;
    this.close();
    this.options.onShutdown(how);
  }

  private tick(): void {
    const nowMs = monotonicMs();
    const lateMs = nowMs - this.lastTickMs - TICK_MS;
    if (lateMs > LATE_TICK_MS) this.lateMs += lateMs;
    this.lastTickMs = nowMs;
    this.prober.tick();
    // A guest that beats can fail its probes.
    if (this.prober.failure === null) this.told.delete('probe-failed');
    else this.conclude();
    const { agent } = this.options.primary;
    if (agent.beats !== this.beats) {
      this.beats = agent.beats;
      this.lastBeatMs = Number(agent.last?.atNs ?? 0n) / 1e6;
      this.lateAtBeatMs = this.lateMs;
      this.pausedAtBeatMs = this.options.pausedTotalMs();
      this.threadsAtSilence = null;
      if (this.suspected) this.options.onSuspicion?.(0);
      this.suspected = false;
      for (const cause of this.told) if (cause !== 'probe-failed') this.told.delete(cause);
      return;
    }
    if (this.lastBeatMs === null || nowMs - this.lastBeatMs < MEASURE_AFTER_MS) return;
    this.threadsAtSilence ??= { atMs: nowMs, threads: readThreads(this.options.primary.pid) };
    this.conclude();
  }

  private conclude(): void {
    if (this.ended) return;
    const nowMs = monotonicMs();
    const { primary } = this.options;
    const silent = this.lastBeatMs !== null && nowMs - this.lastBeatMs >= MEASURE_AFTER_MS;
    // Announced on the other channel, and QEMU was quicker to end than its event to arrive.
    if ((this.processDied || this.monitorEnded) && primary.agent.bye !== null) {
      this.endWithShutdown(primary.agent.bye);
      return;
    }
    const { failure } = this.prober;
    const verdict = judge({
      nowMs,
      processDied: this.processDied,
      monitorEnded: this.monitorEnded,
      unannouncedReset: this.unannouncedReset,
      lastBeatMs: this.lastBeatMs,
      qmpUnansweredSinceMs: this.askedAtMs,
      processState: silent ? processState(primary.pid) : null,
      excusedMs: silent ? this.excusedMs() : 0,
      probeFailure: failure?.evidence ?? null,
    });
    switch (verdict.kind) {
      case 'alive':
        return;
      case 'suspect':
        if (!this.suspected) this.options.onSuspicion?.(verdict.silentMs);
        this.suspected = true;
        this.ask(nowMs);
        return;
      case 'dead': {
        // The process lives: to end it with nothing in its place would make of a hang a death.
        if (HANGS.has(verdict.cause) && !this.options.canTakeOver(verdict.cause)) {
          if (!this.told.has(verdict.cause)) this.options.onHang(verdict.evidence);
          this.told.add(verdict.cause);
          this.ask(nowMs);
          return;
        }
        const decidedAtNs = process.hrtime.bigint();
        this.close();
        const { cause, evidence } = verdict;
        this.options.onDeath({
          ...{ cause, evidence, decidedAtNs },
          ...(cause === 'probe-failed' ? { wellAtMs: failure?.wellAtMs ?? null } : {}),
        });
      }
    }
  }

  private excusedMs(): number {
    const { primary, pausedTotalMs } = this.options;
    const since = this.threadsAtSilence;
    const waitedMs =
      since === null ? 0 : longestWaitMs(since.threads, readThreads(primary.pid), monotonicMs() - since.atMs);
    // One pause is excused up to what an epoch may take; a `stop` that never ends is a hang and not a pause. A shadow
    // made anew begins to count from 0: no excuse is less than none.
    const pausedSinceBeatMs = Math.max(0, pausedTotalMs() - this.pausedAtBeatMs);
    const pausedMs = Math.min(pausedSinceBeatMs, DETECTOR_LIMITS.suspectAfterMs / 2);
    return this.lateMs - this.lateAtBeatMs + pausedMs + waitedMs;
  }

  /** From now on: what explains that the guest answers later, or not. */
  private excuses(): () => number {
    const { primary, pausedTotalMs } = this.options;
    const begin = {
      atMs: monotonicMs(),
      lateMs: this.lateMs,
      pausedMs: pausedTotalMs(),
      threads: readThreads(primary.pid),
    };
    return () => {
      const waitedMs = longestWaitMs(begin.threads, readThreads(primary.pid), monotonicMs() - begin.atMs);
      return this.lateMs - begin.lateMs + Math.max(0, pausedTotalMs() - begin.pausedMs) + waitedMs;
    };
  }

  private ask(nowMs: number): void {
    if (this.askedAtMs !== null) return;
    this.askedAtMs = nowMs;
    this.options.primary.qmp.execute('query-status', undefined, { timeoutMs: 60_000 }).then(
      () => {
        this.askedAtMs = null;
      },
      () => {}, // closed: told by `closed`
    );
  }
}

export interface ThreadTimes {
  /** "R" runs or wants to, "D" waits in the kernel for a disk or for memory, "S" sleeps, "T" is stopped. */
  state: string;
  /** How long it has ever run. */
  ranMs: number;
  /** How long it has ever waited for a CPU while it could run; the kernel adds a wait when it is over. */
  waitedMs: number;
}
/** By thread id. */
export type Threads = ReadonlyMap<string, ThreadTimes>;

function readThreads(pid: number): Threads {
  const threads = new Map<string, ThreadTimes>();
  try {
    for (const tid of fs.readdirSync(`/proc/${pid}/task`)) {
      const [ranNs, waitedNs] = fs.readFileSync(`/proc/${pid}/task/${tid}/schedstat`, 'utf8').split(' ');
      const state = processState(pid, Number(tid)) ?? '';
      threads.set(tid, { state, ranMs: Number(ranNs) / 1e6, waitedMs: Number(waitedNs) / 1e6 });
    }
  } catch {
    // a thread ended between the reads; the others count
  }
  return threads;
}

/**
 * The longest that one thread was kept waiting by the host between two readings, `elapsedMs` apart: one starved vCPU, or
 * a starved main loop, is enough to silence the guest. Each thread is compared with itself, since the one that has
 * waited longest in its life, mostly a vCPU, need not be the one that waits now.
 *
 * A wait that is not over is in no counter: a thread that wants to run, or sits in the kernel for the host's disk or
 * memory, has waited for all of the time in which it did not run. (One that spins has run, and is not excused.)
 */
export function longestWaitMs(before: Threads, now: Threads, elapsedMs: number): number {
  let longest = 0;
  for (const [tid, thread] of now) {
    const then = before.get(tid) ?? { ranMs: 0, waitedMs: 0 };
    const over = thread.waitedMs - then.waitedMs;
    const waits = thread.state === 'R' || thread.state === 'D';
    longest = Math.max(longest, over, waits ? elapsedMs - (thread.ranMs - then.ranMs) : 0);
  }
  return longest;
}
