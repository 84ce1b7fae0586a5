/** The one door to the addon: loads it and says what each part of it offers. */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { ShadowVmError } from '../errors.js';

/** Folder of what `make -C native` built, from the sources as from dist/. */
export const NATIVE_BUILD_DIR = ['../../native/build/', '../../../native/build/']
  .map((path) => fileURLToPath(new URL(path, import.meta.url)))
  .find((path) => existsSync(`${path}shadowvm.node`));

/** What every function of the addon throws or rejects with. */
export interface NativeFailure extends Error {
  /** errno name ("ENOENT") or one of the addon's own ("ERR_CLOSED"). */
  code: string;
  syscall: string;
}

export function isNativeFailure(error: unknown): error is NativeFailure {
  return error instanceof Error && 'code' in error && 'syscall' in error;
}

/** Loads the addon and gives it the type that the caller's part of it has. @throws NATIVE_ERROR when it is not built */
export function loadAddon<T>(): T {
  if (NATIVE_BUILD_DIR === undefined)
    throw new ShadowVmError('NATIVE_ERROR', {
      attempted: 'load the native addon',
      reason: 'it is not built',
      remedy: 'Run `npm run setup` in the checkout',
    });
  return createRequire(import.meta.url)(`${NATIVE_BUILD_DIR}shadowvm.node`) as T;
}
