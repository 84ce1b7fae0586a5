/** The second version of QEMU that tests run with, when `npm run setup -- --dev` could unpack it. */
import { existsSync, readFileSync } from 'node:fs';
import { CHECKOUT } from '../harness/checkout.js';

const path = `${CHECKOUT}/.cache/qemu10/env.json`;

export const qemu10 = existsSync(path)
  ? (JSON.parse(readFileSync(path, 'utf8')) as { version: string; environment: Record<string, string> })
  : null;

/** The versions that describe.each() runs with: how a block comes to use one, which returns what puts the old one back. */
export const qemuVersions: readonly (readonly [name: string, use: () => () => void])[] = [
  ['installed', () => () => {}],
  ...(qemu10 === null ? [] : [['10', useQemu10] as const]),
];

/** The variables with which findQemu() finds it, and what puts the old ones back. */
export function useQemu10(): () => void {
  const before = { ...process.env };
  Object.assign(process.env, qemu10?.environment);
  return () => {
    process.env = before;
  };
}
