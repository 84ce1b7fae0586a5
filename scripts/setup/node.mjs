// The Node version, from the one place that says which are supported.
import { readFileSync } from 'node:fs';

/**
 * @param {string} a dotted numbers, as '20.20.1'; missing ones count as 0
 * @param {string} b
 * @returns {number} negative when a is the older one, 0 when they are the same
 */
export function compareVersions(a, b) {
  const [left, right] = [a, b].map((version) => version.split('.').map((part) => Number.parseInt(part, 10)));
  for (let i = 0; i < Math.max(left?.length ?? 0, right?.length ?? 0); i++) {
    const difference = (left?.[i] ?? 0) - (right?.[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

/**
 * What to tell the user of a Node that is too old; null when it is not.
 * @param {string} version as process.versions.node
 * @returns {string | null}
 */
export function nodeIsTooOld(version) {
  const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  const oldest = manifest.engines.node.replace('>=', '');
  if (compareVersions(version, oldest) >= 0) return null;
  return (
    `Node ${oldest} or newer is needed, and this is ${version}. ` +
    "Debian's own package can be older: take Node from https://nodejs.org/en/download"
  );
}
