/**
 * A shadow in `resident` standby: a QEMU that waits with a full copy of the guest's RAM, and the protector that keeps
 * the copy close behind the primary.
 *
 *   starting ──▶ syncing ──▶ ready ◀──▶ behind
 *       └───────────┴──────────┴──────────┴──▶ failed      (whoever owns it makes it anew)
 */
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { type CommittedEpoch, Protector } from '../protect/protector.js';
import type { QemuProcess } from '../qemu/process.js';
import type { VmSpec } from '../vm/spec.js';
import type { ShadowState, ShadowView } from '../vm/view.js';
import { assessLag } from './lag.js';

export interface ShadowOptions {
  spec: VmSpec;
  primary: QemuProcess;
  /** Starts the waiting QEMU. */
  launch: () => Promise<QemuProcess>;
  tracking: 'write' | 'checksum';
  createdBecause: string;
  /** Called once the QEMU waits: its limits can be lowered from then on. */
  onWaiting: (qemu: QemuProcess) => void;
  onChange: (state: ShadowState, why: string) => void;
  /** Called at most once, and never after dispose(). */
  onFailed: (why: string) => void;
  onEpochAborted: (why: string) => void;
}

const HEALTH_CHECK_MS = 100;

export class Shadow {
  state: ShadowState = 'starting';
  qemu: QemuProcess | null = null;
  private protector: Protector | null = null;
  private health: NodeJS.Timeout | undefined;
  private released = false;
  private started: Promise<void> = Promise.resolve();
  private readonly createdAtMs = monotonicMs();
  private settleReady!: { resolve: () => void; reject: (error: unknown) => void };
  /** Resolves when the first epoch is committed; rejects when the shadow fails before. */
  readonly ready: Promise<void>;

  private constructor(private readonly options: ShadowOptions) {
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
    return this.protector?.committed ?? null;
  }

  lagMs(): number | null {
    return this.protector?.lagMs() ?? null;
  }

  /** The primary guest's pauses for epochs so far, ms, the one under way included. */
  pausedTotalMs(): number {
    if (this.protector === null) return 0;
    const { pausedTotalMs, pausedSinceMs } = this.protector;
    return pausedTotalMs + (pausedSinceMs === null ? 0 : monotonicMs() - pausedSinceMs);
  }

  /** Ends the epochs; the newest whole one stays. See Protector.halt. */
  async halt(): Promise<void> {
    clearInterval(this.health);
    await this.protector?.halt();
  }

  /** After halt(), for a guest that killed itself: see Protector.rewindToConfirmed. */
  async rewindToConfirmed(): Promise<number> {
    return (await this.protector?.rewindToConfirmed()) ?? 0;
  }

  /** Whether there is an epoch that a heartbeat came after: a guest that was well when it was cut. */
  hasConfirmedEpoch(): boolean {
    return this.protector?.hasConfirmedEpoch() ?? false;
  }

  /** See Protector.hold. */
  async hold(ms: number): Promise<void> {
    await this.protector?.hold(ms);
  }

  /** A last epoch that leaves the primary's guest stopped. */
  async handOver(): Promise<void> {
    clearInterval(this.health);
    if (this.protector === null) throw new Error('a shadow without protector can not be handed over to');
    await this.protector.handOver();
  }

  /** Goes on with the epochs after a hand-over that did not come about. */
  resumeEpochs(): void {
    this.protector?.start();
    this.watchHealth();
  }

  /** Gives the QEMU away to become the primary; this object is over. */
  async release(): Promise<QemuProcess> {
    this.released = true;
    clearInterval(this.health);
    await this.protector?.close();
    if (this.qemu === null) throw new Error('a shadow that never waited can not be released');
    return this.qemu;
  }

  /** Ends the shadow and what belongs to it. Idempotent. */
  async dispose(): Promise<void> {
    if (this.released) return;
    this.released = true;
    clearInterval(this.health);
    this.settleReady.reject(this.notReady('it was removed before it was ready'));
    await this.started; // a QEMU that is still coming up ends as soon as it has
    await this.protector?.close();
    await this.qemu?.dispose();
  }

  view(): ShadowView {
    const stats = this.protector?.stats();
    const none = { count: 0, p50: null, p99: null, max: null };
    return {
      vm: this.options.spec.name,
      state: this.state,
      standby: 'resident',
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
      bytesCopied: stats?.bytesCopied ?? 0,
      epochsAborted: stats?.epochsAborted ?? 0,
      intervalMs: stats?.intervalMs ?? 0,
    };
  }

  private async start(): Promise<void> {
    const { spec, primary, tracking } = this.options;
    const qemu = await this.options.launch();
    if (this.released) return qemu.dispose();
    this.qemu = qemu;
    void qemu.died.then(() => this.fail(new Error('its QEMU died')));
    this.options.onWaiting(qemu);
    this.change('syncing', 'first copy of the RAM');
    this.protector = new Protector(primary, qemu.ram, tracking, spec.pacing, {
      ready: () => {
        this.change(
          'ready',
          `first epoch committed ${Math.round(monotonicMs() - this.createdAtMs)} ms after its start`,
        );
        this.settleReady.resolve();
      },
      aborted: (error) => this.options.onEpochAborted(error instanceof Error ? error.message : String(error)),
      lost: (error) => this.fail(error),
    });
    this.protector.start();
    this.watchHealth();
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
    clearInterval(this.health);
    const why = error instanceof Error ? error.message : String(error);
    this.settleReady.reject(error instanceof ShadowVmError ? error : this.notReady(why));
    this.change('failed', why);
    this.options.onFailed(why);
  }
}
