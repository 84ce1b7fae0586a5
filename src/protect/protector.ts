/** Keeps one shadow image close behind one primary: a first comparison, then epoch after epoch, paced. */
import { monotonicMs } from '../clock.js';
import type { DiskProtection } from '../disk/disk-protection.js';
import type { ShadowImage } from '../native/image.js';
import { type CommitOrder, type CommitResult, EpochSource, type ResidentRam } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { Durability, PacingLimits } from '../vm/spec.js';
import type { Quantiles } from '../vm/view.js';
import { type CutEpoch, cutEpoch, endsProtection, lacksRoom, needsResync } from './epoch.js';
import { type Leaving, mayHaveLeft } from './leaving.js';
import type { OutputHold } from './output-hold.js';
import { type EpochCost, isDueStrict, lookAgainMs, nextIntervalMs, smoothCost } from './pacing.js';
import { Samples } from './samples.js';

/** What a promotion starts from. */
export interface CommittedEpoch {
  epoch: number;
  cutAtNs: bigint;
  /** The same by the host's wall clock. */
  cutAtMs: number;
  deviceState: Buffer;
}

export interface ProtectorOptions {
  primary: QemuProcess;
  /** Open for appending; this protector is the only one that does. */
  image: ShadowImage;
  generation: number;
  tracking: 'write' | 'checksum';
  pacing: PacingLimits;
  durability: Durability;
  /** The epoch of the image that the primary woke up from; null when it did not. */
  from: CommittedEpoch | null;
  /** Every write since the primary was what the image holds is still to be reported: nothing has to be compared. */
  followed: boolean;
  /** Not attached yet; closed with this protector. */
  disks?: DiskProtection;
  /** The waiting QEMU whose resident pages are kept fresh; null when there is none. Asked at each commit. */
  resident: () => ResidentRam | null;
  /** What holds the packets of a VM in strict mode; null in async mode. Asked at each epoch. */
  output: () => OutputHold | null;
  events: ProtectorEvents;
}

export interface ProtectionStats {
  pauseMs: Quantiles;
  lagMsAtCommit: Quantiles;
  pagesScanned: number;
  pagesChanged: number;
  pagesDroppedByChecksum: number;
  diskPagesChanged: number;
  /** Differed from the shadow although no write had been reported; found by the scrub and repaired. */
  pagesRepaired: number;
  bytesCopied: number;
  /** What the epochs took in the shadow image. */
  bytesStored: number;
  epochsAborted: number;
  intervalMs: number;
}

export interface ProtectorEvents {
  /** The first epoch is committed: the shadow can be promoted from now on. */
  ready(): void;
  /** An epoch did not become whole; the next one will try again. */
  aborted(error: unknown): void;
  /** The scrub found pages that no write was reported of, and this epoch mended them. */
  repaired(pages: number): void;
  /** The protection can not go on: it must be begun anew. Called at most once. */
  lost(error: unknown): void;
}

/** So many aborted epochs in a row mean that something is wrong which waiting will not mend. */
const ABORTS_IN_A_ROW_MAX = 8;
/** What a pass costs the event loop and QEMU's monitor, on top of the native work; measured. */
const EPOCH_OVERHEAD_CPU_MS = 1.5;
/** For so long after a commit answers are awaited to the tenth of a millisecond, which costs 5 % of a core. */
const ANSWERED_SOON_MS = 20;
const PAGE_BYTES = 4096;
/**
 * Epochs that may be cut while no heartbeat comes, and be taken back: a guest that hangs or panics is otherwise copied
 * in that state, and its shadow would wake up as dead as it is.
 */
const UNCONFIRMED_MAX = 2;
const CONFIRMATION_POLL_MS = 10;
/** 4 MiB a second, below a thousandth of a core: 256 MiB once a minute, 4 GiB in a quarter of an hour. */
const SCRUB_EVERY_MS = 1000;
const SCRUB_PAGES = 1024;

export class Protector {
  private readonly source: EpochSource;
  private readonly pauses = new Samples();
  private readonly lags = new Samples();
  private cost: EpochCost | null = null;
  private pagesScanned = 0;
  /** Differed at the epochs so far. */
  pagesChanged = 0;
  private pagesDropped = 0;
  private diskPagesChanged = 0;
  private pagesCopied = 0;
  private pagesRepaired = 0;
  private bytesStored = 0;
  private aborts = 0;
  private abortsInARow = 0;
  private intervalMs = 0;
  private begun = false;
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
  /** With the newest epoch. */
  private leaving: Leaving = { holds: 0, told: false };
  private heldUntilMs = 0;
  private scrubPage = 0;
  private scrubDueMs = 0;
  /** What the last epoch said of the VM. */
  private quiet: boolean;
  /** The last epoch has something of a disk; before the first one nobody knows. */
  private writesDisks = true;
  private settleFirst!: () => void;
  /** Resolves when the first epoch is committed, or will not be. What can wait gives way to it: somebody may wait for it. */
  readonly firstEpoch = new Promise<void>((resolve) => {
    this.settleFirst = resolve;
  });

  /** @throws a native failure (ERR_NOT_TRACKED) when `tracking` is not possible on this primary */
  constructor(private readonly options: ProtectorOptions) {
    const { primary, tracking, image, from } = options;
    const { ram, control, pid } = primary;
    this.source = new EpochSource({ ram, control, pid, tracking, image: image.native });
    if (from !== null) this.history = [from];
    // One that woke up a moment ago has written little since.
    this.quiet = options.followed;
  }

  /** Begins, or goes on after a halt(). */
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
    this.settleFirst();
    this.wake?.();
    await this.loop;
  }

  /** After halt(): a last epoch whose guest stays stopped, for a switchover that loses nothing. */
  async handOver(): Promise<void> {
    await this.halt();
    const work = this.cut(null).then(async (cut) => {
      await this.commit(cut, monotonicMs(), null);
      // All that the guest has ever sent is of committed epochs now; it leaves before anybody else speaks for it.
      const output = this.options.output();
      output?.releaseAll();
      await output?.released();
    });
    // A primary that dies under our hands calls for a halt() in the middle of this: it must wait for the commit.
    this.loop = work.catch(() => {});
    await work;
  }

  async close(): Promise<void> {
    await this.halt();
    this.source.close();
    this.options.disks?.close();
  }

  get committed(): CommittedEpoch | null {
    return this.history.at(-1) ?? null;
  }

  /** The newest epoch that a heartbeat came after: it shows a guest that lived. null when there is none. */
  newestConfirmed(): number | null {
    return this.history.at(-1 - this.unconfirmed())?.epoch ?? null;
  }

  /**
   * Of a primary that has died: the newest epoch whose output has left, or may have. The one after it promised nothing to
   * anybody, but its guest believes that it has answered, and would say so again only after 200 ms. null before the first.
   */
  newestSent(): number | null {
    const { primary, output } = this.options;
    const [before, newest] = [this.history.at(-2), this.history.at(-1)];
    if (before === undefined || newest === undefined) return newest?.epoch ?? null;
    const heldMs = Number(process.hrtime.bigint() - before.cutAtNs) / 1e6;
    const left = mayHaveLeft(this.leaving, output()?.kept ?? 0, primary.control.unreleasedHolds(), heldMs);
    return (left ? newest : before).epoch;
  }

  /** After halt(): the image goes back to `to`, one of its epochs, and the later ones are given up. */
  async rewind(to: CommittedEpoch): Promise<void> {
    await this.source.rewind(to.epoch, this.options.resident(), this.options.disks?.twins);
    this.history = [to];
    this.leaving = { holds: 0, told: false };
  }

  /** One of the newest epochs; undefined for one that is older, or none. */
  recall(epoch: number): CommittedEpoch | undefined {
    return this.history.find((each) => each.epoch === epoch);
  }

  /** After halt(): the shadow's disks are what the image's head holds. @throws what keeps them from that */
  async completeDisks(): Promise<void> {
    await this.options.disks?.complete(this.source);
  }

  /** Cuts no epoch for a while, and waits for the one under way. */
  async hold(ms: number): Promise<void> {
    this.heldUntilMs = monotonicMs() + ms;
    while (this.epochUnderWay && !this.stopping) await this.sleepFor(1);
  }

  /** How many epochs, counted from the newest, no sign of life has come after. */
  private unconfirmed(): number {
    const lastSignNs = this.options.primary.agent.lastSignAtNs ?? 0n;
    return this.history.filter(({ cutAtNs }) => cutAtNs >= lastSignNs).length;
  }

  /** Age of the newest committed epoch. */
  lagMs(nowNs = process.hrtime.bigint()): number | null {
    return this.committed === null ? null : Number(nowNs - this.committed.cutAtNs) / 1e6;
  }

  /** Memory that finding and staging changed pages takes. */
  memoryBytes(): number {
    return this.source.memoryBytes();
  }

  stats(): ProtectionStats {
    return {
      pauseMs: this.pauses.quantiles(),
      lagMsAtCommit: this.lags.quantiles(),
      pagesScanned: this.pagesScanned,
      pagesChanged: this.pagesChanged,
      pagesDroppedByChecksum: this.pagesDropped,
      diskPagesChanged: this.diskPagesChanged,
      pagesRepaired: this.pagesRepaired,
      bytesCopied: this.pagesCopied * PAGE_BYTES,
      bytesStored: this.bytesStored,
      epochsAborted: this.aborts,
      intervalMs: this.intervalMs,
    };
  }

  private async run(): Promise<void> {
    const { events, pacing } = this.options;
    try {
      await this.begin();
    } catch (error) {
      this.settleFirst();
      if (!this.stopping) events.lost(error);
      return;
    }
    if (this.options.from !== null) await this.sleepUntilDue();
    while (!this.stopping) {
      if (this.unconfirmed() >= UNCONFIRMED_MAX || monotonicMs() < this.heldUntilMs) {
        await this.sleep(CONFIRMATION_POLL_MS);
        continue;
      }
      const startedMs = monotonicMs();
      this.epochUnderWay = true;
      try {
        const first = this.committed === null;
        const output = this.options.output();
        const cut = await this.cut({ output });
        const released = await this.commit(cut, startedMs, output);
        if (released) output?.commit(cut.hold, true);
        else if (output !== null) await this.release(output, cut);
        this.abortsInARow = 0;
        if (first) events.ready();
        await this.scrub();
        await this.options.disks?.advance(this.source);
      } catch (error) {
        if (this.stopping) return;
        this.quiet = false; // the next epoch has the pages of two
        this.aborts++;
        this.abortsInARow++;
        if (endsProtection(error)) return; // the detector's business
        const hopeless = this.abortsInARow >= ABORTS_IN_A_ROW_MAX && !lacksRoom(error);
        if (hopeless || needsResync(error)) return events.lost(error);
        events.aborted(error);
      } finally {
        this.epochUnderWay = false;
        this.settleFirst();
      }
      // After an abort at least the usual pause's worth of running time, doubling.
      const backoffMs = this.abortsInARow === 0 ? 0 : 50 * 2 ** Math.min(this.abortsInARow, 6);
      this.intervalMs = Math.max(backoffMs, this.cost === null ? 0 : nextIntervalMs(this.cost, pacing));
      await this.sleepUntilDue();
    }
  }

  /** What was sent before the cut leaves, once a heartbeat has come after it: a guest at fault goes back to before. */
  private async release(output: OutputHold, cut: CutEpoch): Promise<void> {
    while (cut.hold !== null && this.unconfirmed() > 0) {
      if (this.stopping || this.options.output() !== output) return;
      const { agent } = this.options.primary;
      const maySoon = await Promise.race([agent.nextSign(), this.sleep(CONFIRMATION_POLL_MS).then(() => true)]);
      if (!maySoon) return; // nor of the epochs to come: its death is about to be told
    }
    this.leaving.told = true;
    output.commit(cut.hold);
  }

  private async sleepUntilDue(): Promise<void> {
    const { output, pacing } = this.options;
    const sinceMs = monotonicMs();
    // In async mode, and after an abort, a time; in strict mode what the guest sends.
    if (output()?.isActive !== true || this.abortsInARow > 0) return this.sleep(this.intervalMs);
    for (let nowMs = sinceMs; !this.stopping; nowMs = monotonicMs()) {
      const hold = output();
      if (hold === null || isDueStrict(nowMs - sinceMs, hold.waiting(nowMs), this.cost, pacing)) break;
      const lookMs = lookAgainMs(hold.silentMs(nowMs));
      const expected = nowMs - sinceMs < ANSWERED_SOON_MS ? hold.expected() : null;
      if (expected === null) await this.sleep(lookMs);
      // Whoever got an answer and asks at once again is not to wait for the event loop's next millisecond. It fails where a
      // guest says that its ring is where it has no memory.
      else {
        const { offset, count, vcpus } = expected;
        await this.source.awaitAnswers(offset, count, vcpus, lookMs).catch(() => this.sleep(lookMs));
      }
    }
    this.intervalMs = monotonicMs() - sinceMs;
  }

  /** Makes sure that every difference between primary and image will be in the next epoch. Once only. */
  private async begin(): Promise<void> {
    if (this.begun) return;
    await this.options.disks?.attach(this.source);
    if (this.options.followed) {
      await this.source.follow();
    } else {
      // What is not filled yet is what the guest woke up from, and that need not be this image.
      await this.options.primary.filled;
      const first = await this.source.sync();
      this.pagesScanned += first.scannedPages;
      this.pagesCopied += first.copiedPages;
    }
    this.begun = true;
  }

  /** A little of the RAM is compared with the image once in a while: what no scan reported would stay wrong for ever. */
  private async scrub(): Promise<void> {
    const nowMs = monotonicMs();
    if (nowMs < this.scrubDueMs) return;
    this.scrubDueMs = nowMs + SCRUB_EVERY_MS;
    this.scrubPage = (await this.source.scrub(this.scrubPage, SCRUB_PAGES)).nextPage;
  }

  private notePause(paused: boolean): void {
    const nowMs = monotonicMs();
    if (this.pausedSinceMs !== null) this.pausedTotalMs += nowMs - this.pausedSinceMs;
    this.pausedSinceMs = paused ? nowMs : null;
  }

  /** @param running null for a last epoch that leaves the guest stopped */
  private cut(running: { output: OutputHold | null } | null): Promise<CutEpoch> {
    const { primary, disks } = this.options;
    const flush = async () => (this.writesDisks && disks !== undefined ? disks.flush() : 0);
    if (running === null) return cutEpoch(primary, this.source, true, { flushDisks: flush });
    const { output } = running;
    return cutEpoch(primary, this.source, false, {
      onPause: (paused) => this.notePause(paused),
      quiet: this.quiet,
      output,
      flushDisks: flush,
      commitBehind: (hold) => {
        const order = this.orderOf(hold, output);
        return this.source.commitBehind(order, primary.deviceStateFd, this.options.resident(), disks?.twins);
      },
    });
  }

  private orderOf(hold: string | null, output: OutputHold | null): CommitOrder & { releases: number } {
    const { generation, durability } = this.options;
    // What is to be on the disk before anything leaves is not there yet when it is committed.
    const releases = hold === null || durability === 'epoch' ? 0 : (output?.releasedBy(hold) ?? 0);
    return { generation, holdsOutput: hold !== null, releases };
  }

  /** Asks a guest that was cut for a word, without which nothing leaves, and tells the source, which may be committing by then. */
  private async awaitSign({ cutAtNs }: CutEpoch): Promise<void> {
    const { agent } = this.options.primary;
    agent.ping();
    while (agent.livedAtNs <= cutAtNs) if (!(await agent.nextSign())) return;
    this.source.noteSign(agent.livedAtNs);
  }

  private commitNow({ cutAtMs, cutAtNs, deviceState }: CutEpoch, order: CommitOrder): Promise<CommitResult> {
    const { resident, disks } = this.options;
    return this.source.commit({ ...order, cutAtWallMs: cutAtMs, cutAtNs }, deviceState, resident(), disks?.twins);
  }

  /** @returns whether what had been sent before the cut is let go already */
  private async commit(cut: CutEpoch, startedMs: number, output: OutputHold | null): Promise<boolean> {
    const { image, durability, events } = this.options;
    const order = this.orderOf(cut.hold, output);
    const holds = cut.hold === null ? 0 : (output?.releasedBy(cut.hold) ?? 0);
    const committing = cut.committing === null ? this.commitNow(cut, order) : cut.committing;
    if (order.holdsOutput) void this.awaitSign(cut); // behind it: it has enough to do meanwhile
    const result = (await committing) ?? (await this.commitNow(cut, order));
    const lagMs = this.lagMs();
    if (durability === 'epoch') await image.flush();
    // Whole from here on: pages and device state of the same cut, in one record.
    const previous = this.committed;
    const { cutAtNs, cutAtMs, deviceState } = cut;
    this.history = [...this.history.slice(-UNCONFIRMED_MAX), { epoch: result.epoch, cutAtNs, cutAtMs, deviceState }];

    this.leaving = { holds, told: result.released };
    this.quiet = cut.quiet;
    this.writesDisks = cut.diskPages > 0;
    this.pauses.add(cut.pauseMs);
    if (lagMs !== null) this.lags.add(lagMs);
    this.pagesScanned += cut.scannedPages;
    this.pagesCopied += cut.copiedPages;
    this.pagesChanged += result.changedPages;
    this.pagesDropped += result.droppedPages;
    this.diskPagesChanged += result.diskPages;
    this.bytesStored += result.storedBytes;
    this.pagesRepaired += cut.repairedPages;
    if (cut.repairedPages > 0) events.repaired(cut.repairedPages);
    if (previous === null) return result.released; // the first epoch carries what changed during the comparison: no measure for others
    const epochMs = monotonicMs() - startedMs;
    const sinceLastCutMs = Number(cut.cutAtNs - previous.cutAtNs) / 1e6;
    this.cost = smoothCost(this.cost, {
      pauseMs: cut.pauseMs,
      cpuMs: cut.cpuMs + result.cpuMs + EPOCH_OVERHEAD_CPU_MS,
      epochMs,
      dirtyPagesPerSecond: (result.changedPages / Math.max(sinceLastCutMs, 1)) * 1000,
    });
    return result.released;
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
