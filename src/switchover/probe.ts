/**
 * When is a probe made, and what do its results say? A pure state machine of what happened and when.
 *
 *   unproven ──success──▶ well ──failure──▶ failing ──so many in a row──▶ failed
 *                          ▲                   │                            │
 *                          └──────success──────┴────────────success─────────┘
 *
 * Before the first success failures say nothing: the service may not have started yet, or be declared wrongly. A result
 * that is the host's doing and not the guest's says nothing either. Time that explains a missing answer is no time.
 */

export interface ProbeLimits {
  periodMs: number;
  timeoutMs: number;
  failures: number;
}

export type ProbeHealth = 'unproven' | 'well' | 'failing' | 'failed';

export interface ProbeState {
  health: ProbeHealth;
  failuresInRow: number;
  /** Of the last failure; null after a success. */
  reason: string | null;
  /** Of the probe under way; null when none is. */
  startedAtMs: number | null;
  nextAtMs: number;
  /** When the last one that succeeded began: what the guest was then, was well. */
  wellAtMs: number | null;
}

export type ProbeEvent =
  /** `excusedMs`: of the time since the probe under way began. */
  | { type: 'tick'; nowMs: number; excusedMs: number }
  | { type: 'succeeded'; nowMs: number }
  | { type: 'failed'; nowMs: number; reason: string }
  /** It could not be made, for reasons of the host's. */
  | { type: 'unknown'; nowMs: number };

export type ProbeEffect =
  | { type: 'start' }
  /** Its result is not wanted any more. */
  | { type: 'abandon' }
  /** The health has changed. */
  | { type: 'tell'; health: ProbeHealth };

export interface ProbeStep {
  state: ProbeState;
  effects: ProbeEffect[];
}

export function initialProbeState(nowMs: number): ProbeState {
  return { health: 'unproven', failuresInRow: 0, reason: null, startedAtMs: null, nextAtMs: nowMs, wellAtMs: null };
}

export function stepProbe(state: ProbeState, event: ProbeEvent, limits: ProbeLimits): ProbeStep {
  const { startedAtMs } = state;
  if (event.type === 'tick') {
    if (startedAtMs === null)
      return event.nowMs < state.nextAtMs
        ? { state, effects: [] }
        : { state: { ...state, startedAtMs: event.nowMs }, effects: [{ type: 'start' }] };
    if (event.nowMs - startedAtMs - event.excusedMs < limits.timeoutMs) return { state, effects: [] };
    const { state: after, effects } = failed(state, `no answer within ${limits.timeoutMs} ms`, limits);
    return { state: ended(after, event.nowMs, limits), effects: [{ type: 'abandon' }, ...effects] };
  }
  // A result that comes when none is under way is of one that was abandoned.
  if (startedAtMs === null) return { state, effects: [] };
  const { state: after, effects } =
    event.type === 'succeeded'
      ? succeeded(state, startedAtMs)
      : event.type === 'failed'
        ? failed(state, event.reason, limits)
        : { state, effects: [] };
  return { state: ended(after, event.nowMs, limits), effects };
}

function ended(state: ProbeState, nowMs: number, limits: ProbeLimits): ProbeState {
  return { ...state, startedAtMs: null, nextAtMs: Math.max(nowMs, (state.startedAtMs ?? nowMs) + limits.periodMs) };
}

function succeeded(state: ProbeState, startedAtMs: number): ProbeStep {
  const after: ProbeState = { ...state, health: 'well', failuresInRow: 0, reason: null, wellAtMs: startedAtMs };
  return { state: after, effects: tell(state, after) };
}

function failed(state: ProbeState, reason: string, limits: ProbeLimits): ProbeStep {
  if (state.health === 'unproven') return { state: { ...state, reason }, effects: [] };
  const failuresInRow = state.failuresInRow + 1;
  const health = failuresInRow >= limits.failures ? 'failed' : 'failing';
  const after: ProbeState = { ...state, health, failuresInRow, reason };
  return { state: after, effects: tell(state, after) };
}

function tell(before: ProbeState, { health }: ProbeState): ProbeEffect[] {
  return before.health === health ? [] : [{ type: 'tell', health }];
}
