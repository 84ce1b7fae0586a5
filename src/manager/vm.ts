/** One VM, as users see it: how it comes to run, what can be asked of it, how it ends. */
import { ShadowVmError, toShadowVmError } from '../errors.js';
import { recordBoot } from '../image/store.js';
import type { OutputHold } from '../protect/output-hold.js';
import type { Beat } from '../qemu/agent.js';
import type { QemuProcess } from '../qemu/process.js';
import { resolveEpoch, viewEpoch } from '../shadow/epochs.js';
import type { Shadow } from '../shadow/shadow.js';
import type { FailureWatch } from '../switchover/watch.js';
import type { Mode, StandbyLevel, VmSpec } from '../vm/spec.js';
import { formatStandby } from '../vm/standby-text.js';
import type { EpochView, OnProgress, PromotionView, VmState, VmView, WantedEpoch } from '../vm/view.js';
import { bringToAnEnd } from './adopted-vm.js';
import { findDisk, growDisk, requireGrowing } from './disk-resize.js';
import type { Host } from './host.js';
import type { StopOptions } from './port.js';
import { type StartFrom, startPrimary } from './primary-start.js';
import { watchPrimary } from './primary-watch.js';
import { ShadowKeeper } from './shadow-keeper.js';
import { ShadowMaker } from './shadow-maker.js';
import type { Side } from './sides.js';
import { snapshotOf } from './snapshots.js';
import type { VmRecord } from './state-dir.js';
import { Takeover } from './takeover.js';
import { VmCore } from './vm-core.js';
import { VmUsage } from './vm-usage.js';
import { FAULT_WORDS } from './vm-words.js';

/** Longer than a guest takes from the order to panic to its reset. */
const DRILL_HOLD_MS = 1000;

export class ManagedVm {
  readonly core: VmCore;
  private readonly keeper: ShadowKeeper;
  private readonly takeover: Takeover;
  private watch: FailureWatch | null = null;
  readonly usage: VmUsage;
  private startMs: number | null = null;
  private standbyLevel: StandbyLevel;
  /** Settles when the start has, and nothing of it is left or everything is up. */
  private running: Promise<void> = Promise.resolve();

  constructor(
    host: Host,
    readonly spec: VmSpec,
    address: string | null,
    record: ConstructorParameters<typeof VmCore>[3] = null,
  ) {
    this.core = new VmCore(host, spec, address, record);
    this.standbyLevel = spec.standby;
    this.keeper = new ShadowKeeper({
      rule: spec.shadow,
      make: (because) => maker.make(because),
      moving: (metric) => this.usage.thresholds.value(metric),
      onRemake: (delayMs) =>
        this.core.event('info', 'shadow.remake', `another shadow is made in ${delayMs} ms`, { delayMs }),
    });
    this.usage = new VmUsage({
      core: this.core,
      shadow: () => this.keeper.shadow,
      onUsage: (usage, nowMs) => this.keeper.observe(usage, nowMs),
    });
    this.takeover = new Takeover({
      core: this.core,
      shadow: () => this.keeper.shadow,
      onFence: () => {
        this.watch?.close();
        this.keeper.suspend();
      },
      onDone: () => this.promoted(),
      onLost: (reason) => this.declareLost(reason),
    });
    const maker = new ShadowMaker({
      core: this.core,
      takeover: this.takeover,
      level: () => this.usage.affordable(this.standbyLevel),
      onFailed: () => void this.keeper.replace(),
    });
  }

  /** A VM of an earlier manager that runs no more. `failure`: why it did not end well; null when it did. */
  static ended(host: Host, record: VmRecord, failure: string | null): ManagedVm {
    const vm = new ManagedVm(host, record.spec, null, record);
    vm.core.state = failure !== null || record.state === 'failed' ? 'failed' : 'stopped';
    vm.core.failure = failure;
    vm.core.origin = record.origin;
    vm.core.snapshot = record.snapshot;
    return vm;
  }

  /** A VM whose primary outlived an earlier manager; it is watched and protected from goOn() on. */
  static adopted(host: Host, record: VmRecord, side: Side, primary: QemuProcess): ManagedVm {
    const vm = new ManagedVm(host, record.spec, record.address, record);
    const { core } = vm;
    core.state = 'running';
    core.primary = primary;
    core.side = side;
    core.accelerator = record.accelerator;
    core.origin = record.origin;
    core.findKernel();
    core.sides.adopt(record, side);
    core.disks.adopt(primary.pid);
    return vm;
  }

  /** Goes on with a VM that was taken over: its RAM is filled to the end, it is watched, it gets its shadow again. */
  goOn(): void {
    const { core } = this;
    core.event(
      'info',
      'vm.adopted',
      `taken over from an earlier manager (process ${core.primary?.pid}), it ran on meanwhile`,
      {
        pid: core.primary?.pid,
      },
    );
    core.saveSoon();
    this.observe(true);
    void bringToAnEnd(core).then(() => {
      if (core.shadowImage.exists()) this.keeper.want('protected before the manager was restarted');
      this.keeper.resume();
    });
  }

  get state(): VmState {
    return this.core.state;
  }
  get address(): string | null {
    return this.core.address;
  }
  get ended(): boolean {
    return this.state === 'stopped' || this.state === 'failed';
  }
  get shadow(): Shadow | null {
    return this.keeper.shadow;
  }
  /** What holds the primary's packets; null in async mode. */
  get outputHold(): OutputHold | null {
    return this.core.strict.hold;
  }
  /** What was declared, or asked for since, to wait beside the image. */
  get declaredStandby(): StandbyLevel {
    return this.standbyLevel;
  }

  // ---- How it comes to run ----

  /**
   * Starts the VM; resolves when its guest answers. Whatever fails, nothing stays behind.
   * @param prepare finds what it starts from; what it throws is why the start fails
   * @throws CANCELLED
   */
  run(prepare: (signal: AbortSignal) => Promise<StartFrom>, progress: OnProgress): Promise<void> {
    const running = this.start(prepare, progress);
    this.running = running.catch(() => {}); // for who only waits for its end
    return running;
  }

  /** Makes run() throw CANCELLED and waits until it has taken everything back. No effect when it is over. */
  async cancelRun(reason: string): Promise<void> {
    if (this.state !== 'starting' && this.state !== 'booting') return;
    const { giveUp } = this.core;
    giveUp.abort(new ShadowVmError('CANCELLED', { attempted: 'run the VM', subject: this.spec.name, reason }));
    await this.running;
  }

  private async start(prepare: (signal: AbortSignal) => Promise<StartFrom>, progress: OnProgress): Promise<void> {
    const { core, spec } = this;
    const { host } = core;
    const { signal } = core.giveUp;
    try {
      core.accelerator = await host.accelerator(spec.accelerator);
      await core.save();
      const from = await prepare(signal);
      core.origin = from.origin;
      core.event('info', 'vm.starting', `starting with ${spec.ramBytes / 2 ** 20} MiB on ${core.accelerator}`, {
        origin: from.origin,
      });
      this.startMs = await startPrimary(from, {
        launch: (incoming) => core.launch('p', incoming),
        onLaunched: (qemu) => {
          core.primary = qemu;
          core.state = 'booting';
        },
        connect: () => {
          core.sides.connect('p');
          core.sides.announce('p');
        },
        // On a tap the rules do that.
        publish: core.sides.network === null ? spec.publish : [],
        onCorrupt: (page, why) => core.corruptPage(core.primary as QemuProcess, page, why),
        consoleLogPath: host.options.stateDir.consoleLogPath(spec.name),
        accelerator: core.accelerator,
        progress,
        signal,
      });
      core.wokeFrom = from.origin === 'boot' ? null : from.epoch;
      core.followed = from.origin !== 'boot';
      const goldenHotPath = from.origin === 'golden' ? from.hotPath : null;
      core.noteAwakening(core.primary as unknown as QemuProcess, goldenHotPath);
      // From here on nothing waits: the VM runs and is ended as one that runs, or it never did.
      this.nowRuns(from.origin === 'boot' ? 'booted' : `woke up from its ${from.origin}`);
      if (from.origin === 'boot') recordBoot(host.options.imagesDir, spec.image, this.startMs).catch(() => {}); // removed or replaced meanwhile
    } catch (cause) {
      const cancelled = signal.aborted;
      const error = toShadowVmError(cancelled ? signal.reason : cause, 'run the VM');
      const during = this.state === 'booting' ? 'while its guest came up' : 'while it started';
      await this.release();
      core.state = cancelled ? 'stopped' : 'failed';
      core.event(
        cancelled ? 'warn' : 'error',
        `vm.${this.state}`,
        `${cancelled ? 'taken back' : 'it failed'} ${during}: ${error.reason}`,
        { code: error.code },
      );
      throw error;
    }
  }

  private nowRuns(how: string): void {
    const { core } = this;
    core.snapshot = null; // from here on it is only where it came from
    core.state = 'running';
    core.strict.attach(core.primary as QemuProcess, core.side, false);
    core.saveSoon();
    core.event('info', 'vm.running', `${how} in ${Math.round(this.startMs ?? 0)} ms`, {
      bootMs: this.startMs,
      origin: core.origin,
    });
    this.observe(core.origin !== 'boot');
    this.keeper.resume();
  }

  /** Its failures are looked for from now on. */
  private observe(promoted: boolean): void {
    this.watchPrimary(promoted);
    this.core.limitPrimary();
    this.core.heat.start(() => this.keeper.shadow?.state === 'ready');
  }

  // ---- What users ask for ----

  /** Ends the VM: its newest state becomes a snapshot, then the guest shuts down or is stopped. */
  async stop({ timeoutMs, how, snapshot }: StopOptions, progress: OnProgress): Promise<void> {
    const primary = this.requireRunning('stop the VM');
    const { core } = this;
    if (snapshot) {
      progress({ message: 'the newest state of the guest is saved' });
      await this.lastEpoch();
      this.requireRunning('stop the VM');
    }
    core.state = 'stopping';
    this.watch?.close();
    // The shadow first: from now on the end of the primary is wanted.
    await this.keeper.close();
    if (how === 'shutdown') {
      progress({ message: 'the guest shuts down' });
      if (snapshot) primary.qmp.execute('cont').catch(() => {}); // its death is told by `exited`
      primary.agent.poweroff();
      const timer = setTimeout(() => {
        core.event('warn', 'vm.stop-timeout', `the guest did not shut down within ${timeoutMs} ms and was killed`, {});
        primary.kill();
      }, timeoutMs);
      await primary.exited;
      clearTimeout(timer);
    }
    if (snapshot) {
      progress({ message: 'the snapshot is compacted' });
      await core.shadowImage.settle();
      core.snapshot = await snapshotOf(core.shadowImage.opened, core.name);
    } else {
      await core.shadowImage.remove(); // or a later start would find it
    }
    await this.end('stopped', how === 'suspend' ? 'suspended as asked for' : 'shut down as asked for');
  }

  /** An epoch of the guest as it is now, which stands still after it. Makes the image when there is none. */
  private async lastEpoch(): Promise<void> {
    const shadow = this.keeper.shadow ?? this.keeper.want('to be saved');
    await shadow.ready;
    await shadow.handOver();
  }

  /** Pulls the plug: no promotion follows. */
  async kill(): Promise<void> {
    if (this.state === 'starting' || this.state === 'booting') return this.cancelRun('it was killed before it ran');
    this.requireRunning('kill the VM');
    this.core.state = 'stopping';
    this.watch?.close();
    await this.keeper.close();
    await this.end('stopped', 'killed by hand');
  }

  /** @throws SHADOW_EXISTS, VM_NOT_RUNNING; and whatever kept the shadow from becoming ready */
  async createShadow(progress: OnProgress): Promise<void> {
    this.requireRunning('create a shadow');
    if (this.keeper.shadow !== null)
      throw new ShadowVmError('SHADOW_EXISTS', {
        attempted: 'create a shadow',
        subject: this.spec.name,
        reason: `the VM has one already, which is ${this.keeper.shadow.state}`,
      });
    progress({ message: 'the shadow starts and takes its first epoch' });
    await this.keeper.want('by hand').ready;
  }

  /** @throws SHADOW_NOT_FOUND, VM_BUSY */
  async removeShadow(): Promise<void> {
    this.requireShadow('remove the shadow');
    if (this.takeover.switchover.underWay) throw this.busy('remove the shadow');
    this.takeover.switchover.dispatch({ type: 'shadow-lost' });
    await this.keeper.unwant();
    this.core.strict.hold?.suspend('its shadow was removed');
    // A guest that is still being filled from the image goes on to be: its files are open, only their names go.
    await this.core.shadowImage.remove();
    this.core.wokeFrom = null;
    this.core.followed = false;
    this.core.event('info', 'shadow.removed', 'the shadow was removed by hand; the rule that made it is off', {});
  }

  /** @throws SHADOW_NOT_FOUND, VM_BUSY */
  async changeStandby(level: StandbyLevel): Promise<void> {
    this.requireRunning('change the standby');
    const shadow = this.requireShadow('change the standby');
    this.standbyLevel = level;
    await shadow.changeStandby(level);
    this.core.event('info', 'shadow.standby', `the standby is ${formatStandby(level)} now, as asked for`, {
      level: formatStandby(level),
    });
  }

  /** @throws INVALID_ARGUMENT, VM_NOT_RUNNING */
  async changeMode(mode: Mode): Promise<void> {
    this.requireRunning('change the mode');
    await this.core.strict.change(mode);
  }

  /** @throws SHADOW_NOT_FOUND, SHADOW_NOT_READY, EPOCH_NOT_FOUND, PROMOTION_IN_PROGRESS, PROMOTION_FAILED */
  async promote(wanted: WantedEpoch | null): Promise<PromotionView> {
    if (this.takeover.switchover.underWay) return this.takeover.request(null); // which refuses it
    this.requireRunning('promote the shadow');
    const shadow = this.requireShadow('promote the shadow');
    return this.takeover.request(wanted === null ? null : this.findEpoch(wanted, shadow.epochs()));
  }

  /** @throws DISK_NOT_FOUND, INVALID_ARGUMENT, VM_NOT_RUNNING, VM_BUSY, QMP_* */
  async resizeDisk(name: string, sizeBytes: number, progress: OnProgress): Promise<void> {
    const attempted = 'resize the disk';
    this.requireRunning(attempted);
    const { core } = this;
    const disk = findDisk(core, name, attempted);
    requireGrowing(core, disk, sizeBytes);
    if (sizeBytes === disk.sizeBytes) return;
    this.resizing = true;
    try {
      await this.keeper.without(() => growDisk(core, disk, sizeBytes, progress));
    } finally {
      this.resizing = false;
    }
    if (this.keeper.shadow === null) return;
    progress({ message: 'its shadow begins anew' });
    await this.keeper.shadow.ready.catch(() => {}); // another one is made then, and told of
  }
  /** Its shadow is away, and nothing else may make one meanwhile. */
  private resizing = false;

  /** The number of an epoch that is named. @throws EPOCH_NOT_FOUND that tells which there are */
  findEpoch(wanted: WantedEpoch, epochs = this.core.shadowImage.opened?.epochs() ?? []): number {
    return resolveEpoch(epochs, wanted, this.spec.name, this.core.resizedAtMs);
  }

  /** The epochs that can be gone back to, oldest first. @throws SHADOW_NOT_FOUND */
  listEpochs(): EpochView[] {
    return this.requireShadow('list the epochs').epochs().map(viewEpoch);
  }

  async injectFault(fault: 'kill' | 'hang' | 'panic'): Promise<{ atNs: string }> {
    let primary = this.requireRunning('inject a fault');
    // The order to panic travels through the guest's memory: an epoch that holds it would panic again when promoted.
    if (fault === 'panic') {
      await this.keeper.shadow?.hold(DRILL_HOLD_MS);
      primary = this.requireRunning('inject a fault');
    }
    const atNs = process.hrtime.bigint().toString();
    this.core.event('warn', 'fault.injected', `a drill: ${FAULT_WORDS[fault]}`, { fault });
    if (fault === 'kill') primary.kill();
    if (fault === 'hang') primary.freeze();
    if (fault === 'panic') primary.agent.panic();
    return { atNs };
  }

  guestExec(command: string): Promise<number> {
    return this.requireRunning('run a command in the guest').agent.exec(command);
  }

  /** The serial console's socket of the present primary; null once the VM has ended. */
  consolePath(): string | null {
    if (this.core.primary !== null) return this.core.primary.consolePath;
    return this.state === 'promoting' ? '' : null;
  }

  requireRunning(attempted: string): QemuProcess {
    if (this.takeover.switchover.underWay || this.resizing || this.state === 'stopping') throw this.busy(attempted);
    const { primary } = this.core;
    if (primary === null || this.state !== 'running')
      throw new ShadowVmError('VM_NOT_RUNNING', {
        attempted,
        subject: this.spec.name,
        reason: `the VM is ${this.state}`,
      });
    return primary;
  }

  view(): VmView {
    const { core } = this;
    const beat = core.primary?.agent.last ?? null;
    return {
      name: this.spec.name,
      state: this.state,
      generation: this.takeover.switchover.generation,
      // A rule that was switched off by hand holds no more.
      spec: { ...this.spec, shadow: this.keeper.rule, standby: this.standbyLevel, mode: core.strict.mode },
      strict: this.ended ? null : core.strict.state,
      accelerator: core.accelerator,
      pid: core.primary?.pid ?? null,
      address: core.address,
      address6: core.sides.guest?.address6 ?? null,
      mac: this.spec.network === 'none' ? null : core.mac,
      tap: core.networkMode === 'tap' && core.primary !== null ? core.sides.tap(core.side) : null,
      networkMode: core.networkMode,
      createdAt: core.createdAt,
      origin: core.origin,
      bootMs: this.startMs,
      guest: beat === null ? null : guestFigures(beat, core.primary?.agent.beats ?? 0),
      usage: this.usage.latest,
      probes: this.watch?.probes() ?? [],
      shadow: this.keeper.shadow?.view() ?? null,
      snapshot: core.snapshot,
      failure: core.failure,
    };
  }

  /** For tests and benchmarks in this process: the two QEMUs. */
  get processesForTest(): { primary: QemuProcess | null; shadow: QemuProcess | null } {
    return { primary: this.core.primary, shadow: this.keeper.shadow?.qemu ?? null };
  }

  // ---- Watching, shadows, promotions ----

  private watchPrimary(promoted: boolean): void {
    const { core, keeper, takeover } = this;
    this.watch = watchPrimary({ core, keeper, takeover, promoted, onShutdown: (how) => void this.guestEnded(how) });
  }

  private promoted(): void {
    this.core.heat.promoted();
    this.keeper.forget();
    this.watchPrimary(true);
    // At once: its image can be promoted from again, should this one die as well.
    this.keeper.resume();
  }

  private declareLost(reason: string): void {
    this.core.failure = reason;
    const { shadow } = this.keeper;
    const why = shadow === null ? 'it had no shadow' : `its shadow was ${shadow.state}`;
    this.core.event('error', 'vm.lost', `the VM is dead and nothing could take over, ${why}: ${reason}`, {});
    void this.end('failed', 'it is down; remove it and run it again');
  }

  // ---- Ends ----

  private async guestEnded(how: 'poweroff' | 'reboot'): Promise<void> {
    this.core.state = 'stopping';
    await this.keeper.close();
    await this.end(
      'stopped',
      how === 'poweroff' ? 'the guest powered itself off' : 'the guest rebooted, which ends a VM',
    );
  }

  private async end(state: 'stopped' | 'failed', why: string): Promise<void> {
    const { core } = this;
    core.state = 'stopping';
    await this.release();
    core.state = state;
    await core.save().catch((error: unknown) => core.logError(error, 'saving the record'));
    core.event(state === 'failed' ? 'error' : 'info', `vm.${state}`, why, {});
  }

  /** Gives back everything on the host but what is on the disk. Idempotent. */
  async release(): Promise<void> {
    const { core } = this;
    // A promotion under way would go on with a shadow that is not there any more.
    await this.takeover.close();
    this.watch?.close();
    core.strict.detach();
    await core.heat.close();
    await this.keeper.close();
    await core.otherSideFree;
    await core.primary?.dispose();
    core.primary = null;
    await core.shadowImage.close();
    await core.sides.release();
  }

  // ---- Small things ----

  private requireShadow(attempted: string): Shadow {
    if (this.keeper.shadow !== null) return this.keeper.shadow;
    throw new ShadowVmError('SHADOW_NOT_FOUND', {
      attempted,
      subject: this.spec.name,
      reason: 'the VM has no shadow',
      remedy: `Create one: shadowvm shadow create ${this.spec.name}`,
    });
  }

  private busy(attempted: string): ShadowVmError {
    return new ShadowVmError('VM_BUSY', {
      attempted,
      subject: this.spec.name,
      reason: this.takeover.switchover.underWay
        ? 'its shadow is taking over at this moment'
        : this.resizing
          ? 'a disk of it is being resized'
          : `the VM is ${this.state}`,
      remedy: 'Try again in a moment',
    });
  }
}

function guestFigures(beat: Beat, beats: number) {
  const { uptimeMs, memTotalKiB, memAvailableKiB, app } = beat;
  return { beats, uptimeMs, memTotalKiB, memAvailableKiB, app };
}
