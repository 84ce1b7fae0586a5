/** One VM: its primary, its shadow, and what happens between them. The effects of the switchover are carried out here. */

import { monotonicMs } from '../clock.js';
import { ShadowVmError, toShadowVmError } from '../errors.js';
import { type Image, pinImage, recordBoot } from '../image/store.js';
import type { Usage } from '../monitor/thresholds.js';
import { readCounters, type UsageCounters, usageBetween } from '../monitor/usage.js';
import { macAddress } from '../network/address.js';
import type { CommittedEpoch } from '../protect/protector.js';
import type { Beat } from '../qemu/agent.js';
import type { QemuProcess } from '../qemu/process.js';
import { Shadow } from '../shadow/shadow.js';
import type { EffectName } from '../switchover/machine.js';
import { ProbeCaller } from '../switchover/probe-call.js';
import { probeTarget } from '../switchover/probe-target.js';
import { Switchover } from '../switchover/switchover.js';
import { type Death, FailureWatch, type FailureWatchOptions } from '../switchover/watch.js';
import type { VmSpec } from '../vm/spec.js';
import type { OnProgress, PromotionView, VmState, VmView } from '../vm/view.js';
import { awakening, bootBeat } from './first-beat.js';
import type { Host } from './host.js';
import { Repeated } from './repeated.js';
import { ShadowKeeper } from './shadow-keeper.js';
import { other, type Side, VmSides } from './sides.js';
import type { VmRecord } from './state-dir.js';
import { DEATH_WORDS, FAULT_WORDS, PROBE_WORDS, promotionWords, rewindWords, SHADOW_WORDS } from './vm-words.js';

const USAGE_INTERVAL_MS = 500;
const LOAD_TIMEOUT_MS = 10_000;
/** Longer than a guest takes from the order to panic to its reset. */
const DRILL_HOLD_MS = 1000;

/** After its promotion a guest has the host for itself until its first heartbeat, but not longer than this. */
const AWAKENING_MS = 500;

/** Aborted epochs come in rows; their number is what tells how bad it is. */
const ABORTS_TOLD_EVERY_MS = 5000;

interface PromotionTimes {
  reason: string;
  planned: boolean;
  /** The guest's own doing: the newest epochs may show it dead already. */
  guestAtFault: boolean;
  decidedAtNs: bigint;
  fencedAtNs: bigint;
  resumedAtNs: bigint;
  from: CommittedEpoch | null;
}

export class ManagedVm {
  state: VmState = 'starting';
  private primary: QemuProcess | null = null;
  private side: Side = 'p';
  private watch: FailureWatch | null = null;
  private accelerator: 'kvm' | 'tcg' | null = null;
  private readonly sides: VmSides;
  /** The VM's own names of its image's files: a shadow has to be started with what its primary was started with. */
  private kernel: { kernelPath: string; initrdPath: string } | null = null;
  private readonly mac: string;
  private readonly keeper: ShadowKeeper;
  private readonly switchover: Switchover;
  private promotion: PromotionTimes | null = null;
  private lastPromotion: PromotionView | null = null;
  private usageTimer: NodeJS.Timeout | undefined;
  private counters: UsageCounters | null = null;
  private usage: Usage | null = null;
  private bootMs: number | null = null;
  private failure: string | null = null;
  private readonly aborts = new Repeated(ABORTS_TOLD_EVERY_MS);
  /** Aborted with the error that run() is to throw. */
  private readonly giveUp = new AbortController();
  /** Settles when run() has, and nothing of it is left or everything is up. */
  private running: Promise<void> = Promise.resolve();
  constructor(
    private readonly host: Host,
    readonly spec: VmSpec,
    /** null only for a VM that has ended. */
    private readonly image: Image | null,
    /** Of this VM on the tap network; null in the other modes. */
    readonly address: string | null,
    generation = 0,
    private readonly createdAt = new Date().toISOString(),
  ) {
    this.mac = macAddress(`${host.tag} ${spec.name}`);
    this.sides = new VmSides(host, spec, address === null ? null : host.tapNetwork(spec), address, this.mac);
    this.keeper = new ShadowKeeper({
      rule: spec.shadow,
      make: (because) => this.makeShadow(because),
      onRemake: (delayMs) =>
        this.event('info', 'shadow.remake', `another shadow is made in ${delayMs} ms`, { delayMs }),
    });
    this.switchover = new Switchover(spec.name, generation, {
      'hand-over': () => this.handOver(),
      fence: () => this.fence(),
      'raise-limits': () => this.sides.limit(other(this.side), 'primary'),
      'record-generation': (generation) => this.save(generation),
      'load-state': () => this.loadState(),
      resume: () => this.resumeShadow(),
      connect: () => this.connectShadow(),
      'protect-again': (reason) => this.becomePrimary(reason),
      'declare-lost': (reason) => this.declareLost(reason),
      'resume-primary': (reason) => this.resumePrimary(reason),
      onFailure: (effect, error) => this.effectFailed(effect, error),
    });
  }

  /** A VM of an earlier manager that runs no more. `failure`: why it did not end well; null when it did. */
  static ended(host: Host, record: VmRecord, failure: string | null): ManagedVm {
    const vm = new ManagedVm(host, record.spec, null, null, record.generation, record.createdAt);
    vm.state = failure !== null || record.state === 'failed' ? 'failed' : 'stopped';
    vm.failure = failure;
    return vm;
  }

  // ---- What users ask for ----

  /** Boots the VM; resolves with its first heartbeat. Whatever fails, nothing stays behind. @throws CANCELLED */
  run(progress: OnProgress): Promise<void> {
    const running = this.start(progress);
    this.running = running.catch(() => {}); // for who only waits for its end
    return running;
  }

  /** Makes run() throw CANCELLED and waits until it has taken everything back. No effect when it is over. */
  async cancelRun(reason: string): Promise<void> {
    if (this.state !== 'starting' && this.state !== 'booting') return;
    this.giveUp.abort(new ShadowVmError('CANCELLED', { attempted: 'run the VM', subject: this.spec.name, reason }));
    await this.running;
  }

  private async start(progress: OnProgress): Promise<void> {
    const { spec, host } = this;
    const { signal } = this.giveUp;
    try {
      host.requireMemory(spec.ramBytes, 'run the VM', spec.name);
      this.accelerator = await host.accelerator(spec.accelerator);
      await this.save();
      this.kernel = await pinImage(this.image as Image, host.options.stateDir.vmDir(spec.name));
      signal.throwIfAborted();
      this.event('info', 'vm.starting', `starting with ${spec.ramBytes / 2 ** 20} MiB on ${this.accelerator}`, {});
      progress({ message: `starting QEMU (${this.accelerator})` });
      const startedMs = monotonicMs();
      const primary = await this.launch('p', false);
      this.primary = primary;
      signal.throwIfAborted();
      this.sides.connect('p');
      this.state = 'booting';
      progress({ message: 'the guest boots' });
      await bootBeat(primary, host.options.stateDir.consoleLogPath(spec.name), signal);
      // From here on nothing waits: the VM runs and is ended as one that runs, or it never did.
      this.bootMs = monotonicMs() - startedMs;
      this.state = 'running';
      this.save().catch((error: unknown) => this.logError(error, 'saving the record'));
      recordBoot(host.options.imagesDir, spec.image, this.bootMs).catch(() => {}); // removed or replaced meanwhile
      this.event('info', 'vm.running', `booted in ${Math.round(this.bootMs)} ms`, { bootMs: this.bootMs });
      this.watchPrimary(primary, false);
      this.usageTimer = setInterval(() => this.sampleUsage(), USAGE_INTERVAL_MS);
      this.keeper.resume();
    } catch (cause) {
      const cancelled = signal.aborted;
      const error = toShadowVmError(cancelled ? signal.reason : cause, 'run the VM');
      const during = this.state === 'booting' ? 'while its guest booted' : 'while it started';
      await this.release();
      this.state = cancelled ? 'stopped' : 'failed';
      this.event(
        cancelled ? 'warn' : 'error',
        `vm.${this.state}`,
        `${cancelled ? 'taken back' : 'it failed'} ${during}: ${error.reason}`,
        { code: error.code },
      );
      throw error;
    }
  }

  /** Ends the VM: the guest shuts down, or is killed when it has not after `timeoutMs`. */
  async stop(timeoutMs: number, progress: OnProgress): Promise<void> {
    const primary = this.requireRunning('stop the VM');
    this.state = 'stopping';
    this.watch?.close();
    // The shadow first: from now on the end of the primary is wanted.
    await this.keeper.close();
    progress({ message: 'the guest shuts down' });
    primary.agent.poweroff();
    const timer = setTimeout(() => {
      this.event('warn', 'vm.stop-timeout', `the guest did not shut down within ${timeoutMs} ms and was killed`, {});
      primary.kill();
    }, timeoutMs);
    await primary.exited;
    clearTimeout(timer);
    await this.end('stopped', 'shut down as asked for');
  }

  /** Pulls the plug: no promotion follows. */
  async kill(): Promise<void> {
    if (this.state === 'starting' || this.state === 'booting') return this.cancelRun('it was killed before it ran');
    this.requireRunning('kill the VM');
    this.state = 'stopping';
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
    this.host.requireMemory(this.spec.ramBytes, 'create a shadow', this.spec.name);
    progress({ message: 'the shadow starts and copies the RAM' });
    await this.keeper.want('by hand').ready;
  }

  /** @throws SHADOW_NOT_FOUND, VM_BUSY */
  async removeShadow(): Promise<void> {
    this.requireShadow('remove the shadow');
    if (this.switchover.underWay) throw this.busy('remove the shadow');
    this.switchover.dispatch({ type: 'shadow-lost' });
    await this.keeper.unwant();
    this.event('info', 'shadow.removed', 'the shadow was removed by hand; the rule that made it is off', {});
  }

  /** @throws SHADOW_NOT_FOUND, SHADOW_NOT_READY, PROMOTION_IN_PROGRESS, PROMOTION_FAILED */
  async promote(): Promise<PromotionView> {
    if (!this.switchover.underWay) {
      this.requireRunning('promote the shadow');
      this.requireShadow('promote the shadow');
    }
    await this.switchover.request('by hand');
    return this.lastPromotion as PromotionView;
  }

  async injectFault(fault: 'kill' | 'hang' | 'panic'): Promise<{ atNs: string }> {
    let primary = this.requireRunning('inject a fault');
    // The order to panic travels through the guest's memory: an epoch that holds it would panic again when promoted.
    if (fault === 'panic') {
      await this.keeper.shadow?.hold(DRILL_HOLD_MS);
      primary = this.requireRunning('inject a fault');
    }
    const atNs = process.hrtime.bigint().toString();
    this.event('warn', 'fault.injected', `a drill: ${FAULT_WORDS[fault]}`, { fault });
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
    if (this.primary !== null) return this.primary.consolePath;
    return this.state === 'promoting' ? '' : null;
  }

  requireRunning(attempted: string): QemuProcess {
    if (this.switchover.underWay || this.state === 'stopping') throw this.busy(attempted);
    if (this.primary === null || this.state !== 'running')
      throw new ShadowVmError('VM_NOT_RUNNING', {
        attempted,
        subject: this.spec.name,
        reason: `the VM is ${this.state}`,
      });
    return this.primary;
  }

  get ended(): boolean {
    return this.state === 'stopped' || this.state === 'failed';
  }

  view(): VmView {
    const beat = this.primary?.agent.last ?? null;
    const taps = this.sides.network !== null;
    return {
      name: this.spec.name,
      state: this.state,
      generation: this.switchover.generation,
      // A rule that was switched off by hand holds no more.
      spec: { ...this.spec, shadow: this.keeper.rule },
      accelerator: this.accelerator,
      pid: this.primary?.pid ?? null,
      address: this.address,
      address6: this.sides.guest?.address6 ?? null,
      mac: this.spec.network === 'none' ? null : this.mac,
      tap: taps && this.primary !== null ? this.sides.tap(this.side) : null,
      networkMode: taps ? 'tap' : this.spec.network === 'none' ? 'none' : 'user',
      createdAt: this.createdAt,
      bootMs: this.bootMs,
      guest: beat === null ? null : guestFigures(beat, this.primary?.agent.beats ?? 0),
      usage: this.usage,
      probes: this.watch?.probes() ?? [],
      shadow: this.keeper.shadow?.view() ?? null,
      failure: this.failure,
    };
  }

  get shadow(): Shadow | null {
    return this.keeper.shadow;
  }

  /** For tests and benchmarks in this process: the two QEMUs. */
  get processesForTest(): { primary: QemuProcess | null; shadow: QemuProcess | null } {
    return { primary: this.primary, shadow: this.keeper.shadow?.qemu ?? null };
  }

  // ---- Starting QEMUs ----

  private launch(side: Side, incoming: boolean): Promise<QemuProcess> {
    if (this.kernel === null) throw new Error('a VM that has ended can not be started');
    return this.sides.launch(side, {
      incoming,
      accelerator: this.accelerator ?? 'tcg',
      kernel: this.kernel,
      signal: this.giveUp.signal,
      // Found again by a later manager if this one is killed; not worth a failed start if it can not be written.
      onSpawn: () => void this.save().catch((error: unknown) => this.logError(error, 'saving the record')),
    });
  }

  private watchPrimary(primary: QemuProcess, promoted: boolean): void {
    this.watch = new FailureWatch({
      primary,
      promoted,
      // Epochs of a guest that hangs show it hanging: one from before is needed. QEMU's own hang is in no epoch.
      canTakeOver: (cause) =>
        this.switchover.canTakeOver && (cause !== 'guest-hung' || (this.keeper.shadow?.hasConfirmedEpoch() ?? false)),
      onHang: (evidence) =>
        this.event('error', 'failure.no-shadow', `it hangs, and no shadow could take over: ${evidence}`, {}),
      pausedTotalMs: () => this.keeper.shadow?.pausedTotalMs() ?? 0,
      onDeath: (death) => this.primaryDied(death),
      onShutdown: (how) => void this.guestEnded(how),
      onSuspicion: (silentMs) =>
        silentMs > 0
          ? this.event('warn', 'failure.suspected', `no heartbeat for ${Math.round(silentMs)} ms, looking closer`, {
              silentMs,
            })
          : this.event('info', 'failure.cleared', 'heartbeats are back, it was no failure', {}),
      probes: this.probesOf(primary),
    });
  }

  private probesOf(primary: QemuProcess): FailureWatchOptions['probes'] {
    const caller = new ProbeCaller(probeTarget(this.spec, this.address), primary.agent);
    return {
      declared: this.spec.probes,
      call: (check, signal) => caller.call(check, signal),
      onHealth: (probe, health, reason) =>
        this.event(
          health === 'well' ? 'info' : 'warn',
          `probe.${health}`,
          `the probe ${probe} ${PROBE_WORDS[health]}${reason === null ? '' : `: ${reason}`}`,
          { probe, reason },
        ),
    };
  }

  // ---- Shadows ----

  private makeShadow(because: string): Shadow {
    const primary = this.primary as QemuProcess;
    const side = other(this.side);
    const { usable, reason } = primary.writeTracking;
    const { tracking } = this.spec;
    this.event('info', 'shadow.starting', `making a shadow (${because})`, { because });
    if (tracking !== 'checksum' && !usable)
      this.event(
        'warn',
        'shadow.no-write-tracking',
        `changes are found by checksums alone, pauses are longer: ${reason}`,
        {},
      );
    const shadow: Shadow = Shadow.create({
      spec: this.spec,
      primary,
      tracking: tracking === 'checksum' || !usable ? 'checksum' : 'write',
      createdBecause: because,
      launch: async () => {
        if (tracking === 'write' && !usable)
          throw new ShadowVmError('TRACKING_UNAVAILABLE', {
            attempted: 'track the writes of the VM',
            subject: this.spec.name,
            reason,
            remedy: 'Use --tracking auto, or a kernel of 6.7 or newer',
          });
        this.host.requireMemory(this.spec.ramBytes, 'make the shadow', this.spec.name);
        return this.launch(side, true);
      },
      onWaiting: () => this.sides.limit(side, 'waiting'),
      onChange: (state, why) => {
        this.event(
          state === 'failed' || state === 'behind' ? 'warn' : 'info',
          `shadow.${state}`,
          `${SHADOW_WORDS[state]}: ${why}`,
          {},
        );
        if (state === 'ready') this.switchover.dispatch({ type: 'shadow-ready' });
      },
      onFailed: () => {
        this.switchover.dispatch({ type: 'shadow-lost' });
        if (!this.switchover.underWay) void this.keeper.replace();
      },
      onEpochAborted: (why) => this.epochAborted(why),
    });
    return shadow;
  }

  private epochAborted(why: string): void {
    const count = this.aborts.count(monotonicMs());
    if (count === 0) return;
    const what = count === 1 ? 'an epoch was given up' : `${count} epochs were given up, the last one`;
    this.event('warn', 'epoch.aborted', `${what}: ${why}; the next one tries again`, { count });
  }

  // ---- Failure and switchover; the order is the machine's ----

  private primaryDied(death: Death): void {
    const reason = `${death.cause}: ${death.evidence}`;
    const told = `${DEATH_WORDS[death.cause]} (process ${this.primary?.pid}): ${death.evidence}`;
    this.event('error', 'failure.detected', told, { cause: death.cause, ...wellAt(death) }, death.decidedAtNs);
    // One that dies while it is handed over is promoted because of that, from the newest epoch that there is.
    if (this.switchover.phase === 'handing-over') this.promotion = null;
    const guestAtFault = ['guest-reset', 'guest-hung', 'probe-failed'].includes(death.cause);
    this.beginPromotion({ reason, planned: false, guestAtFault, decidedAtNs: death.decidedAtNs });
    this.switchover.dispatch({ type: 'primary-died', reason });
  }

  private beginPromotion(why: Omit<PromotionTimes, 'fencedAtNs' | 'resumedAtNs' | 'from'>): void {
    this.promotion ??= { ...why, fencedAtNs: 0n, resumedAtNs: 0n, from: null };
  }

  private async handOver(): Promise<void> {
    const decidedAtNs = process.hrtime.bigint();
    this.beginPromotion({ reason: 'by hand', planned: true, guestAtFault: false, decidedAtNs });
    await this.keeper.shadow?.handOver();
  }

  /** After this the old primary never sends another packet: its tap is cut before it is even killed. */
  private async fence(): Promise<void> {
    this.state = 'promoting';
    this.watch?.close();
    this.keeper.suspend();
    this.sides.cut(this.side);
    this.primary?.kill();
    // Its monitor may be frozen: whoever waits for an answer is told at once.
    this.primary?.qmp.destroy();
    const shadow = this.keeper.shadow;
    await shadow?.halt();
    const promotion = this.promotion as PromotionTimes;
    if (promotion.guestAtFault) {
      const epochs = (await shadow?.rewindToConfirmed()) ?? 0;
      if (epochs > 0) this.event('info', 'promotion.rewound', rewindWords(epochs), { epochs });
    }
    promotion.from = shadow?.committed ?? null;
    promotion.fencedAtNs = process.hrtime.bigint();
  }

  private async loadState(): Promise<void> {
    const from = this.promotion?.from;
    const qemu = this.keeper.shadow?.qemu;
    if (from == null || qemu == null) throw new Error('the shadow is gone');
    await qemu.loadDevices(from.deviceState, LOAD_TIMEOUT_MS);
  }

  private async resumeShadow(): Promise<void> {
    const qemu = this.keeper.shadow?.qemu;
    const running = qemu?.qmp.execute('cont');
    qemu?.agent.ping(); // right behind it: the guest's first sign of life is the end of the outage
    await running;
    (this.promotion as PromotionTimes).resumedAtNs = process.hrtime.bigint();
  }

  private connectShadow(): void {
    this.sides.connect(other(this.side));
    if (this.spec.publish.length > 0 && this.sides.network === null) void this.publishPorts();
  }

  /** User-mode network: the dead primary's QEMU holds its ports until the kernel is done with it. */
  private async publishPorts(): Promise<void> {
    const qmp = this.keeper.shadow?.qemu?.qmp;
    await this.primary?.exited;
    for (const { hostPort, guestPort } of this.spec.publish) {
      const command = `hostfwd_add net0 tcp:127.0.0.1:${hostPort}-:${guestPort}`;
      try {
        const answer = await qmp?.execute('human-monitor-command', { 'command-line': command });
        if (answer !== undefined && answer.trim() !== '') throw new Error(answer.trim());
      } catch (error) {
        this.effectFailed('connect', error);
      }
    }
  }

  /** The promotion went well: the shadow is the primary now, and gets a shadow of its own. */
  private becomePrimary(reason: string): void {
    const old = this.primary as QemuProcess;
    const oldSide = this.side;
    const shadow = this.keeper.shadow as Shadow;
    const promotion = this.promotion as PromotionTimes;
    const from = promotion.from as CommittedEpoch;
    this.promotion = null;
    this.keeper.forget();
    this.side = other(oldSide);
    this.primary = shadow.qemu as QemuProcess;
    this.counters = null;
    this.state = 'running';
    const ms = (a: bigint, b: bigint) => Number(b - a) / 1e6;
    this.lastPromotion = {
      vm: this.spec.name,
      reason,
      planned: promotion.planned,
      generation: this.switchover.generation,
      epoch: from.epoch,
      cutAtNs: from.cutAtNs.toString(),
      decidedAtNs: promotion.decidedAtNs.toString(),
      fencedAtNs: promotion.fencedAtNs.toString(),
      resumedAtNs: promotion.resumedAtNs.toString(),
      resumeMs: ms(promotion.decidedAtNs, promotion.resumedAtNs),
      lagMs: Math.max(0, ms(from.cutAtNs, promotion.decidedAtNs)),
    };
    this.event('info', 'promotion.done', promotionWords(this.lastPromotion), this.lastPromotion);
    this.watchPrimary(this.primary, true);
    void this.afterPromotion(shadow, old, oldSide);
  }

  /** What a promotion leaves to be done, none of it in the guest's way. */
  private async afterPromotion(shadow: Shadow, old: QemuProcess, oldSide: Side): Promise<void> {
    try {
      await shadow.release();
      // What follows costs CPU time, and so does a guest's awakening: the guest goes first.
      await awakening(shadow.qemu as QemuProcess, AWAKENING_MS);
      await old.dispose();
      await this.sides.retire(oldSide);
      if (this.state === 'running' && !this.switchover.underWay) this.keeper.resume();
    } catch (error) {
      this.logError(error, 'after the promotion');
    }
  }

  private declareLost(reason: string): void {
    this.failure = reason;
    const { shadow } = this.keeper;
    const why = shadow === null ? 'it had no shadow' : `its shadow was ${shadow.state}`;
    this.event('error', 'vm.lost', `the VM is dead and nothing could take over, ${why}: ${reason}`, {});
    void this.end('failed', 'it is down; remove it and run it again');
  }

  private resumePrimary(reason: string): void {
    this.promotion = null;
    this.event(
      'warn',
      'promotion.cancelled',
      `the switchover asked for did not come about, the VM goes on as before: ${reason}`,
      {},
    );
    this.keeper.shadow?.resumeEpochs();
  }

  private effectFailed(effect: EffectName, error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    this.event('error', 'promotion.step-failed', `the step "${effect}" of taking over failed: ${reason}`, { effect });
  }

  // ---- Ends ----

  private async guestEnded(how: 'poweroff' | 'reboot'): Promise<void> {
    this.state = 'stopping';
    await this.keeper.close();
    await this.end(
      'stopped',
      how === 'poweroff' ? 'the guest powered itself off' : 'the guest rebooted, which ends a VM',
    );
  }

  private async end(state: 'stopped' | 'failed', why: string): Promise<void> {
    this.state = 'stopping';
    await this.release();
    this.state = state;
    await this.save().catch((error: unknown) => this.logError(error, 'saving the record'));
    this.event(state === 'failed' ? 'error' : 'info', `vm.${state}`, why, {});
  }

  /** Gives back everything on the host. Idempotent. */
  async release(): Promise<void> {
    clearInterval(this.usageTimer);
    // A promotion under way would go on with a shadow that is not there any more.
    this.switchover.close();
    this.watch?.close();
    await this.keeper.close();
    await this.primary?.dispose();
    this.primary = null;
    await this.sides.release();
  }

  // ---- Small things ----

  private sampleUsage(): void {
    const { primary } = this;
    if (primary === null || this.state !== 'running') return;
    const nowMs = monotonicMs();
    const next = readCounters(primary.pid, this.sides.networkBytes(this.side), primary.agent.last, nowMs);
    const usage = this.counters === null || next === null ? null : usageBetween(this.counters, next, this.spec.vcpus);
    this.counters = next;
    if (usage === null) return;
    this.usage = usage;
    this.keeper.observe(usage, nowMs);
  }

  private logError(error: unknown, doing: string): void {
    this.host.options.log.error({ err: error, vm: this.spec.name }, doing);
  }

  private record(generation: number): VmRecord {
    return {
      version: 1,
      spec: this.spec,
      generation,
      createdAt: this.createdAt,
      state: this.state,
      ...this.sides.facts(this.side),
    };
  }

  private save(generation = this.switchover.generation): Promise<void> {
    return this.host.options.stateDir.saveVmRecord(this.record(generation));
  }

  private event(
    level: 'info' | 'warn' | 'error',
    type: string,
    message: string,
    data: Record<string, unknown>,
    atNs?: bigint,
  ): void {
    this.host.options.events.append(level, type, this.spec.name, message, data, atNs);
  }

  private requireShadow(attempted: string): void {
    if (this.keeper.shadow === null)
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
      reason: this.switchover.underWay ? 'its shadow is taking over at this moment' : `the VM is ${this.state}`,
      remedy: 'Try again in a moment',
    });
  }
}

/** CLOCK_MONOTONIC ms at which its probes last found the guest well, where they are what told of its failure. */
function wellAt({ wellAtMs }: Death): { wellAtMs?: number | null } {
  return wellAtMs === undefined ? {} : { wellAtMs };
}

function guestFigures(beat: Beat, beats: number) {
  const { uptimeMs, memTotalKiB, memAvailableKiB, app } = beat;
  return { beats, uptimeMs, memTotalKiB, memAvailableKiB, app };
}
