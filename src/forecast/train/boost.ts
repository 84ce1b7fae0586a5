/** Trains boosted trees for the smallest mean absolute error: histograms of binned features, best leaf first. */
import { deflateRawSync } from 'node:zlib';
import { LEAVES_MAX, type Tree } from '../trees.js';

export interface Rows {
  features: number;
  /** Row by row. */
  x: Float32Array;
  y: Float32Array;
  weight: Float32Array;
}

export interface BoostOptions {
  trees: number;
  leaves: number;
  rate: number;
  rowsPerLeaf: number;
  /** Share of the features that a tree may use, and of the rows that it is grown on. */
  featureShare: number;
  rowShare: number;
  seed: number;
}

const BINS = 128;
/** Keeps a leaf of few rows from having its own way. */
const RIDGE = 1;

interface Leaf {
  from: number;
  to: number;
  histogram: Float64Array;
  best: Split | null;
  /** Where its number stands in its parent. */
  parent: { node: number; side: 'left' | 'right' } | null;
}

interface Split {
  gain: number;
  feature: number;
  bin: number;
}

export function boost(rows: Rows, options: BoostOptions): Tree[] {
  const random = randomFrom(options.seed);
  const count = rows.y.length;
  const { binned, edges } = bin(rows);
  const prediction = new Float64Array(count);
  const gradient = new Float64Array(count);
  const trees: Tree[] = [];
  for (let t = 0; t < options.trees; t++) {
    for (let i = 0; i < count; i++) gradient[i] = Math.sign(rows.y[i]! - prediction[i]!) * rows.weight[i]!;
    const sample = Uint32Array.from(pick(count, options.rowShare, random));
    const features = pick(rows.features, options.featureShare, random);
    const { tree, leaves } = grow(binned, edges, rows, gradient, sample, features, options);
    leaves.forEach(({ from, to }, i) => {
      const residuals = [...sample.subarray(from, to)].map(
        (row) => [rows.y[row]! - prediction[row]!, rows.weight[row]!] as const,
      );
      tree.leaf[i] = options.rate * weightedMedian(residuals);
    });
    for (let i = 0; i < count; i++)
      prediction[i] = prediction[i]! + predictBinned(tree, binned, i * rows.features, edges);
    trees.push(tree);
  }
  return trees;
}

function grow(
  binned: Uint8Array,
  edges: Float32Array[],
  rows: Rows,
  gradient: Float64Array,
  sample: Uint32Array,
  features: number[],
  options: BoostOptions,
): { tree: Tree; leaves: Leaf[] } {
  const leavesMax = Math.min(options.leaves, LEAVES_MAX);
  const width = rows.features;
  const nodes: { feature: number; bin: number; left: number; right: number }[] = [];

  const histogramOf = (from: number, to: number): Float64Array => {
    const histogram = new Float64Array(features.length * BINS * 3);
    for (let s = from; s < to; s++) {
      const row = sample[s]!;
      const [g, w] = [gradient[row]!, rows.weight[row]!];
      const base = row * width;
      for (let f = 0; f < features.length; f++) {
        const at = (f * BINS + binned[base + features[f]!]!) * 3;
        histogram[at] = histogram[at]! + g;
        histogram[at + 1] = histogram[at + 1]! + w;
        histogram[at + 2] = histogram[at + 2]! + 1;
      }
    }
    return histogram;
  };
  const bestOf = (histogram: Float64Array): Split | null => {
    let best: Split | null = null;
    for (let f = 0; f < features.length; f++) {
      let [gAll, wAll, nAll] = [0, 0, 0];
      for (let b = 0; b < BINS; b++) {
        gAll += histogram[(f * BINS + b) * 3]!;
        wAll += histogram[(f * BINS + b) * 3 + 1]!;
        nAll += histogram[(f * BINS + b) * 3 + 2]!;
      }
      const whole = (gAll * gAll) / (wAll + RIDGE);
      let [g, w, n] = [0, 0, 0];
      for (let b = 0; b < BINS - 1; b++) {
        g += histogram[(f * BINS + b) * 3]!;
        w += histogram[(f * BINS + b) * 3 + 1]!;
        n += histogram[(f * BINS + b) * 3 + 2]!;
        if (n < options.rowsPerLeaf || nAll - n < options.rowsPerLeaf) continue;
        const gain = (g * g) / (w + RIDGE) + (gAll - g) ** 2 / (wAll - w + RIDGE) - whole;
        if (gain > (best?.gain ?? 1e-9)) best = { gain, feature: features[f]!, bin: b };
      }
    }
    return best;
  };

  const first = histogramOf(0, sample.length);
  const leaves: Leaf[] = [{ from: 0, to: sample.length, histogram: first, best: bestOf(first), parent: null }];
  while (leaves.length < leavesMax) {
    let chosen = -1;
    leaves.forEach((leaf, i) => {
      if (leaf.best !== null && (chosen === -1 || leaf.best.gain > leaves[chosen]!.best!.gain)) chosen = i;
    });
    if (chosen === -1) break;
    const leaf = leaves[chosen]!;
    const { feature, bin } = leaf.best!;
    const middle = partition(sample, leaf.from, leaf.to, (row) => binned[row * width + feature]! <= bin);
    const node = nodes.push({ feature, bin, left: -1 - chosen, right: -1 - leaves.length }) - 1;
    if (leaf.parent !== null) nodes[leaf.parent.node]![leaf.parent.side] = node;
    // The smaller side is counted, the larger one is what is left of the parent.
    const leftIsSmaller = middle - leaf.from <= leaf.to - middle;
    const counted = leftIsSmaller ? histogramOf(leaf.from, middle) : histogramOf(middle, leaf.to);
    const rest = leaf.histogram.map((value, i) => value - counted[i]!);
    const [left, right] = leftIsSmaller ? [counted, rest] : [rest, counted];
    leaves[chosen] = {
      from: leaf.from,
      to: middle,
      histogram: left,
      best: bestOf(left),
      parent: { node, side: 'left' },
    };
    leaves.push({ from: middle, to: leaf.to, histogram: right, best: bestOf(right), parent: { node, side: 'right' } });
  }
  const tree: Tree = {
    feature: Uint8Array.from(nodes, (each) => each.feature),
    threshold: Float32Array.from(nodes, (each) => edges[each.feature]![each.bin]!),
    left: Int8Array.from(nodes, (each) => each.left),
    right: Int8Array.from(nodes, (each) => each.right),
    leaf: new Float32Array(leaves.length),
  };
  return { tree, leaves };
}

/** Moves the rows that pass to the front; gives where the others begin. */
function partition(sample: Uint32Array, from: number, to: number, passes: (row: number) => boolean): number {
  let [low, high] = [from, to];
  while (low < high) {
    const row = sample[low]!;
    if (passes(row)) low++;
    else {
      high--;
      sample[low] = sample[high]!;
      sample[high] = row;
    }
  }
  return low;
}

/** Bins of about equal counts. A value is in the first bin whose edge it does not exceed. */
function bin({ features, x, y }: Rows): { binned: Uint8Array; edges: Float32Array[] } {
  const count = y.length;
  const binned = new Uint8Array(x.length);
  const stride = Math.max(1, Math.floor(count / 50_000));
  const edges = Array.from({ length: features }, (_, f) => {
    const values = Float32Array.from(
      { length: Math.floor(count / stride) },
      (_v, i) => x[i * stride * features + f]!,
    ).sort();
    const cuts = Float32Array.from(
      { length: BINS - 1 },
      (_v, b) => values[Math.floor(((b + 1) / BINS) * values.length)]!,
    );
    const distinct = [...new Set(cuts)];
    return Float32Array.from([...distinct, ...Array(BINS - 1 - distinct.length).fill(Number.POSITIVE_INFINITY)]);
  });
  for (let i = 0; i < count; i++)
    for (let f = 0; f < features; f++) {
      const [value, cuts] = [x[i * features + f]!, edges[f]!];
      let [low, high] = [0, BINS - 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (cuts[middle]! < value) low = middle + 1;
        else high = middle;
      }
      binned[i * features + f] = low;
    }
  return { binned, edges };
}

function predictBinned(tree: Tree, binned: Uint8Array, base: number, edges: Float32Array[]): number {
  if (tree.feature.length === 0) return tree.leaf[0]!;
  let node = 0;
  while (node >= 0) {
    const feature = tree.feature[node]!;
    const edge =
      binned[base + feature]! < BINS - 1 ? edges[feature]![binned[base + feature]!]! : Number.POSITIVE_INFINITY;
    node = edge <= tree.threshold[node]! ? tree.left[node]! : tree.right[node]!;
  }
  return tree.leaf[-1 - node]!;
}

function weightedMedian(values: (readonly [number, number])[]): number {
  values.sort((a, b) => a[0] - b[0]);
  let half = values.reduce((sum, [, weight]) => sum + weight, 0) / 2;
  for (const [value, weight] of values) {
    half -= weight;
    if (half <= 0) return value;
  }
  return 0;
}

function pick(count: number, share: number, random: () => number): number[] {
  const picked: number[] = [];
  for (let i = 0; i < count; i++) if (random() < share) picked.push(i);
  return picked.length === 0 ? [0] : picked;
}

/** mulberry32: small, and the same on every machine. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** As text for the source: per tree the number of leaves, features, children, thresholds, leaves; deflated, base64. */
export function packTrees(trees: readonly Tree[]): string {
  const parts = trees.map(({ feature, left, right, threshold, leaf }) => {
    const floats = Buffer.alloc(4 * (threshold.length + leaf.length));
    [...threshold, ...leaf].forEach((value, i) => {
      floats.writeFloatLE(value, 4 * i);
    });
    return Buffer.concat([Buffer.from([leaf.length]), Buffer.from(feature), bytesOf(left), bytesOf(right), floats]);
  });
  return deflateRawSync(Buffer.concat(parts), { level: 9 }).toString('base64');
}

function bytesOf(values: Int8Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.length);
}
