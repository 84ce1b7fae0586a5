/**
 * The one clock of durations: CLOCK_MONOTONIC in ms, comparable with the times that the addon and other processes of
 * this host report. (performance.now() runs at the same rate from another zero.)
 */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
