/**
 * Boosted regression trees, as trained by train/boost.ts: sums of the leaves that a row of features falls into. Their
 * sum is bounded by what was seen in training, so no input can make them say something absurd.
 * Lost: a small neural network (extrapolates), and a ready-made runtime (megabytes for 200 lines of work).
 */
import { inflateRawSync } from 'node:zlib';

/** A tree's inner nodes and leaves. A child ≥ 0 is a node; a child c < 0 is the leaf −1−c. */
export interface Tree {
  feature: Uint8Array;
  threshold: Float32Array;
  left: Int8Array;
  right: Int8Array;
  leaf: Float32Array;
}

/** Leaves that a tree has at the most: what an int8 can name. */
export const LEAVES_MAX = 64;

export class Trees {
  constructor(private readonly trees: readonly Tree[]) {}

  /** Reads what {@link packTrees} wrote. */
  static unpack(packed: string): Trees {
    return new Trees(unpackTrees(packed));
  }

  predict(features: ArrayLike<number>): number {
    let sum = 0;
    for (const tree of this.trees) sum += predictTree(tree, features);
    return sum;
  }
}

export function predictTree({ feature, threshold, left, right, leaf }: Tree, features: ArrayLike<number>): number {
  if (feature.length === 0) return leaf[0]!;
  let node = 0;
  while (node >= 0) node = features[feature[node]!]! <= threshold[node]! ? left[node]! : right[node]!;
  return leaf[-1 - node]!;
}

function unpackTrees(packed: string): Tree[] {
  const bytes = inflateRawSync(Buffer.from(packed, 'base64'));
  const trees: Tree[] = [];
  let at = 0;
  const take = (length: number) => {
    at += length;
    return bytes.subarray(at - length, at);
  };
  const floats = (count: number) => {
    const part = take(4 * count);
    return Float32Array.from({ length: count }, (_, i) => part.readFloatLE(4 * i));
  };
  while (at < bytes.length) {
    const leaves = bytes[at++]!;
    const nodes = leaves - 1;
    trees.push({
      feature: Uint8Array.from(take(nodes)),
      left: Int8Array.from(take(nodes), signed),
      right: Int8Array.from(take(nodes), signed),
      threshold: floats(nodes),
      leaf: floats(leaves),
    });
  }
  return trees;
}

function signed(byte: number): number {
  return (byte << 24) >> 24;
}
