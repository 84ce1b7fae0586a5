// node_modules, as the lock file says.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { exitCode, failure, SetupError } from './process.mjs';

/**
 * @typedef {{ version?: string, integrity?: string, optional?: boolean }} LockedPackage
 * @typedef {{ packages?: Record<string, LockedPackage> }} Lockfile
 */

/**
 * Whether what npm installed is what the lock file asks for. npm notes the installed tree in
 * node_modules/.package-lock.json as the last thing it does, so that a killed install has no such note; and unlike a
 * stamp of ours the note is right after a developer's own `npm install` too.
 * @param {Lockfile} locked package-lock.json
 * @param {Lockfile | null} installed node_modules/.package-lock.json
 */
export function isInstalled(locked, installed) {
  if (installed === null) return false;
  const have = installed.packages ?? {};
  const want = Object.entries(locked.packages ?? {}).filter(([path]) => path !== '');
  for (const [path, entry] of want) {
    const found = have[path];
    // Optional packages are those of other systems, mostly: npm leaves them out.
    if (found === undefined ? entry.optional !== true : found.integrity !== entry.integrity) return false;
    if (found !== undefined && found.version !== entry.version) return false;
  }
  const known = new Set(want.map(([path]) => path));
  return Object.keys(have).every((path) => known.has(path));
}

/** @param {string} root the checkout */
export function modulesAreInstalled(root) {
  const locked = readLockfile(join(root, 'package-lock.json'));
  if (locked === null)
    throw new SetupError('package-lock.json is missing; get it back with: git checkout package-lock.json');
  return isInstalled(locked, readLockfile(join(root, 'node_modules/.package-lock.json')));
}

/**
 * @param {string} file
 * @returns {Lockfile | null}
 */
function readLockfile(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if (/** @type {NodeJS.ErrnoException} */ (error).code === 'ENOENT') return null;
    throw new SetupError(`${file} cannot be read: ${/** @type {Error} */ (error).message}`);
  }
}

/**
 * @param {string} log
 * @param {string} root
 */
export async function installModules(log, root) {
  // --include=dev: the compiler is one of them, also where NODE_ENV=production.
  // --ignore-scripts: nothing here needs one, and what they would download is not to be had on closed networks.
  const args = ['ci', '--no-audit', '--no-fund', '--include=dev', '--ignore-scripts'];
  const code = await exitCode(log, 'npm', args, { cwd: root });
  if (code === 127) throw new SetupError('npm is missing; install it with Node (Debian 12 and 13: https://nodejs.org)');
  if (code !== 0) throw failure(log, 'npm ci', code);
}
