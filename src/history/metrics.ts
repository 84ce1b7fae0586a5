/** What is measured of a VM each second. */

/** What each is and in which unit: {@link METRIC_UNITS}. */
export const METRICS = [
  'cpu',
  'stolen',
  'throttled',
  'memory',
  'balloon',
  'guest-memory',
  'network-bytes',
  'network-packets',
  'disk-bytes',
  'disk-operations',
  'dirty-rate',
  'pause',
  'lag',
  // Added later, at the end: rows of before are shorter.
  'demand',
] as const;
export type Metric = (typeof METRICS)[number];
export type UsageSample = Partial<Record<Metric, number>>;

export type Unit = '%' | 'B' | 'B/s' | '/s' | 'ms';
export const METRIC_UNITS: Record<Metric, Unit> = {
  /** Of one host CPU, all of QEMU's threads. */
  cpu: '%',
  /** Of the time, all threads together: ready to run, and other work had the CPU. */
  stolen: '%',
  /** The same, and the VM's own quota was used up. */
  throttled: '%',
  /** The working set: what the guest's programs and its kernel can not do without. */
  memory: 'B',
  /** What the balloon leaves to the guest. */
  balloon: 'B',
  /** RAM of the guest that is in the host's memory. */
  'guest-memory': 'B',
  'network-bytes': 'B/s',
  'network-packets': '/s',
  'disk-bytes': 'B/s',
  'disk-operations': '/s',
  /** Pages that differed from the shadow at its epochs. */
  'dirty-rate': 'B/s',
  /** How long the guest stood still for an epoch, mean over the second's. */
  pause: 'ms',
  lag: 'ms',
  /** `cpu`, and what the quota kept from it: what it would have used. */
  demand: '%',
};

/** Those that decisions are made by. */
export const FORECAST_METRICS = ['demand', 'memory', 'network-bytes'] as const satisfies readonly Metric[];
export type ForecastMetric = (typeof FORECAST_METRICS)[number];
