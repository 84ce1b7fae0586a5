// A stamp says that a step was completed for given inputs. It is written after success only, and by rename, so that a
// killed setup leaves either no stamp or a true one.
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

/**
 * A hash of the names and the contents of files. Contents and not times: a fresh clone, a branch switched to and fro
 * and a restored CI cache all have new times and the same contents.
 * @param {string} root names are hashed relative to it
 * @param {string[]} paths files, and folders with all they hold; what does not exist counts as empty
 * @param {(path: string) => boolean} [wanted] by path relative to root; a folder that is not wanted is not entered
 * @returns {string}
 */
export function hashPaths(root, paths, wanted = () => true) {
  const hash = createHash('sha256');
  /** @param {string} path */
  const add = (path) => {
    const name = relative(root, path);
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat === undefined || !wanted(name)) return;
    if (stat.isDirectory()) {
      for (const entry of readdirSync(path).sort()) add(join(path, entry));
    } else if (stat.isFile()) {
      // Lengths keep one file's end apart from the next one's beginning.
      hash.update(`${name.length}:${name}${stat.size}:`).update(readFileSync(path));
    }
  };
  for (const path of paths) add(join(root, path));
  return hash.digest('hex');
}

/**
 * @param {string} file
 * @returns {{ key: string, writtenAtMs: number } | null} null when there is no stamp, or none that can be read
 */
export function readStamp(file) {
  try {
    const stamp = JSON.parse(readFileSync(file, 'utf8'));
    return typeof stamp?.key === 'string' && typeof stamp.writtenAtMs === 'number' ? stamp : null;
  } catch (error) {
    // A damaged stamp is no stamp: the step runs again.
    if (error instanceof SyntaxError || /** @type {NodeJS.ErrnoException} */ (error).code === 'ENOENT') return null;
    throw error;
  }
}

/**
 * @param {string} file
 * @param {string} key
 * @param {number} nowMs
 */
export function writeStamp(file, key, nowMs) {
  mkdirSync(dirname(file), { recursive: true });
  const temporary = `${file}.${process.pid}`;
  writeFileSync(temporary, `${JSON.stringify({ key, writtenAtMs: nowMs })}\n`);
  renameSync(temporary, file);
}

/** @param {string} file */
export function removeStamp(file) {
  rmSync(file, { force: true });
}

/**
 * @param {{ key: string, writtenAtMs: number } | null} stamp
 * @param {string} key
 * @param {number} nowMs
 * @param {number} [ageMsMax]
 * @returns {'fresh' | 'old' | 'none'} old: made from these inputs, but longer than ageMsMax ago
 */
export function stampState(stamp, key, nowMs, ageMsMax = Number.POSITIVE_INFINITY) {
  if (stamp === null || stamp.key !== key) return 'none';
  // A stamp from the future (the clock was set back) would otherwise hold for as long as the clock was wrong.
  const ageMs = nowMs - stamp.writtenAtMs;
  return ageMs >= 0 && ageMs < ageMsMax ? 'fresh' : 'old';
}
