/**
 * A shadow: the image that holds the VM's newest epochs, the protector that adds to it, and the standby that waits to
 * take over from it.
 *
 *   starting ──▶ syncing ──▶ ready ◀──▶ behind
 *       └───────────┴──────────┴──────────┴──▶ failed      (whoever owns it makes it anew, on the same image)
 *
 * It can be promoted as soon as its image holds an epoch, whatever its standby is doing at that moment.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../clock.js';
import { DiskProtection, type DiskProtectionOptions } from '../disk/disk-protection.js';
import { messageOf, ShadowVmError } from '../errors.js';
import type { EpochInfo, ImageStats, ShadowImage } from '../native/image.js';
import type { OutputHold } from '../protect/output-hold.js';
import { type CommittedEpoch, Protector } from '../protect/protector.js';
import type { QemuProcess } from '../qemu/process.js';
import type { StandbyLevel, VmSpec } from '../vm/spec.js';
import { formatStandby } from '../vm/standby-text.js';
import type { ShadowState, ShadowView } from '../vm/view.js';
import { readEpoch } from './epochs.js';
import { assessLag } from './lag.js';
import { Standby } from './standby.js';

export interface ShadowOptions {
  spec: VmSpec;
  generation: number;
  primary: QemuProcess;
  level: StandbyLevel;
  /** How the image was a moment ago; null before it is open. */
  imageStats: () => ImageStats | null;
  /** Opens the VM's image, or makes it. */
  openImage: () => Promise<ShadowImage>;
  /** The epoch of the image that the primary woke up from; null when it did not. */
  from: CommittedEpoch | null;
  /** Every write since the primary was what the image holds is still to be reported: nothing has to be compared. */
  followed: boolean;
  /** Nothing that costs CPU time is begun before this: a guest that just woke up needs it. */
  after: Promise<void>;
  disks: Omit<DiskProtectionOptions, 'primary' | 'image'> & {
    /** Makes the shadow's files what the image holds, without a protection that would have them ready. */
    fill: (image: ShadowImage) => Promise<void>;
  };
  /** See ProtectorOptions. */
  output: () => OutputHold | null;
  /** Starts a waiting QEMU. */
  launch: () => Promise<QemuProcess>;
  tracking: 'write' | 'checksum';
  createdBecause: string;
  onWaiting: (qemu: QemuProcess) => void;
  onChange: (state: ShadowState, why: string) => void;
  /** Called at most once, and never after dispose(). */
  onFailed: (why: string) => void;
  onEpochAborted: (why: string) => void;
  onRepaired: (pages: number) => void;
  onStandbyLost: (why: string, retryMs: number) => void;
}

const HEALTH_CHECK_MS = 100;
const STANDBY_AFTER_MS = 250;

export class Shadow {
  state: ShadowState = 'starting';
  private readonly standby: Standby;
  private image: ShadowImage | null = null;
  private protector: Protector | null = null;
  private health: NodeJS.Timeout | undefined;
  private released = false;
  private halted = false;
  private woundBackTo: CommittedEpoch | null = null;
  private started: Promise<void> = Promise.resolve();
  private readonly createdAtMs = monotonicMs();
  private settleReady!: { resolve: () => void; reject: (error: unknown) => void };
  /** Resolves when the first epoch is committed; rejects when the shadow fails before. */
  readonly ready: Promise<void>;

  private constructor(private readonly options: ShadowOptions) {
    this.standby = new Standby({
      level: options.level,
      launch: options.launch,
      onWaiting: options.onWaiting,
      onLost: options.onStandbyLost,
    });
    this.ready = new Promise((resolve, reject) => {
      this.settleReady = { resolve, reject };
    });
    this.ready.catch(() => {}); // who does not wait for it hears of the failure through onFailed
  }

  /** Begins to make a shadow, in the background. */
  static create(options: ShadowOptions): Shadow {
    const shadow = new Shadow(options);
    shadow.started = shadow.start().catch((error: unknown) => shadow.fail(error));
    return shadow;
  }

  /** What a promotion would start from; null before the first epoch. */
  get committed(): CommittedEpoch | null {
    return this.protector?.committed ?? this.woundBackTo ?? this.options.from;
  }

  /** The waiting QEMU, null when none waits now. */
  get qemu(): QemuProcess | null {
    return this.standby.qemu;
  }

  lagMs(): number | null {
    const { committed } = this;
    return committed === null ? null : Number(process.hrtime.bigint() - committed.cutAtNs) / 1e6;
  }

  /** The primary guest's pauses for epochs so far, ms, the one under way included. */
  pausedTotalMs(): number {
    if (this.protector === null) return 0;
    const { pausedTotalMs, pausedSinceMs } = this.protector;
    return pausedTotalMs + (pausedSinceMs === null ? 0 : monotonicMs() - pausedSinceMs);
  }

  get standbyLevel(): StandbyLevel {
    return this.standby.level;
  }

  /** Pages that differed at the epochs so far. */
  get changedPages(): number {
    return this.protector?.pagesChanged ?? 0;
  }

  /** Ends the epochs; the newest whole one stays. See Protector.halt. */
  async halt(): Promise<void> {
    this.halted = true; // also what has not begun yet: the primary may have died before
    clearInterval(this.health);
    await this.protector?.halt();
  }

  /** The newest epoch of the image; 0 when there is none. */
  get headEpoch(): number {
    return this.image?.describe().headEpoch ?? 0;
  }

  /** The epochs that a promotion can start from, oldest first: all of the image's are looked at, some µs each. */
  epochs(): EpochInfo[] {
    return this.image?.epochs() ?? [];
  }

  /** The newest epoch that a heartbeat came after: of a guest that was well when it was cut. null when there is none. */
  newestConfirmed(): number | null {
    return this.protector?.newestConfirmed() ?? null;
  }

  /** See Protector.newestSent. */
  newestSent(): number | null {
    return this.protector?.newestSent() ?? null;
  }

  /** After halt(): the image goes back to an older epoch, and the later ones are given up. @throws EPOCH_NOT_FOUND */
  async rewind(epoch: number): Promise<CommittedEpoch> {
    if (this.image === null) throw this.notReady('its image is not open yet');
    const to = this.protector?.recall(epoch) ?? (await readEpoch(this.image, epoch, this.options.spec.name));
    if (this.protector === null) await this.image.rewind(epoch);
    else await this.protector.rewind(to);
    this.woundBackTo = to;
    return to;
  }

  /** After halt(), with the standby taken: its disks are what the image's head holds. @throws what keeps them from that */
  async completeDisks(): Promise<void> {
    if (this.protector !== null) await this.protector.completeDisks();
    else if (this.image !== null) await this.options.disks.fill(this.image);
  }

  /** See Protector.hold. */
  async hold(ms: number): Promise<void> {
    await this.protector?.hold(ms);
  }

  /** A last epoch that leaves the primary's guest stopped. */
  async handOver(): Promise<void> {
    clearInterval(this.health);
    await this.options.after;
    await this.started;
    if (this.protector === null) throw new Error('a shadow without protector can not be handed over to');
    await this.protector.handOver();
  }

  /** Goes on with the epochs after a hand-over that did not come about. */
  resumeEpochs(): void {
    this.protector?.start();
    this.watchHealth();
  }

  async changeStandby(level: StandbyLevel): Promise<void> {
    await this.standby.change(level);
  }

  /** The QEMU that is to become the primary; one is started when none waits. */
  takeStandby(): Promise<QemuProcess> {
    return this.standby.take();
  }

  /** Ends the shadow and what waits; the image stays. Idempotent. */
  async dispose(): Promise<void> {
    if (this.released) return;
    this.released = true;
    clearInterval(this.health);
    this.settleReady.reject(this.notReady('it was removed before it was ready'));
    await this.started; // what is still coming up ends as soon as it has
    await this.protector?.close();
    await this.standby.dispose();
  }

  /** What this shadow takes of the host's memory, beside the waiting QEMU itself. Looks at every file of the image. */
  async memoryBytes(): Promise<number> {
    const image = await this.image?.stats();
    const logBytes = (image?.indexBytes ?? 0) + (image?.pageCacheBytes ?? 0);
    return logBytes + (this.protector?.memoryBytes() ?? 0) + (this.qemu?.ram.residentBytes() ?? 0);
  }

  view(): ShadowView {
    const stats = this.protector?.stats();
    const none = { count: 0, p50: null, p99: null, max: null };
    const image = this.options.imageStats();
    return {
      vm: this.options.spec.name,
      state: this.state,
      standby: formatStandby(this.standby.level),
      createdBecause: this.options.createdBecause,
      pid: this.qemu?.pid ?? null,
      tracking: this.options.tracking,
      epoch: this.committed?.epoch ?? 0,
      lagMs: this.lagMs(),
      pauseMs: stats?.pauseMs ?? none,
      lagMsAtCommit: stats?.lagMsAtCommit ?? none,
      pagesScanned: stats?.pagesScanned ?? 0,
      pagesChanged: stats?.pagesChanged ?? 0,
      pagesDroppedByChecksum: stats?.pagesDroppedByChecksum ?? 0,
      diskPagesChanged: stats?.diskPagesChanged ?? 0,
      pagesRepaired: stats?.pagesRepaired ?? 0,
      bytesCopied: stats?.bytesCopied ?? 0,
      bytesStored: stats?.bytesStored ?? 0,
      epochsAborted: stats?.epochsAborted ?? 0,
      intervalMs: stats?.intervalMs ?? 0,
      image:
        image === null
          ? null
          : {
              bytesOnDisk: image.bytesOnDisk,
              liveBytes: image.liveBytes,
              indexBytes: image.indexBytes,
              oldestEpoch: image.oldestEpoch,
              headEpoch: this.committed?.epoch ?? image.headEpoch,
            },
    };
  }

  private async start(): Promise<void> {
    const { spec, generation, primary, tracking, from, followed, after } = this.options;
    const image = await this.options.openImage();
    this.image = image;
    if (from !== null) this.becomeReady(`the image holds epoch ${from.epoch}, from which the VM woke up`);
    await after;
    if (this.released || this.halted) return;
    if (from === null)
      this.change('syncing', followed ? 'its first epoch is cut' : 'the RAM is compared with the image');
    this.protector = new Protector({
      primary,
      image,
      generation,
      tracking,
      from,
      followed,
      disks: new DiskProtection({ ...this.options.disks, primary, image }),
      pacing: spec.pacing,
      durability: spec.durability,
      resident: () => this.standby.resident(),
      output: this.options.output,
      events: {
        ready: () =>
          this.becomeReady(`first epoch committed ${Math.round(monotonicMs() - this.createdAtMs)} ms after its start`),
        aborted: (error) => this.options.onEpochAborted(messageOf(error)),
        repaired: (pages) => this.options.onRepaired(pages),
        lost: (error) => this.fail(error),
      },
    });
    this.protector.start();
    this.watchHealth();
    await this.protector.firstEpoch;
    // The guest woke up just now: what waits is not worth its first replies.
    if (from !== null) await sleep(STANDBY_AFTER_MS);
    if (!this.released && !this.halted) void this.standby.start();
  }

  private becomeReady(why: string): void {
    this.change('ready', why);
    this.settleReady.resolve();
  }

  private watchHealth(): void {
    let behindSinceMs: number | null = null;
    this.health = setInterval(() => {
      const lagMs = this.lagMs();
      if (lagMs === null || (this.state !== 'ready' && this.state !== 'behind')) return;
      const nowMs = monotonicMs();
      const health = assessLag(lagMs, behindSinceMs === null ? 0 : nowMs - behindSinceMs, this.options.spec.pacing);
      if (health === 'ok') behindSinceMs = null;
      else behindSinceMs ??= nowMs;
      const state = health === 'ok' ? 'ready' : 'behind';
      if (health === 'remake') this.fail(new Error(`its newest epoch is ${Math.round(lagMs)} ms old`));
      else if (state !== this.state) this.change(state, `its newest epoch is ${Math.round(lagMs)} ms old`);
    }, HEALTH_CHECK_MS);
  }

  private notReady(reason: string): ShadowVmError {
    return new ShadowVmError('SHADOW_NOT_READY', {
      attempted: 'make a shadow',
      subject: this.options.spec.name,
      reason,
      remedy: 'The events of the VM tell more: shadowvm events --vm NAME',
    });
  }

  private change(state: ShadowState, why: string): void {
    this.state = state;
    this.options.onChange(state, why);
  }

  private fail(error: unknown): void {
    if (this.released || this.state === 'failed') return;
    // A consequence of the primary's death, and no reason not to take over from what there is.
    if (this.options.primary.hasDied && this.committed !== null) return;
    clearInterval(this.health);
    const why = messageOf(error);
    this.settleReady.reject(error instanceof ShadowVmError ? error : this.notReady(why));
    this.change('failed', why);
    this.options.onFailed(why);
  }
}
