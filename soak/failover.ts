/**
 * Kills a VM again and again, at chosen moments, and examines what came back each time.
 *
 * Two witnesses: a program in the guest keeps a self-checking structure in most of its memory (memory of two moments
 * mixed up would not agree with itself), and a client outside keeps the account of what Redis acknowledged. Neither may
 * miss anything that is older than the cut of the promoted epoch.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { nowMs, sleep } from '../harness/daemon.js';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { type Acknowledged, Writer } from '../harness/writer.js';
import { messageOf } from '../src/errors.js';
import { POISON_AFTER_MS } from '../src/switchover/rewind.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import type { Event, PromotionView, VmView } from '../src/vm/view.js';
import { type Distribution, distribution } from './distribution.js';
import { Memcheck } from './memcheck.js';
import { EpochPhases, type Phase } from './phases.js';
import { type Aim, type Fault, planRound, type RoundPlan } from './plan.js';
import { RingAccount, readRing, ringCommand } from './ring.js';

const REDIS_PORT = 6379;
/** On the host, where there is no tap. */
const PUBLISHED_PORT = 16380;
const MEMCHECK_MIB = 48;
/** A third of what one emulated vCPU can: 48 MiB are verified whole five times a second, and Redis gets its share. */
const MEMCHECK_WRITES_PER_SECOND = 60_000;
/** Leaves the CPUs to the VM and its manager, which shares this process. */
const REDIS_WRITES_PER_SECOND = 2000;

const PROMOTION_TIMEOUT_MS = 30_000;
const VERIFY_TIMEOUT_MS = 60_000;
const READY_TIMEOUT_MS = 60_000;
/** The old primary, its tap and its group go while the next shadow is made. */
const CLEAN_TIMEOUT_MS = 10_000;
/** Enough to see a pattern; after a failure the VM is booted anew. */
const FAILURES_MAX = 5;
const FAILURE_EVENTS = 40;
const TAIL_CHARS = 4096;
const WORDS_MAX = 6;
/** A descriptor leaked in each round would show; a few more or less are sockets and timers of the moment. */
const FDS_GROWTH_MAX = 16;
/** Beyond the time in which a death right after a promotion counts as caused by it. */
const MARGIN_MS = 200;
/** What a guest's kernel says when its state is broken; a drill's panic says none of these. */
const KERNEL_COMPLAINT = /BUG:|Oops|general protection|segfault|Bad page|memcheck: /;

export interface FailoverOptions {
  seed: number;
  rounds: number;
  vm: Pick<VmSpecInput, 'ramBytes' | 'vcpus' | 'tracking'>;
  bridge: string;
  subnet: string;
  /** Ends the soak early and cleanly. */
  signal?: AbortSignal;
  onProgress: (line: string) => void;
}

export interface Failure {
  /** 0: before the first one, or after the last. */
  round: number;
  plan: RoundPlan | null;
  what: string;
  events: Event[];
  consoleTail: string;
  qemuLogTail: string;
}

export interface FailoverResult {
  rounds: number;
  interrupted: boolean;
  seconds: number;
  faults: Record<Fault, number>;
  /** What was hit, as seen from outside. */
  phases: Record<Phase, number>;
  aims: Partial<Record<Aim, number>>;
  promotionsFailed: number;
  /** Pages, tables and sums that the guest found wrong. */
  memcheckBad: number;
  memcheckVerifications: number;
  /** Times that the guest had forgotten a memcheck write of before the cut. */
  memcheckForgot: number;
  writesAcknowledged: number;
  writesLostWithinLag: number;
  writesLostOlderThanLag: number;
  detectMs: Record<Fault, Distribution>;
  /** Decision → the old primary can do no harm and the newest epoch is whole; a part of resumeMs. */
  fenceMs: Distribution;
  resumeMs: Distribution;
  /** Age of the promoted epoch at the fault: what was rolled back. */
  lagAtFaultMs: Distribution;
  /** Promotion → the next shadow is ready. */
  reprotectMs: Distribution;
  eventCounts: Record<string, number>;
  openFiles: { first: number; last: number };
  residentMiB: { first: number; last: number };
  failures: Failure[];
}

class Interrupted extends Error {}

export async function soakFailover(options: FailoverOptions): Promise<FailoverResult> {
  const manager = await InProcessManager.open({ bridge: options.bridge, subnet: options.subnet });
  const soak = new FailoverSoak(options, manager);
  try {
    await soak.run();
  } finally {
    await soak.close();
  }
  return soak.result();
}

class FailoverSoak {
  private readonly startedMs = nowMs();
  private guest: SoakGuest | null = null;
  private guests = 0;
  private roundsDone = 0;
  private interrupted = false;
  private readonly failures: Failure[] = [];
  private readonly faults = { kill: 0, hang: 0, panic: 0 };
  private readonly phases = { between: 0, 'pre-copy': 0, pause: 0, commit: 0 };
  private readonly aims: Partial<Record<Aim, number>> = {};
  private readonly detectMs = { kill: [] as number[], hang: [] as number[], panic: [] as number[] };
  private readonly fenceMs: number[] = [];
  private readonly resumeMs: number[] = [];
  private readonly lagAtFaultMs: number[] = [];
  private readonly reprotectMs: number[] = [];
  private readonly eventCounts: Record<string, number> = {};
  private readonly totals = {
    failedPromotions: 0,
    bad: 0,
    verified: 0,
    forgot: 0,
    acknowledged: 0,
    lost: 0,
    lostOlder: 0,
  };
  private readonly usage: { openFiles: number; residentMiB: number }[] = [];

  constructor(
    private readonly options: FailoverOptions,
    private readonly manager: InProcessManager,
  ) {
    manager.events.follow(({ type }) => {
      this.eventCounts[type] = (this.eventCounts[type] ?? 0) + 1;
    });
  }

  async run(): Promise<void> {
    const { seed, rounds } = this.options;
    let plan: RoundPlan | null = null;
    while (this.roundsDone < rounds && this.failures.length < FAILURES_MAX) {
      const round = this.roundsDone + 1;
      try {
        plan = null;
        this.guest ??= await this.boot();
        plan = planRound(seed, round);
        const last = round === rounds;
        await this.round(this.guest, round, plan, last ? null : planRound(seed, round + 1));
      } catch (error) {
        if (error instanceof Interrupted) {
          this.interrupted = true;
          return;
        }
        await this.fail(round, plan, error);
        if (plan === null) return; // a VM that can not even be booted
      }
      this.roundsDone = round;
    }
  }

  async close(): Promise<void> {
    const { root } = this.manager.stateDir;
    await this.endGuest();
    await this.manager.close();
    const left = leftovers(root);
    if (left.length > 0) this.failures.push(failureOf(0, null, `left behind on the host: ${left.join(', ')}`));
  }

  result(): FailoverResult {
    const { totals, usage } = this;
    // The first rounds fill caches and pools.
    const [first, last] = [usage[Math.min(9, usage.length - 1)], usage.at(-1)];
    if (first !== undefined && last !== undefined && last.openFiles > first.openFiles + FDS_GROWTH_MAX)
      this.failures.push(failureOf(0, null, `open files grew from ${first.openFiles} to ${last.openFiles}`));
    return {
      rounds: this.roundsDone,
      interrupted: this.interrupted,
      seconds: Math.round((nowMs() - this.startedMs) / 1000),
      faults: this.faults,
      phases: this.phases,
      aims: this.aims,
      promotionsFailed: totals.failedPromotions,
      memcheckBad: totals.bad,
      memcheckVerifications: totals.verified,
      memcheckForgot: totals.forgot,
      writesAcknowledged: totals.acknowledged,
      writesLostWithinLag: totals.lost,
      writesLostOlderThanLag: totals.lostOlder,
      detectMs: {
        kill: distribution(this.detectMs.kill),
        hang: distribution(this.detectMs.hang),
        panic: distribution(this.detectMs.panic),
      },
      fenceMs: distribution(this.fenceMs),
      resumeMs: distribution(this.resumeMs),
      lagAtFaultMs: distribution(this.lagAtFaultMs),
      reprotectMs: distribution(this.reprotectMs),
      eventCounts: this.eventCounts,
      openFiles: { first: first?.openFiles ?? 0, last: last?.openFiles ?? 0 },
      residentMiB: { first: first?.residentMiB ?? 0, last: last?.residentMiB ?? 0 },
      failures: this.failures,
    };
  }

  private async boot(): Promise<SoakGuest> {
    const name = `soak-${++this.guests}`;
    const { signal, onProgress } = this.options;
    const asRoot = process.getuid?.() === 0;
    const spec: VmSpecInput = {
      ...this.options.vm,
      name,
      shadow: { kind: 'always' },
      ...(asRoot ? {} : { network: 'user', publish: [{ hostPort: PUBLISHED_PORT, guestPort: REDIS_PORT }] }),
    };
    onProgress(`booting ${name}, its shadow, memcheck and Redis`);
    const vm = await this.manager.port
      .runVm(spec, () => {}, signal)
      .catch((error: unknown) => {
        throw signal?.aborted ? new Interrupted() : error;
      });
    const guest = new SoakGuest(this.manager, vm, signal);
    this.guest = guest;
    await guest.start();
    const { tracking } = this.manager.port.showVm(name).shadow ?? { tracking: 'no' };
    onProgress(
      `${vm.accelerator}, ${vm.spec.ramBytes / MIB} MiB, ${vm.spec.vcpus} vCPU, ${vm.networkMode} network, ${tracking} tracking`,
    );
    return guest;
  }

  private async round(guest: SoakGuest, round: number, plan: RoundPlan, next: RoundPlan | null): Promise<void> {
    await guest.aim(plan);
    // The drill of a panic waits for the end of the epoch under way.
    const phase = plan.fault === 'panic' ? 'between' : guest.phases.now();
    const faultAtMs = await guest.inject(plan.fault);
    this.faults[plan.fault]++;
    this.phases[phase]++;
    this.aims[plan.aim] = (this.aims[plan.aim] ?? 0) + 1;
    let promotion: PromotionView;
    try {
      promotion = await guest.promotion();
    } catch (error) {
      if (!(error instanceof Interrupted)) this.totals.failedPromotions++;
      throw error;
    }
    const detectMs = Number(promotion.decidedAtNs) / 1e6 - faultAtMs;
    const lagMs = faultAtMs - Number(promotion.cutAtNs) / 1e6;
    this.detectMs[plan.fault].push(detectMs);
    this.fenceMs.push((Number(promotion.fencedAtNs) - Number(promotion.decidedAtNs)) / 1e6);
    this.resumeMs.push(promotion.resumeMs);
    this.lagAtFaultMs.push(lagMs);
    // A fault right after the next shadow is ready leaves no time to examine this promotion: its own will examine both.
    const verdict = next?.aim === 'ready' ? 'examined with the next round' : await this.examine(guest);
    const reprotectMs = await guest.protectedAgain();
    this.reprotectMs.push(reprotectMs);
    this.options.onProgress(
      [
        `${String(round).padStart(4)}/${this.options.rounds}`,
        `${plan.fault.padEnd(5)} ${(plan.aim === 'ready' ? 'once ready' : phase).padEnd(10)}`,
        `detected ${ms(detectMs)}`,
        `resumed ${ms(promotion.resumeMs)}`,
        `lag ${ms(lagMs)}`,
        `protected again ${ms(reprotectMs)}`,
        verdict,
      ].join('  '),
    );
  }

  /** @throws when anything is wrong with the guest of the last promotions */
  private async examine(guest: SoakGuest): Promise<string> {
    const wrong = await guest.memoryIsWrong();
    this.totals.bad += wrong.bad;
    this.totals.verified++;
    if (wrong.forgot) this.totals.forgot++;
    const ring = await guest.ringFindings();
    this.totals.lost += ring.lostWithinLag;
    this.totals.lostOlder += ring.lostOlder;
    const words = [...wrong.words, ...ring.wrong, ...guest.kernelComplaints(), ...(await guest.remains())];
    if (words.length > WORDS_MAX) words.splice(WORDS_MAX, words.length, `and ${words.length - WORDS_MAX} more`);
    if (words.length > 0) throw new Error(words.join('; '));
    this.usage.push(ownUsage());
    return `memory good, ${ring.lostWithinLag} writes lost within the lag`;
  }

  private async fail(round: number, plan: RoundPlan | null, error: unknown): Promise<void> {
    const what = messageOf(error);
    const { manager, guest } = this;
    const events = manager.events.list({ limit: FAILURE_EVENTS });
    const name = guest?.name ?? `soak-${this.guests}`;
    const { stateDir } = manager;
    const consoleTail = tailOf(stateDir.consoleLogPath(name));
    const failure = { round, plan, what, events, consoleTail, qemuLogTail: tailOf(stateDir.qemuLogPath(name)) };
    this.failures.push(failure);
    this.options.onProgress(failureText(failure));
    await this.endGuest();
  }

  private async endGuest(): Promise<void> {
    const { guest } = this;
    this.guest = null;
    if (guest === null) return;
    this.totals.acknowledged += guest.account.acknowledgedTotal;
    await guest.close();
    await this.manager.port.removeVm(guest.name, { force: true }).catch(() => {}); // the manager's end takes the rest
  }
}

/** The VM, what runs in it, and what is known of it. */
class SoakGuest {
  readonly account = new RingAccount();
  phases: EpochPhases;
  private readonly memcheck: Memcheck;
  private readonly writer: Writer;
  private readonly off: () => void;
  private promotionsWanted = 0;
  private promotions: PromotionView[] = [];
  private readyAtMs: number | null = null;
  private onReady: (() => void) | null = null;
  private consoleRead = 0;

  readonly name: string;
  private readonly host: string;
  private readonly port: number;

  constructor(
    private readonly manager: InProcessManager,
    { name, address }: VmView,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.name = name;
    [this.host, this.port] = address === null ? ['127.0.0.1', PUBLISHED_PORT] : [address, REDIS_PORT];
    const vm = manager.port.vmForTest(name);
    const phasesOf = () => new EpochPhases(manager.processes(name).primary, () => vm.shadow);
    this.phases = phasesOf();
    this.memcheck = new Memcheck(MEMCHECK_MIB, () => vm.processesForTest.primary);
    this.writer = new Writer({
      host: this.host,
      port: this.port,
      command: ringCommand,
      onAcknowledged: (write: Acknowledged) => this.account.add(write),
      writesPerSecondMax: REDIS_WRITES_PER_SECOND,
    });
    if (manager.port.showVm(name).shadow?.state === 'ready') this.readyAtMs = nowMs();
    this.off = manager.events.follow((event) => {
      if (event.vm !== name) return;
      if (event.type === 'promotion.done') {
        const promotion = event.data as PromotionView;
        this.promotions.push(promotion);
        this.readyAtMs = null;
        this.phases.close();
        this.phases = phasesOf();
        this.memcheck.promoted(manager.processes(name).primary.pid, BigInt(promotion.cutAtNs));
        this.account.rolledBack({
          cutMs: Number(promotion.cutAtNs) / 1e6,
          resumedMs: Number(promotion.resumedAtNs) / 1e6,
          connections: this.writer.connections,
        });
      }
      // Not what "shadow.ready" says after a time of being behind.
      if (event.type === 'shadow.ready' && this.readyAtMs === null) {
        this.readyAtMs = Number(event.atNs) / 1e6;
        this.onReady?.();
      }
    });
  }

  async start(): Promise<void> {
    const command = Memcheck.command(MEMCHECK_MIB, MEMCHECK_WRITES_PER_SECOND);
    const exitCode = await this.manager.port.guestExec(this.name, command);
    if (exitCode.exitCode !== 0) throw new Error(`memcheck did not start: exit code ${exitCode.exitCode}`);
    this.writer.start();
    await this.until('the first acknowledged write', () => this.account.acknowledgedTotal > 0, VERIFY_TIMEOUT_MS);
    await this.until('the first verification by memcheck', () => this.memcheck.verified, VERIFY_TIMEOUT_MS);
    await this.until('a ready shadow', () => this.readyAtMs !== null, READY_TIMEOUT_MS);
  }

  async close(): Promise<void> {
    this.off();
    this.phases.close();
    this.memcheck.close();
    await this.writer.stop();
  }

  /** Resolves at the moment for the fault. */
  async aim(plan: RoundPlan): Promise<void> {
    if (plan.delayMs > 0) await sleep(plan.delayMs);
    this.check();
    const { aim } = plan;
    // A guest that panics right after its promotion goes back further than the newest epoch, which is all this soak examines.
    const last = this.promotions.at(-1);
    if (plan.fault === 'panic' && last !== undefined)
      await sleep(Math.max(0, Number(last.decidedAtNs) / 1e6 + last.resumeMs + POISON_AFTER_MS + MARGIN_MS - nowMs()));
    this.check();
    if (aim !== 'any' && aim !== 'ready') await this.phases.enter(aim, plan.within);
    this.check();
  }

  /** @returns when, CLOCK_MONOTONIC ms */
  async inject(fault: Fault): Promise<number> {
    this.promotionsWanted++;
    if (fault === 'panic') return Number((await this.manager.port.injectFault(this.name, 'panic')).atNs) / 1e6;
    const { primary } = this.manager.processes(this.name);
    const atMs = nowMs();
    fault === 'kill' ? primary.kill() : primary.freeze();
    return atMs;
  }

  async promotion(): Promise<PromotionView> {
    const generation = this.promotionsWanted;
    await this.until('the promotion', () => this.promotions.length === generation, PROMOTION_TIMEOUT_MS);
    const promotion = this.promotions.at(-1) as PromotionView;
    if (promotion.generation !== generation)
      throw new Error(`promotion ${generation} counts as generation ${promotion.generation}`);
    if (BigInt(promotion.cutAtNs) > BigInt(promotion.decidedAtNs))
      throw new Error('the promoted epoch was cut after the decision');
    return promotion;
  }

  /** Resolves in the moment in which the next shadow is ready, with the time since the promotion, ms. */
  async protectedAgain(): Promise<number> {
    if (this.readyAtMs === null) {
      const ready = new Promise<void>((resolve) => {
        this.onReady = resolve;
      });
      await Promise.race([ready, this.until('the next shadow', () => this.readyAtMs !== null, READY_TIMEOUT_MS)]);
      this.onReady = null;
    }
    return (this.readyAtMs ?? 0) - Number(this.promotions.at(-1)?.resumedAtNs) / 1e6;
  }

  /** Waits until the guest has verified all of its memory since the last promotion. */
  async memoryIsWrong(): Promise<{ bad: number; forgot: boolean; words: string[] }> {
    const { memcheck } = this;
    const broken = () => (memcheck.last?.bad ?? 0) > 0;
    await this.until('a whole verification by memcheck', () => memcheck.verified || broken(), VERIFY_TIMEOUT_MS);
    const bad = memcheck.last?.bad ?? 0;
    const words = bad > 0 ? [`memcheck found ${bad} pages or sums wrong`] : [];
    const i = memcheck.first?.i ?? 0;
    const forgot = i < memcheck.leastWrite;
    if (forgot) words.push(`memcheck was at ${i} after the promotion, but at ${memcheck.leastWrite} before the cut`);
    return { bad, forgot, words };
  }

  async ringFindings() {
    await this.until('a write that the new primary acknowledged', () => this.account.goesOn, VERIFY_TIMEOUT_MS);
    await this.writer.stop();
    const slots = await readRing(this.host, this.port).catch((error: unknown) => {
      this.check(); // a promotion that nobody ordered, or a VM that died, explains more than a connection that broke
      throw error;
    });
    const findings = this.account.check(slots, this.writer.next);
    this.writer.start();
    return findings;
  }

  /** New on the console since the last look. */
  kernelComplaints(): string[] {
    const text = readFileSync(this.manager.stateDir.consoleLogPath(this.name), 'latin1');
    const lines = text.slice(this.consoleRead).split('\n');
    this.consoleRead = text.length;
    return lines.filter((line) => KERNEL_COMPLAINT.test(line)).map((line) => `the guest's console: ${line.trim()}`);
  }

  /** What the dead primary left: gone soon after the promotion. */
  async remains(): Promise<string[]> {
    const untilMs = nowMs() + CLEAN_TIMEOUT_MS;
    for (;;) {
      const found = leftovers(this.manager.stateDir.root);
      const count = (what: string) => found.filter((name) => name.startsWith(what)).length;
      // Primary and shadow; the bridge and a tap for each.
      if (count('QEMU') <= 2 && count('interface') <= 3) return [];
      if (nowMs() > untilMs) return [`the old primary is not gone: ${found.join(', ')}`];
      await sleep(50);
    }
  }

  private async until(what: string, holds: () => boolean, timeoutMs: number): Promise<void> {
    await this.manager.until(
      what,
      () => {
        this.check();
        return holds();
      },
      timeoutMs,
    );
  }

  /** @throws when the soak is to end, or something happened to the VM that nobody ordered */
  private check(): void {
    if (this.signal?.aborted) throw new Interrupted();
    const { state, failure } = this.manager.port.showVm(this.name);
    if (state === 'failed' || state === 'stopped') throw new Error(`the VM is ${state}: ${failure}`);
    if (this.promotions.length > this.promotionsWanted)
      throw new Error(`a promotion that nobody needed: ${this.promotions.at(-1)?.reason}`);
  }
}

function tailOf(path: string): string {
  return existsSync(path) ? readFileSync(path, 'latin1').slice(-TAIL_CHARS) : '';
}

function ownUsage(): { openFiles: number; residentMiB: number } {
  const openFiles = existsSync('/proc/self/fd') ? readdirSync('/proc/self/fd').length : 0;
  return { openFiles, residentMiB: Math.round(process.memoryUsage.rss() / 2 ** 20) };
}

function failureOf(round: number, plan: RoundPlan | null, what: string): Failure {
  return { round, plan, what, events: [], consoleTail: '', qemuLogTail: '' };
}

function failureText({ round, plan, what, events, consoleTail, qemuLogTail }: Failure): string {
  const aim = plan === null ? '' : ` (${plan.fault}, aimed at ${plan.aim})`;
  const happened = events.map((e) => `  ${(Number(e.atNs) / 1e6).toFixed(1)} ${e.type.padEnd(20)} ${e.message}`);
  return [`VIOLATION in round ${round}${aim}: ${what}`, 'events (ms of the monotonic clock):', ...happened]
    .concat(['console:', consoleTail, 'QEMU:', qemuLogTail])
    .join('\n');
}

const ms = (value: number) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
