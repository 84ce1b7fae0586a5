/** A trigger's threshold that moves with what is expected: pure, one step per outlook. */

export interface ThresholdPolicy {
  /** The threshold never leaves this range. */
  floor: number;
  ceiling: number;
  /** How far above the upper bound it stands, as a share of it. */
  margin: number;
  /** An amount for people, with its unit. */
  label?: (value: number) => string;
  /** It moves only when it is off by more than this share; and what fired ends only this share below it. */
  hysteresis: number;
}

export interface Outlook {
  expected: number;
  /** What the time until the next look will not exceed; NaN where nothing is known yet. */
  upperBound: number;
}

export interface ThresholdState {
  value: number;
  firing: boolean;
  /** Why the value is what it is, for people. */
  reason: string;
}

/** Before anything is known, only what is certainly too much is above the threshold. */
export function firstThreshold(policy: ThresholdPolicy): ThresholdState {
  return { value: policy.ceiling, firing: false, reason: 'nothing is known of this VM yet: the ceiling' };
}

export function moveThreshold(policy: ThresholdPolicy, state: ThresholdState, outlook: Outlook): ThresholdState {
  const wanted = outlook.upperBound * (1 + policy.margin);
  if (Number.isNaN(wanted)) return state;
  const value = Math.max(policy.floor, Math.min(policy.ceiling, wanted));
  if (Math.abs(value - state.value) <= policy.hysteresis * state.value) return state;
  const { label = (amount) => amount.toFixed(1) } = policy;
  const bound = `${label(outlook.expected)} is expected and at most ${label(outlook.upperBound)}`;
  const kept =
    value === wanted
      ? `${(100 * policy.margin).toFixed(0)}% above that`
      : value === policy.floor
        ? 'the floor'
        : 'the ceiling';
  return { ...state, value, reason: `${bound}: ${kept}` };
}

/** Whether a measured value is above, with hysteresis; a value that is no number changes nothing. */
export function judgeThreshold(policy: ThresholdPolicy, state: ThresholdState, measured: number): ThresholdState {
  if (measured > state.value) return { ...state, firing: true };
  if (measured < state.value * (1 - policy.hysteresis)) return { ...state, firing: false };
  return state;
}
