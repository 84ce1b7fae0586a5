/**
 * A VM's promotions: what the effects of the switchover mean for its QEMUs, taps and epochs. The order of the effects is
 * the machine's (switchover/machine.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../clock.js';
import { messageOf } from '../errors.js';
import type { CommittedEpoch } from '../protect/protector.js';
import type { QemuProcess } from '../qemu/process.js';
import { epochTimes } from '../shadow/epochs.js';
import type { Shadow } from '../shadow/shadow.js';
import type { EffectName } from '../switchover/machine.js';
import { type EpochTime, type LastPromotion, rewindTarget } from '../switchover/rewind.js';
import { Switchover } from '../switchover/switchover.js';
import type { Death } from '../switchover/watch.js';
import type { PromotionView } from '../vm/view.js';
import { faultPoint } from './fault-point.js';
import { awakening } from './first-beat.js';
import { beginPromotion, chooseEpoch, type PromotionRun, promotionView } from './promotion-run.js';
import { other, type Side } from './sides.js';
import type { VmCore } from './vm-core.js';
import { DEATH_WORDS, promotionWords } from './vm-words.js';
import { letRun, loadFromImage, publishPorts } from './wake.js';

/** After its promotion a guest has the host for itself until its first heartbeat, but not longer than this. */
const AWAKENING_MS = 500;
/** And then so long for its answers to whoever it serves: what is left of a promotion costs CPU time. */
const ANSWERED_MS = 250;
/** A clock that is further behind is set before the guest answers anybody, and else when it has: setting it takes time too. */
const CLOCK_BEHIND_MS_MAX = 250;
/** QEMUs that may die, or refuse the state, before a promotion is given up. */
const LOAD_FAILURES_MAX = 4;

export interface TakeoverOptions {
  core: VmCore;
  shadow: () => Shadow | null;
  /** A promotion begins: nothing may watch the primary or make shadows from now on. */
  onFence: () => void;
  /** The shadow runs in the primary's place. */
  onDone: (view: PromotionView) => void;
  /** The VM is dead and nothing could take over. */
  onLost: (reason: string) => void;
}

export class Takeover {
  readonly switchover: Switchover;
  last: PromotionView | null = null;
  private run: PromotionRun | null = null;
  /** The QEMU that is to become the primary. */
  private next: QemuProcess | null = null;
  private before: LastPromotion | null = null;
  private closed = false;

  constructor(private readonly options: TakeoverOptions) {
    const { core } = options;
    this.switchover = new Switchover(core.name, core.generation, {
      'hand-over': () => this.handOver(),
      fence: () => this.fence(),
      'raise-limits': () => core.sides.limit(other(core.side), 'awakening'),
      'record-generation': (generation) => this.recordGeneration(generation),
      'load-state': () => this.loadState(),
      resume: () => this.resume(),
      connect: () => this.connect(),
      'protect-again': () => this.becomePrimary(),
      'declare-lost': (reason) => options.onLost(reason),
      'resume-primary': (reason) => this.resumePrimary(reason),
      onFailure: (effect, error) => this.effectFailed(effect, error),
    });
  }

  /** A planned switchover, to the newest epoch or to the one that is wanted. @throws PROMOTION_*, SHADOW_NOT_READY */
  async request(wanted: number | null): Promise<PromotionView> {
    this.wish = { wanted, reason: wanted === null ? 'by hand' : `by hand, to epoch ${wanted}` };
    await this.switchover.request(this.wish.reason);
    return this.last as PromotionView;
  }
  private wish: { wanted: number | null; reason: string } = { wanted: null, reason: 'by hand' };

  primaryDied(death: Death, killedFromOutside: boolean): void {
    const { core } = this.options;
    const reason = `${death.cause}: ${death.evidence}`;
    const wellAtMs = death.wellAtMs == null ? null : Date.now() - (monotonicMs() - death.wellAtMs);
    const told = `${DEATH_WORDS[death.cause]} (process ${core.primary?.pid}): ${death.evidence}`;
    core.event(
      'error',
      'failure.detected',
      told,
      { cause: death.cause, killedFromOutside, ...(wellAtMs === null ? {} : { wellAtMs }) },
      death.decidedAtNs,
    );
    // One that dies while it is handed over is promoted because of that, from the newest epoch that there is.
    if (this.switchover.phase === 'handing-over') this.run = null;
    const { cause, decidedAtNs } = death;
    this.run ??= beginPromotion({
      reason,
      planned: false,
      cause,
      killedFromOutside,
      wellAtMs,
      wanted: null,
      decidedAtNs,
    });
    this.switchover.dispatch({ type: 'primary-died', reason });
  }

  /** Gives up what is under way. */
  async close(): Promise<void> {
    this.closed = true;
    this.switchover.close();
    const { next } = this;
    this.next = null;
    await next?.dispose();
  }

  // ---- The effects, in their order ----

  private async handOver(): Promise<void> {
    const decidedAtNs = process.hrtime.bigint();
    const noDeath = { cause: null, killedFromOutside: false, wellAtMs: null };
    this.run ??= beginPromotion({ ...this.wish, ...noDeath, planned: true, decidedAtNs });
    await this.shadow().handOver();
  }

  /** After this the old primary never sends another packet: its tap is cut before it is even killed. */
  private async fence(): Promise<void> {
    const { core, onFence } = this.options;
    core.state = 'promoting';
    onFence();
    faultPoint('promotion', 1);
    core.sides.cut(core.side);
    if (this.shadow().qemu !== null) this.collectFrames(); // at once: what comes between the two taps is lost
    core.primary?.kill();
    this.letDie(core.side);
    const wasStrict = core.strict.mode === 'strict';
    core.strict.hold?.close();
    // Its monitor may be frozen: whoever waits for an answer is told at once.
    core.primary?.qmp.destroy();
    await this.shadow().halt();
    faultPoint('promotion', 2);
    await this.goBack(wasStrict);
    faultPoint('promotion', 3);
    (this.run as PromotionRun).fencedAtNs = process.hrtime.bigint();
  }

  /** To the epoch that the VM is to wake up from: the newest one, most often. */
  private async goBack(wasStrict: boolean): Promise<void> {
    const { core } = this.options;
    const run = this.run as PromotionRun;
    const shadow = this.shadow();
    const epochs = {
      newest: shadow.headEpoch,
      newestConfirmed: shadow.newestConfirmed(),
      newestSent: shadow.newestSent(),
      all: () => shadow.epochs(),
    };
    const choice = chooseEpoch(run, epochs, this.before);
    if (choice === null) throw new Error('the guest has died from every epoch that there is, the oldest one included');
    run.rewinds = choice.rewinds;
    const newest = shadow.committed;
    if (newest?.epoch === choice.epoch) {
      run.from = newest;
      return;
    }
    try {
      run.from = await shadow.rewind(choice.epoch);
    } catch (error) {
      // The newest is as good but for 200 ms when the other one was only the last that had sent, and is not kept any more.
      const asGood = choice.epoch === epochs.newestSent && epochs.newestConfirmed === epochs.newest;
      if (newest === null || !asGood) throw error;
      run.from = newest;
      return core.logError(error, 'going back to what had been sent');
    }
    // What left the guest is of epochs that a heartbeat came after, and that it had begun to leave with.
    const sent = Math.min(epochs.newestConfirmed ?? epochs.newest, epochs.newestSent ?? epochs.newest);
    this.tellRewind(newest?.epoch, choice.epoch, choice.because ?? '', wasStrict && choice.epoch < sent);
  }

  /** Without it the promotion goes on, slower. */
  private letDie(side: Side): void {
    const { core } = this.options;
    try {
      core.sides.letDie(side);
    } catch (error) {
      core.logError(error, 'putting a dying QEMU behind');
    }
  }

  private async recordGeneration(generation: number): Promise<void> {
    this.options.core.note(generation);
    faultPoint('promotion', 4);
  }

  private async loadState(): Promise<void> {
    for (let failures = 0; ; failures++) {
      try {
        return await this.loadIntoNext();
      } catch (error) {
        if (this.closed || failures === LOAD_FAILURES_MAX) throw error;
        await this.prepareAnotherTry(error);
      }
    }
  }

  /** Another QEMU gets the state; of an older epoch when a page of this one is lost. @throws `error` when there is none */
  private async prepareAnotherTry(error: unknown): Promise<void> {
    const { core } = this.options;
    const run = this.run as PromotionRun;
    const failed = this.next;
    this.next = null;
    await failed?.dispose();
    const { from } = run;
    if (failed === null || core.endedForItsImage !== failed || from === null) {
      core.event('warn', 'promotion.retried', `another QEMU is to take over: ${messageOf(error)}`, {});
      return;
    }
    const to = await this.rewindFrom(from, error);
    this.tellRewind(from.epoch, to.epoch, 'a page of it is lost', core.strict.mode === 'strict');
  }

  private tellRewind(from: number | undefined, to: number, because: string, breaksStrict: boolean): void {
    const rewinds = this.run?.rewinds ?? 0;
    const rolledBack =
      '; what the outside has seen since then is rolled back, which strict mode had promised not to do';
    this.options.core.event(
      rewinds > 0 || breaksStrict ? 'warn' : 'info',
      'promotion.rewound',
      `taken back from epoch ${from} to ${to}: ${because}${breaksStrict ? rolledBack : ''}`,
      { from, to, rewinds, breaksStrict },
    );
  }

  /** To the next older epoch whose device state is whole. @throws `error` when there is none */
  private async rewindFrom(from: EpochTime, error: unknown): Promise<CommittedEpoch> {
    const run = this.run as PromotionRun;
    const shadow = this.shadow();
    const epochs = epochTimes(shadow.epochs());
    for (let tried = from; ; ) {
      const older = rewindTarget(epochs, { from: tried, resumedAtMs: 0, rewinds: run.rewinds++ });
      if (older === null) throw error;
      try {
        run.from = await shadow.rewind(older.epoch);
        return run.from;
      } catch {
        tried = older;
      }
    }
  }

  private async loadIntoNext(): Promise<void> {
    const { core } = this.options;
    const from = this.run?.from;
    const image = core.shadowImage.opened;
    if (from == null || image === null) throw new Error('the shadow is gone');
    const qemu = await this.shadow().takeStandby();
    if (this.closed) {
      await qemu.dispose();
      throw new Error('the VM was ended meanwhile');
    }
    this.next = qemu;
    // Again: one that was just coming up when they were raised has been given those of a standby since.
    core.sides.limit(other(core.side), 'awakening');
    const onCorrupt = (page: number, why: string) => core.corruptPage(qemu, page, why);
    const loaded = Promise.all([
      loadFromImage(qemu, image, from.deviceState, core.hotPath, onCorrupt),
      this.shadow().completeDisks(),
    ]);
    this.collectFrames(); // again, if its QEMU was not there yet
    if (core.strict.mode === 'strict') core.sides.replayTo(other(core.side)); // while it is busy
    await loaded;
    faultPoint('promotion', 5);
  }

  /**
   * What the guest is sent from now on waits at its tap until it runs: lost, it would come again when its senders' time
   * runs out, 200 ms later. Nothing runs yet that could answer.
   */
  private collectFrames(): void {
    const { core } = this.options;
    try {
      core.sides.connect(other(core.side), true);
    } catch (error) {
      core.logError(error, 'collecting what the guest is sent');
    }
  }

  private async resume(): Promise<void> {
    const { shadowImage, strict, side } = this.options.core;
    const run = this.run as PromotionRun;
    const next = this.next as QemuProcess;
    const image = shadowImage.opened;
    const from = image === null || run.from === null ? null : { imageId: image.describe().id, epoch: run.from.epoch };
    strict.attach(next, other(side), true);
    await letRun(next, from);
    run.resumedAtNs = process.hrtime.bigint();
    faultPoint('promotion', 6);
  }

  private connect(): void {
    const { core } = this.options;
    core.sides.connect(other(core.side)); // again, if it failed while QEMU was busy
    core.sides.announce(other(core.side));
    if (core.spec.publish.length > 0 && core.sides.network === null) void this.publishPorts();
    faultPoint('promotion', 7);
  }

  /** User-mode network: the dead primary's QEMU holds its ports until the kernel is done with it. */
  private async publishPorts(): Promise<void> {
    const { core } = this.options;
    const next = this.next as QemuProcess;
    await core.primary?.exited;
    await publishPorts(next, core.spec.publish).catch((error: unknown) => this.effectFailed('connect', error));
  }

  /** The promotion went well: the shadow is the primary now, and gets a shadow of its own. */
  private becomePrimary(): void {
    const { core } = this.options;
    const run = this.run as PromotionRun;
    const old = core.primary;
    const oldSide = core.side;
    const oldShadow = this.shadow();
    const primary = this.next as QemuProcess;
    this.run = null;
    this.next = null;
    core.generation = this.switchover.generation;
    core.primary = primary;
    core.side = other(oldSide);
    core.disks.exchange();
    core.wokeFrom = run.from;
    core.followed = true;
    core.state = 'running';
    const from = run.from as { epoch: number; cutAtMs: number };
    // Its clock has stood still since the cut.
    const clockWaits = Date.now() - from.cutAtMs < CLOCK_BEHIND_MS_MAX;
    if (!clockWaits) primary.agent.setClock(Date.now());
    // What a promotion leaves to be done costs CPU time, and so does a guest's awakening: the guest goes first.
    const awake = awakening(primary, AWAKENING_MS);
    const imageFree = oldShadow.dispose();
    // In strict mode somebody waits for the first epoch.
    core.awake = core.strict.mode === 'strict' ? imageFree : Promise.all([imageFree, awake]).then(() => {});
    core.otherSideFree = (async () => {
      await imageFree;
      await awake;
      core.noteAwakening(primary, null, ANSWERED_MS);
      await sleep(ANSWERED_MS);
      if (clockWaits) primary.agent.setClock(Date.now());
      core.limitPrimary();
      await old?.dispose();
      await core.sides.retire(oldSide);
    })().catch((error: unknown) => core.logError(error, 'after the promotion'));
    this.before = { from: { epoch: from.epoch, cutAtMs: from.cutAtMs }, resumedAtMs: Date.now(), rewinds: run.rewinds };
    this.last = promotionView(run, core.name, this.switchover.generation);
    core.event('info', 'promotion.done', promotionWords(this.last), this.last);
    core.saveSoon();
    this.options.onDone(this.last);
  }

  private resumePrimary(reason: string): void {
    this.run = null;
    this.options.core.event(
      'warn',
      'promotion.cancelled',
      `the switchover asked for did not come about, the VM goes on as before: ${reason}`,
      {},
    );
    this.options.shadow()?.resumeEpochs();
  }

  private effectFailed(effect: EffectName, error: unknown): void {
    const reason = messageOf(error);
    this.options.core.event('error', 'promotion.step-failed', `the step "${effect}" of taking over failed: ${reason}`, {
      effect,
    });
  }

  private shadow(): Shadow {
    const shadow = this.options.shadow();
    if (shadow === null) throw new Error('the shadow is gone');
    return shadow;
  }
}
