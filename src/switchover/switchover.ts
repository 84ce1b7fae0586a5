/** Runs the state machine: carries out its effects through `actions` and feeds their outcomes back. */
import { messageOf, ShadowVmError } from '../errors.js';
import type { Effect, EffectName, SwitchoverEvent, SwitchoverState } from './machine.js';
import { initialState, step } from './machine.js';

/** What the effects mean for a real VM. Those that return a promise report when it settles. */
export interface SwitchoverActions {
  'hand-over'(): Promise<void>;
  fence(): Promise<void>;
  'raise-limits'(): void;
  'record-generation'(generation: number): Promise<void>;
  'load-state'(): Promise<void>;
  resume(): Promise<void>;
  connect(): void;
  /** The promotion is over and went well. */
  'protect-again'(reason: string, generation: number): void;
  'declare-lost'(reason: string): void;
  'resume-primary'(reason: string): void;
  /** An effect failed; told before the machine goes on. */
  onFailure(effect: EffectName, error: unknown): void;
}

export class Switchover {
  private state: SwitchoverState;
  private closed = false;
  private waiting: { resolve: () => void; reject: (error: ShadowVmError) => void }[] = [];

  constructor(
    private readonly vm: string,
    generation: number,
    private readonly actions: SwitchoverActions,
  ) {
    this.state = initialState(generation);
  }

  get phase(): SwitchoverState['phase'] {
    return this.state.phase;
  }
  get generation(): number {
    return this.state.generation;
  }
  /** True from the decision to the end of a promotion. */
  get underWay(): boolean {
    return !this.closed && this.state.phase !== 'watching' && this.state.phase !== 'lost';
  }

  /** A death now would be followed by a promotion. */
  get canTakeOver(): boolean {
    return this.state.phase === 'watching' && this.state.shadowReady;
  }

  /** The VM is given up: what is under way ends without consequences, and whoever waits for it is told. Idempotent. */
  close(): void {
    this.closed = true;
    this.settle(this.failed('the VM was ended meanwhile'));
  }

  dispatch(event: SwitchoverEvent): void {
    if (this.closed) return;
    const { reason } = this.state;
    const next = step(this.state, event);
    this.state = next.state;
    for (const effect of next.effects) this.carryOut(effect, reason ?? '');
  }

  /** A planned switchover; resolves when the shadow runs in the primary's place. @throws PROMOTION_IN_PROGRESS, SHADOW_NOT_READY, PROMOTION_FAILED */
  request(reason: string): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.closed) return reject(this.failed('the VM was ended'));
      this.waiting.push({ resolve, reject });
      this.dispatch({ type: 'promotion-requested', reason });
    });
  }

  private carryOut(effect: Effect, reason: string): void {
    const { actions } = this;
    switch (effect.type) {
      case 'hand-over':
      case 'fence':
      case 'load-state':
      case 'resume':
        this.report(effect.type, () => actions[effect.type]());
        break;
      case 'raise-limits':
      case 'connect':
        this.report(effect.type, async () => actions[effect.type]());
        break;
      case 'record-generation':
        this.report(effect.type, () => actions['record-generation'](effect.generation));
        break;
      case 'protect-again':
        actions['protect-again'](reason, this.state.generation);
        this.settle(null);
        break;
      case 'declare-lost':
        this.settle(this.failed(effect.reason));
        actions['declare-lost'](effect.reason);
        break;
      case 'resume-primary':
        actions['resume-primary'](effect.reason);
        this.settle(this.failed(effect.reason));
        break;
      case 'refuse':
        // Whoever asked last is refused; those before go on waiting for the promotion under way.
        this.waiting.pop()?.reject(
          new ShadowVmError(effect.code, {
            attempted: 'promote the shadow',
            subject: this.vm,
            reason: effect.reason,
            remedy: 'See the state of the shadow: shadowvm shadow ls',
          }),
        );
    }
  }

  /** Sync actions run at once; only their outcome is reported later, as a machine must not be stepped within a step. */
  private report(effect: EffectName, act: () => Promise<void>): void {
    act().then(
      () => this.dispatch({ type: 'done', effect }),
      (error: unknown) => {
        if (this.closed) return;
        this.actions.onFailure(effect, error);
        const reason = messageOf(error);
        this.dispatch({ type: 'failed', effect, reason });
      },
    );
  }

  private settle(error: ShadowVmError | null): void {
    const waiting = this.waiting;
    this.waiting = [];
    for (const { resolve, reject } of waiting) error === null ? resolve() : reject(error);
  }

  private failed(reason: string): ShadowVmError {
    return new ShadowVmError('PROMOTION_FAILED', {
      attempted: 'promote the shadow',
      subject: this.vm,
      reason,
      remedy: 'The events of the VM tell what happened: shadowvm events --vm NAME',
    });
  }
}
