/** What the trees are trained on, and how. */
import { Experts, Shared } from '../experts.js';
import { HORIZONS } from '../horizons.js';
import { naiveScale } from '../score.js';
import { boost, packTrees, type Rows } from './boost.js';
import { syntheticLoad } from './synthetic.js';

const SEASON = 288;
const TRAIN = 4032;
/** A forecast is learnt from once the series has so many samples: the trees also have to know beginnings. */
const SKIP = 24;
const SYNTHETIC = 16;
const SYNTHETIC_WEIGHT = 0.3;
const TARGET_CLIP = 30;

export interface Trace {
  values: number[];
  weight: number;
}

export function rowsFor(traces: readonly Trace[], steps: number): Rows {
  const parts = traces.map(({ values, weight }) => {
    const scale = naiveScale(values, TRAIN, SEASON);
    const shared = new Shared(SEASON);
    const experts = new Experts(shared, steps);
    const rows: { x: Float64Array; y: number; weight: number }[] = [];
    values.forEach((value, t) => {
      shared.observe(value);
      experts.observe(value);
      const target = values[t + steps];
      if (t < SKIP || target === undefined) return;
      const y = Math.max(-TARGET_CLIP, Math.min(TARGET_CLIP, (target - experts.base) / shared.spread));
      // The error is judged in units of the naive forecast's, so that every VM counts the same.
      rows.push({ x: experts.features(), y, weight: (weight * shared.spread) / scale });
    });
    return rows;
  });
  const rows = parts.flat();
  const features = rows[0]!.x.length;
  const x = new Float32Array(rows.length * features);
  rows.forEach((row, i) => {
    x.set(row.x, i * features);
  });
  return {
    features,
    x,
    y: Float32Array.from(rows, (row) => row.y),
    weight: Float32Array.from(rows, (row) => row.weight),
  };
}

export function trainAll(traces: readonly Trace[], report: (line: string) => void): Map<number, string> {
  const packed = new Map<number, string>();
  for (const { steps, trees } of HORIZONS) {
    const model = boost(rowsFor(traces, steps), {
      trees,
      leaves: 31,
      rate: 0.06,
      rowsPerLeaf: 200,
      featureShare: 0.4,
      rowShare: 0.5,
      seed: steps,
    });
    packed.set(steps, packTrees(model));
    report(`${steps} steps: ${trees} trees, ${packed.get(steps)!.length} characters`);
  }
  return packed;
}

export function syntheticTraces(from: number): Trace[] {
  return Array.from({ length: SYNTHETIC }, (_, i) => ({ values: syntheticLoad(from + i), weight: SYNTHETIC_WEIGHT }));
}
