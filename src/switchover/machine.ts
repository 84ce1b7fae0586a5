/**
 * The order of a switchover, as a pure state machine: step(state, event) → the next state and what is to be done.
 *
 *   watching ──failure or request──▶ fencing ──▶ preparing ──▶ resuming ──▶ connecting ──▶ watching, generation + 1
 *                                        └───────────┴────────────┴──── an effect failed ──▶ lost
 *
 * What the order guarantees, and the tests of this file check for every interleaving:
 *  - nothing of the shadow runs before the primary is fenced (its tap severed, its process sent SIGKILL) and the new
 *    generation is on disk;
 *  - the shadow has its CPU and memory before it runs, and is announced after (what it is sent waits at its tap);
 *  - there is one promotion at a time, and none without a shadow that holds a whole epoch.
 */

export type Phase = 'watching' | 'handing-over' | 'fencing' | 'preparing' | 'resuming' | 'connecting' | 'lost';

export interface SwitchoverState {
  phase: Phase;
  /** Of the primary that runs, or ran last. */
  generation: number;
  shadowReady: boolean;
  /** Of the promotion under way. */
  reason: string | null;
  /** In `preparing`: what still has to be done before the shadow may run. */
  awaiting: ReadonlySet<'record-generation' | 'load-state'>;
}

export type SwitchoverEvent =
  | { type: 'shadow-ready' }
  | { type: 'shadow-lost' }
  | { type: 'primary-died'; reason: string }
  | { type: 'promotion-requested'; reason: string }
  | { type: 'done'; effect: EffectName }
  | { type: 'failed'; effect: EffectName; reason: string };

export type Effect =
  /** Last epoch of a planned switchover, the primary's guest stays stopped after it. */
  | { type: 'hand-over' }
  /** Sever the primary's network, kill its process, stop its protection with the newest whole epoch. */
  | { type: 'fence' }
  | { type: 'raise-limits' }
  | { type: 'record-generation'; generation: number }
  | { type: 'load-state' }
  | { type: 'resume' }
  | { type: 'connect' }
  | { type: 'protect-again' }
  /** The VM is dead and nothing can take over. */
  | { type: 'declare-lost'; reason: string }
  | { type: 'refuse'; code: 'PROMOTION_IN_PROGRESS' | 'SHADOW_NOT_READY'; reason: string }
  /** A planned switchover did not begin; the primary goes on. */
  | { type: 'resume-primary'; reason: string };

export type EffectName = Effect['type'];

export interface Step {
  state: SwitchoverState;
  effects: Effect[];
}

export function initialState(generation: number): SwitchoverState {
  return { phase: 'watching', generation, shadowReady: false, reason: null, awaiting: new Set() };
}

export function step(state: SwitchoverState, event: SwitchoverEvent): Step {
  switch (event.type) {
    case 'shadow-ready':
      return { state: { ...state, shadowReady: true }, effects: [] };
    case 'shadow-lost':
      return shadowLost(state);
    case 'primary-died':
      return primaryDied(state, event.reason);
    case 'promotion-requested':
      return promotionRequested(state, event.reason);
    case 'done':
      return effectDone(state, event.effect);
    case 'failed':
      return effectFailed(state, event.effect, event.reason);
  }
}

function stay(state: SwitchoverState): Step {
  return { state, effects: [] };
}

function shadowLost(state: SwitchoverState): Step {
  const without = { ...state, shadowReady: false };
  switch (state.phase) {
    case 'watching':
    case 'handing-over':
    case 'lost':
      return stay(without);
    // The primary is fenced or about to be: the shadow was all there was.
    case 'fencing':
    case 'preparing':
    case 'resuming':
      return lost(without, 'the shadow died during its promotion');
    // It runs already: this death is the next primary's, which reports itself as `primary-died` after `connect`.
    case 'connecting':
      return stay(state);
  }
}

function primaryDied(state: SwitchoverState, reason: string): Step {
  switch (state.phase) {
    case 'watching':
      return state.shadowReady
        ? { state: { ...state, phase: 'fencing', reason }, effects: [{ type: 'fence' }] }
        : lost(state, reason);
    case 'handing-over':
      // It died under our hands: from the newest epoch on, as after any death. 'done'/'failed' of hand-over come late
      // and are ignored.
      return { state: { ...state, phase: 'fencing', reason }, effects: [{ type: 'fence' }] };
    // Its death is our own doing, or known.
    case 'fencing':
    case 'preparing':
    case 'resuming':
    case 'connecting':
    case 'lost':
      return stay(state);
  }
}

function promotionRequested(state: SwitchoverState, reason: string): Step {
  if (state.phase !== 'watching')
    return {
      state,
      effects: [
        state.phase === 'lost'
          ? { type: 'refuse', code: 'SHADOW_NOT_READY', reason: 'the VM is lost' }
          : { type: 'refuse', code: 'PROMOTION_IN_PROGRESS', reason: `a promotion is under way (${state.phase})` },
      ],
    };
  if (!state.shadowReady)
    return {
      state,
      effects: [{ type: 'refuse', code: 'SHADOW_NOT_READY', reason: 'there is no shadow with a committed epoch' }],
    };
  return { state: { ...state, phase: 'handing-over', reason }, effects: [{ type: 'hand-over' }] };
}

function effectDone(state: SwitchoverState, effect: EffectName): Step {
  switch (state.phase) {
    case 'handing-over':
      return effect === 'hand-over'
        ? { state: { ...state, phase: 'fencing' }, effects: [{ type: 'fence' }] }
        : stay(state);
    case 'fencing':
      if (effect !== 'fence') return stay(state);
      return {
        state: { ...state, phase: 'preparing', awaiting: new Set(['record-generation', 'load-state']) },
        // Limits first, or the loading itself would crawl; the other two run side by side.
        effects: [
          { type: 'raise-limits' },
          { type: 'record-generation', generation: state.generation + 1 },
          { type: 'load-state' },
        ],
      };
    case 'preparing': {
      const awaiting = new Set(state.awaiting);
      if (effect === 'record-generation' || effect === 'load-state') awaiting.delete(effect);
      return awaiting.size > 0
        ? stay({ ...state, awaiting })
        : { state: { ...state, phase: 'resuming', awaiting }, effects: [{ type: 'resume' }] };
    }
    case 'resuming':
      return effect === 'resume'
        ? {
            state: { ...state, phase: 'connecting', generation: state.generation + 1 },
            effects: [{ type: 'connect' }],
          }
        : stay(state);
    case 'connecting':
      return effect === 'connect'
        ? {
            state: { ...state, phase: 'watching', shadowReady: false, reason: null },
            effects: [{ type: 'protect-again' }],
          }
        : stay(state);
    case 'watching':
    case 'lost':
      return stay(state);
  }
}

function effectFailed(state: SwitchoverState, effect: EffectName, reason: string): Step {
  switch (state.phase) {
    case 'handing-over':
      if (effect !== 'hand-over') return stay(state);
      return { state: { ...state, phase: 'watching', reason: null }, effects: [{ type: 'resume-primary', reason }] };
    case 'fencing':
    case 'preparing':
    case 'resuming':
      // A primary that is not surely fenced and a shadow that does not surely run: both end, rather than two.
      // Limits that could not be raised slow the guest down, they do not endanger it; a hand-over that fails now was
      // overtaken by the primary's death.
      return effect === 'raise-limits' || effect === 'hand-over' ? stay(state) : lost(state, `${effect}: ${reason}`);
    case 'connecting':
      // The guest runs; a network that failed is reported by the effect itself and does not undo the promotion.
      return effect === 'connect' ? effectDone(state, 'connect') : stay(state);
    case 'watching':
    case 'lost':
      return stay(state);
  }
}

function lost(state: SwitchoverState, reason: string): Step {
  return {
    state: { ...state, phase: 'lost', shadowReady: false, reason },
    effects: [{ type: 'declare-lost', reason }],
  };
}
