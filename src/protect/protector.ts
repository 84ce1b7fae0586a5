/** Keeps one shadow close behind one primary: the first copy, then epoch after epoch, paced. */
import { monotonicMs } from '../clock.js';
import { EpochSource, type GuestRam } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { PacingLimits } from '../vm/spec.js';
import type { Quantiles } from '../vm/view.js';
import { type CutEpoch, cutEpoch, endsProtection, needsResync } from './epoch.js';
import { type EpochCost, nextIntervalMs, smoothCost } from './pacing.js';
import { Samples } from './samples.js';

/** What a promotion starts from. */
export interface CommittedEpoch {
  epoch: number;
  cutAtNs: bigint;
  deviceState: Buffer;
}

export interface ProtectionStats {
  pauseMs: Quantiles;
  lagMsAtCommit: Quantiles;
  pagesScanned: number;
  pagesChanged: number;
  pagesDroppedByChecksum: number;
  bytesCopied: number;
  epochsAborted: number;
  intervalMs: number;
}

export interface ProtectorEvents {
  /** The first epoch is committed: the shadow can be promoted from now on. */
  ready(): void;
  /** An epoch did not become whole; the next one will try again. */
  aborted(error: unknown): void;
  /** The shadow can not be kept: it must be made anew. Called at most once. */
  lost(error: unknown): void;
}

/** So many aborted epochs in a row mean that something is wrong which waiting will not mend. */
const ABORTS_IN_A_ROW_MAX = 8;
/** What a pass costs the event loop and QEMU's monitor, on top of the native work; measured. */
const EPOCH_OVERHEAD_CPU_MS = 1.5;
const PAGE_BYTES = 4096;
/**
 * Epochs that may be cut while no heartbeat comes, and be taken back: a guest that hangs or panics is otherwise copied
 * in that state, and its shadow would wake up as dead as it is.
 */
const UNCONFIRMED_MAX = 2;
const CONFIRMATION_POLL_MS = 10;

export class Protector {
  private readonly source: EpochSource;
  private readonly pauses = new Samples();
  private readonly lags = new Samples();
  private cost: EpochCost | null = null;
  private pagesScanned = 0;
  private pagesChanged = 0;
  private pagesDropped = 0;
  private pagesCopied = 0;
  private aborts = 0;
  private abortsInARow = 0;
  private intervalMs = 0;
  private stopping = false;
  private epochUnderWay = false;
  private wake: (() => void) | undefined;
  private loop: Promise<void> | undefined;
  /** Since when the guest stands still for an epoch, CLOCK_MONOTONIC ms; null while it runs. */
  pausedSinceMs: number | null = null;
  /** All the time it stood still before; the sum of both only grows. */
  pausedTotalMs = 0;
  /** The epochs that a promotion can start from, newest last: at most UNCONFIRMED_MAX older ones can be gone back to. */
  private history: CommittedEpoch[] = [];
  private heldUntilMs = 0;
  /** What the last epoch said of the VM. */
  private quiet = false;

  /** @throws a native failure (ERR_NOT_TRACKED) when `tracking` is not possible on this primary */
  constructor(
    private readonly primary: QemuProcess,
    private readonly shadowRam: GuestRam,
    readonly tracking: 'write' | 'checksum',
    private pacing: PacingLimits,
    private readonly events: ProtectorEvents,
  ) {
    this.source = new EpochSource({ ram: primary.ram, control: primary.control, pid: primary.pid, tracking });
  }

  /** Begins with a full copy, or goes on after a halt(). */
  start(): void {
    this.stopping = false;
    this.loop = this.run();
  }

  /**
   * Ends the loop and waits for the epoch under way: one that is being committed becomes whole, one that is being cut
   * is given up. Fast when the primary is dead or its QMP connection destroyed. Idempotent.
   */
  async halt(): Promise<void> {
    this.stopping = true;
    this.wake?.();
    await this.loop;
  }

  /** After halt(): a last epoch whose guest stays stopped, for a switchover that loses nothing. */
  async handOver(): Promise<void> {
    await this.halt();
    const work = cutEpoch(this.primary, this.source, true).then((cut) => this.commit(cut, monotonicMs()));
    // A primary that dies under our hands calls for a halt() in the middle of this: it must wait for the commit.
    this.loop = work.catch(() => {});
    await work;
  }

  async close(): Promise<void> {
    await this.halt();
    this.source.close();
  }

  get committed(): CommittedEpoch | null {
    return this.history.at(-1) ?? null;
  }

  /**
   * After halt(): takes back the epochs that were cut after the guest's last heartbeat. Resolves with their number; the
   * newest one that is left shows the guest as it still lived.
   */
  async rewindToConfirmed(): Promise<number> {
    const count = Math.min(this.unconfirmed(), this.history.length - 1);
    if (count <= 0) return 0;
    await this.source.rewind(this.shadowRam, count);
    this.history = this.history.slice(0, -count);
    return count;
  }

  hasConfirmedEpoch(): boolean {
    return this.history.length > this.unconfirmed();
  }

  /** Cuts no epoch for a while, and waits for the one under way. */
  async hold(ms: number): Promise<void> {
    this.heldUntilMs = monotonicMs() + ms;
    while (this.epochUnderWay && !this.stopping) await this.sleepFor(1);
  }

  /** How many epochs, counted from the newest, no heartbeat has come after. */
  private unconfirmed(): number {
    const lastBeatNs = this.primary.agent.last?.atNs ?? 0n;
    return this.history.filter(({ cutAtNs }) => cutAtNs >= lastBeatNs).length;
  }

  /** Age of the newest committed epoch. */
  lagMs(nowNs = process.hrtime.bigint()): number | null {
    return this.committed === null ? null : Number(nowNs - this.committed.cutAtNs) / 1e6;
  }

  stats(): ProtectionStats {
    return {
      pauseMs: this.pauses.quantiles(),
      lagMsAtCommit: this.lags.quantiles(),
      pagesScanned: this.pagesScanned,
      pagesChanged: this.pagesChanged,
      pagesDroppedByChecksum: this.pagesDropped,
      bytesCopied: this.pagesCopied * PAGE_BYTES,
      epochsAborted: this.aborts,
      intervalMs: this.intervalMs,
    };
  }

  private async run(): Promise<void> {
    if (this.committed === null) {
      try {
        const first = await this.source.sync(this.shadowRam);
        this.pagesCopied += first.changedPages;
      } catch (error) {
        if (!this.stopping) this.events.lost(error);
        return;
      }
    }
    while (!this.stopping) {
      if (this.unconfirmed() >= UNCONFIRMED_MAX || monotonicMs() < this.heldUntilMs) {
        await this.sleep(CONFIRMATION_POLL_MS);
        continue;
      }
      const startedMs = monotonicMs();
      this.epochUnderWay = true;
      try {
        const cut = await cutEpoch(this.primary, this.source, false, (paused) => this.notePause(paused), this.quiet);
        await this.commit(cut, startedMs);
        this.abortsInARow = 0;
        if (this.committed?.epoch === 1) this.events.ready();
      } catch (error) {
        if (this.stopping) return;
        this.quiet = false; // the next epoch has the pages of two
        this.aborts++;
        this.abortsInARow++;
        if (endsProtection(error)) return; // the detector's business
        if (needsResync(error) || this.abortsInARow >= ABORTS_IN_A_ROW_MAX) return this.events.lost(error);
        this.events.aborted(error);
      } finally {
        this.epochUnderWay = false;
      }
      // After an abort at least the usual pause's worth of running time, doubling.
      const backoffMs = this.abortsInARow === 0 ? 0 : 50 * 2 ** Math.min(this.abortsInARow, 6);
      this.intervalMs = Math.max(backoffMs, this.cost === null ? 0 : nextIntervalMs(this.cost, this.pacing));
      await this.sleep(this.intervalMs);
    }
  }

  private notePause(paused: boolean): void {
    const nowMs = monotonicMs();
    if (this.pausedSinceMs !== null) this.pausedTotalMs += nowMs - this.pausedSinceMs;
    this.pausedSinceMs = paused ? nowMs : null;
  }

  private async commit(cut: CutEpoch, startedMs: number): Promise<void> {
    const lagMs = this.lagMs();
    const result = await this.source.commit(this.shadowRam, UNCONFIRMED_MAX);
    // Whole from here on: pages applied, device state of the same cut.
    const previous = this.committed;
    const committed = { epoch: (previous?.epoch ?? 0) + 1, cutAtNs: cut.cutAtNs, deviceState: cut.deviceState };
    this.history = [...this.history.slice(-UNCONFIRMED_MAX), committed];

    this.quiet = cut.quiet;
    this.pauses.add(cut.pauseMs);
    if (lagMs !== null) this.lags.add(lagMs + result.ms);
    this.pagesScanned += cut.scannedPages;
    this.pagesCopied += cut.copiedPages;
    this.pagesChanged += result.changedPages;
    this.pagesDropped += result.droppedPages;
    if (previous === null) return; // the first epoch carries what changed during the copy: no measure for others
    const epochMs = monotonicMs() - startedMs;
    const sinceLastCutMs = Number(cut.cutAtNs - previous.cutAtNs) / 1e6;
    this.cost = smoothCost(this.cost, {
      pauseMs: cut.pauseMs,
      cpuMs: cut.cpuMs + result.cpuMs + EPOCH_OVERHEAD_CPU_MS,
      epochMs,
      dirtyPagesPerSecond: (result.changedPages / Math.max(sinceLastCutMs, 1)) * 1000,
    });
  }

  private sleepFor(ms: number): Promise<void> {
    return new Promise((resolve) => setTimeout(resolve, ms));
  }

  /** Ended early by halt(); no sleep at all when halt() came first, in the middle of an epoch. */
  private sleep(ms: number): Promise<void> {
    if (this.stopping) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
