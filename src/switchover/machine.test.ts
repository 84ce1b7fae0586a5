import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Effect,
  type EffectName,
  initialState,
  type SwitchoverEvent,
  type SwitchoverState,
  step,
} from './machine.js';

/** Feeds events and tells the effects as a readable line: "fence | raise-limits record-generation(1) load-state". */
function transcript(events: SwitchoverEvent[], from = initialState(0)): { line: string; state: SwitchoverState } {
  let state = from;
  const parts: string[] = [];
  for (const event of events) {
    const next = step(state, event);
    state = next.state;
    if (next.effects.length > 0) parts.push(next.effects.map(name).join(' '));
  }
  return { line: parts.join(' | '), state };
}

const name = (effect: Effect) =>
  effect.type === 'record-generation'
    ? `record-generation(${effect.generation})`
    : effect.type === 'refuse'
      ? `refuse(${effect.code})`
      : effect.type;
const ready: SwitchoverEvent = { type: 'shadow-ready' };
const died: SwitchoverEvent = { type: 'primary-died', reason: 'process-died' };
const requested: SwitchoverEvent = { type: 'promotion-requested', reason: 'by hand' };
const done = (effect: EffectName): SwitchoverEvent => ({ type: 'done', effect });
const failed = (effect: EffectName): SwitchoverEvent => ({ type: 'failed', effect, reason: 'injected' });

describe('switchover machine', () => {
  it('fences, prepares, resumes, connects and protects again, in this order', () => {
    const { line, state } = transcript([
      ready,
      died,
      done('fence'),
      done('raise-limits'),
      done('load-state'),
      done('record-generation'),
      done('resume'),
      done('connect'),
    ]);
    expect(line).toBe('fence | raise-limits record-generation(1) load-state | resume | connect | protect-again');
    expect(state).toMatchObject({ phase: 'watching', generation: 1, shadowReady: false });
  });

  it('does not resume before the generation is recorded, however fast the state loads', () => {
    const { line } = transcript([ready, died, done('fence'), done('load-state'), done('raise-limits')]);
    expect(line).toBe('fence | raise-limits record-generation(1) load-state');
  });

  it('hands over first when it is planned, and lets the primary go on when that fails', () => {
    expect(transcript([ready, requested, done('hand-over')]).line).toBe('hand-over | fence');
    const { line, state } = transcript([ready, requested, failed('hand-over')]);
    expect(line).toBe('hand-over | resume-primary');
    expect(state).toMatchObject({ phase: 'watching', generation: 0, shadowReady: true });
  });

  it('goes on from the newest epoch when the primary dies during the hand-over', () => {
    const { line } = transcript([ready, requested, died, failed('hand-over'), done('fence')]);
    expect(line).toBe('hand-over | fence | raise-limits record-generation(1) load-state');
  });

  it('refuses a second promotion and one without a ready shadow', () => {
    expect(transcript([requested]).line).toBe('refuse(SHADOW_NOT_READY)');
    expect(transcript([ready, requested, requested]).line).toBe('hand-over | refuse(PROMOTION_IN_PROGRESS)');
    expect(transcript([ready, died, requested]).line).toBe('fence | refuse(PROMOTION_IN_PROGRESS)');
  });

  it('declares the VM lost when it dies without a shadow, or the shadow dies in its promotion', () => {
    expect(transcript([died]).line).toBe('declare-lost');
    expect(transcript([ready, died, { type: 'shadow-lost' }, done('fence')]).line).toBe('fence | declare-lost');
    expect(transcript([ready, died, done('fence'), failed('load-state'), done('record-generation')]).line).toBe(
      'fence | raise-limits record-generation(1) load-state | declare-lost',
    );
  });

  it('runs without limits raised rather than not at all', () => {
    const events = [ready, died, done('fence'), failed('raise-limits'), done('load-state'), done('record-generation')];
    expect(transcript(events).line).toContain('resume');
  });

  it('keeps its promises for every order of events', () => {
    const effects: EffectName[] = [
      'hand-over',
      'fence',
      'raise-limits',
      'record-generation',
      'load-state',
      'resume',
      'connect',
    ];
    const anyEvent: fc.Arbitrary<SwitchoverEvent> = fc.oneof(
      fc.constantFrom(ready, died, requested, { type: 'shadow-lost' } as const),
      fc.constantFrom(...effects).map(done),
      fc.constantFrom(...effects).map(failed),
    );
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 60 }), (events) => {
        let state = initialState(7);
        // Only outcomes of effects that are under way can come back; others are noise that must change nothing.
        const underWay = new Map<EffectName, number>();
        let fenced = false;
        let recorded = 0;
        let loaded = false;
        for (const event of events) {
          if (event.type === 'done' || event.type === 'failed') {
            const count = underWay.get(event.effect) ?? 0;
            if (count === 0) continue;
            underWay.set(event.effect, count - 1);
            if (event.type === 'done' && event.effect === 'fence') fenced = true;
            if (event.type === 'done' && event.effect === 'record-generation') recorded = state.generation + 1;
            if (event.type === 'done' && event.effect === 'load-state') loaded = true;
          }
          const before = state.generation;
          const next = step(state, event);
          state = next.state;
          expect(state.generation - before).toBeGreaterThanOrEqual(0);
          for (const effect of next.effects) {
            underWay.set(effect.type, (underWay.get(effect.type) ?? 0) + 1);
            if (effect.type === 'resume') {
              expect(fenced && loaded).toBe(true);
              expect(recorded).toBe(state.generation + 1);
            }
            if (effect.type === 'record-generation') expect(fenced).toBe(true);
            if (effect.type === 'protect-again') {
              fenced = false;
              loaded = false;
              // A late outcome of this promotion is none of the next one's.
              underWay.clear();
            }
            if (effect.type === 'fence') expect(state.phase).toBe('fencing');
          }
        }
      }),
      { numRuns: 3000 },
    );
  });
});
