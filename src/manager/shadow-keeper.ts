/** Decides when a VM gets a shadow, and makes it anew when it is lost. */

import { monotonicMs } from '../clock.js';
import type { Usage } from '../monitor/thresholds.js';
import { stepTriggers, type TriggerStates } from '../monitor/thresholds.js';
import type { Shadow } from '../shadow/shadow.js';
import type { ShadowRule, Trigger } from '../vm/spec.js';
import { formatTrigger } from '../vm/trigger-text.js';

const REMAKE_AFTER_MS_MIN = 500;
const REMAKE_AFTER_MS_MAX = 30_000;
/** A shadow that lived so long was sound: the next one is made without the waiting of a row of failures. */
const SOUND_AFTER_MS = 60_000;

export interface ShadowKeeperOptions {
  rule: ShadowRule;
  /** Begins to make a shadow. */
  make: (because: string) => Shadow;
  /** The present value of a threshold that moves. */
  moving: (metric: Trigger['metric']) => number;
  /** A remake was put off because of a failure. */
  onRemake: (delayMs: number) => void;
}

export class ShadowKeeper {
  shadow: Shadow | null = null;
  /** Why this VM is to have a shadow; null when it is not to have one. */
  private wantedBecause: string | null = null;
  private triggered: TriggerStates = [];
  private timer: NodeJS.Timeout | undefined;
  private dropping: Promise<unknown> = Promise.resolve();
  private failures = 0;
  private madeAtMs = 0;
  private suspended = true;
  private closed = false;
  /** What was declared, until a shadow is taken away by hand. */
  rule: ShadowRule;

  constructor(private readonly options: ShadowKeeperOptions) {
    this.rule = options.rule;
    if (this.rule.kind === 'always') this.wantedBecause = 'always';
  }

  /** There is a running primary: shadows may be made. */
  resume(): void {
    this.suspended = false;
    if (this.wantedBecause !== null && this.shadow === null) this.make(this.wantedBecause);
  }

  /** There is none, or it is being switched: nothing is made until resume(). */
  suspend(): void {
    this.suspended = true;
    clearTimeout(this.timer);
  }

  /** Looks whether a trigger fires. Called with each usage sample. */
  observe(usage: Usage, nowMs: number): void {
    if (this.rule.kind !== 'when' || this.wantedBecause !== null || this.suspended) return;
    const { states, fired } = stepTriggers(this.rule.triggers, this.triggered, usage, nowMs, this.options.moving);
    this.triggered = states;
    if (fired === null) return;
    const { metric, above } = fired.trigger;
    const amount = (value: number) => `${Math.round(value)} ${metric === 'network' ? 'B/s' : '%'}`;
    const now = above === 'auto' ? ` (${amount(this.options.moving(metric))} now)` : '';
    this.want(`${metric} at ${amount(fired.value)}, trigger ${formatTrigger(fired.trigger)}${now}`);
  }

  /** From now on this VM is to have a shadow. */
  want(because: string): Shadow {
    this.wantedBecause = because;
    if (this.shadow === null) this.make(because);
    return this.shadow as unknown as Shadow;
  }

  /** Takes the shadow away, and the rule with it: it would only come back. */
  async unwant(): Promise<void> {
    this.rule = { kind: 'manual' };
    this.wantedBecause = null;
    await this.drop();
  }

  /** The shadow's standby has become the primary: the next one is made when the keeper resumes. */
  forget(): void {
    this.shadow = null;
    if (this.wantedBecause !== null) this.wantedBecause = 'protect again after a promotion';
  }

  /** The shadow failed: it goes, and another is made after a while, without the primary noticing. */
  async replace(): Promise<void> {
    const soundMs = monotonicMs() - this.madeAtMs;
    this.failures = soundMs > SOUND_AFTER_MS ? 1 : this.failures + 1;
    await this.drop();
    if (this.wantedBecause === null || this.suspended) return;
    const delayMs = Math.min(REMAKE_AFTER_MS_MAX, REMAKE_AFTER_MS_MIN * 2 ** (this.failures - 1));
    this.options.onRemake(delayMs);
    this.timer = setTimeout(() => this.resume(), delayMs);
  }

  /** There is no shadow while `work` is done; after it, whatever came of it, there is one again if there was to be one. */
  async without(work: () => Promise<void>): Promise<void> {
    this.suspend();
    try {
      await this.drop();
      await work();
    } finally {
      if (!this.closed) this.resume();
    }
  }

  async close(): Promise<void> {
    this.closed = true;
    this.suspend();
    await this.drop();
  }

  private make(because: string): void {
    clearTimeout(this.timer);
    this.madeAtMs = monotonicMs();
    this.shadow = this.options.make(because);
  }

  /** Resolves when every shadow of this VM that was to go is gone, those of earlier calls included. */
  private drop(): Promise<void> {
    clearTimeout(this.timer);
    const { shadow } = this;
    this.shadow = null;
    if (shadow !== null) this.dropping = Promise.all([this.dropping, shadow.dispose()]);
    return this.dropping.then(() => {});
  }
}
