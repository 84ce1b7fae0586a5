/** More than any usage in any unit: such a number is a broken counter, and so is a negative one. */
const ABSURD = 1e15;

/** Whether a number can be a usage; what can not counts as not measured. */
export function isUsage(value: number): boolean {
  return value >= 0 && value <= ABSURD;
}
