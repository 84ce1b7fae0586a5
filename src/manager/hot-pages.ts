/**
 * The pages that a guest needs in the moment in which it wakes up: the kernel's and the agent's paths to the first
 * heartbeat, much the same each time. Filled before all others, they save some hundred faults of a sleeping processor.
 * What is waited for in one awakening is filled ahead in the next (as REAP does for serverless snapshots: Ustiugov et
 * al., ASPLOS 2021).
 */
import { readFile } from 'node:fs/promises';
import { writeFileAtomic } from './state-dir.js';

export const NO_PAGES: Uint32Array = new Uint32Array();
/** 6 MiB at the most, a few milliseconds of filling. */
const PAGES_MAX = 1536;

/** What to fill first next time: the pages that were filled first this time, and those that were missing all the same. */
export function mergeHotPages(filled: Uint32Array, needed: Uint32Array): Uint32Array {
  const all = new Set([...filled, ...needed]);
  // The oldest go: what was waited for last is certainly needed.
  return Uint32Array.from([...all].slice(-PAGES_MAX));
}

/** Those that were kept beside a golden snapshot; none when there are none. */
export async function readHotPages(path: string): Promise<Uint32Array> {
  try {
    const bytes = await readFile(path);
    return new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + (bytes.length & ~3)));
  } catch {
    return NO_PAGES; // a hint and no more: without it the first start is a little slower
  }
}

export function writeHotPages(path: string, pages: Uint32Array): Promise<void> {
  return writeFileAtomic(path, new Uint8Array(pages.buffer, pages.byteOffset, pages.byteLength));
}
