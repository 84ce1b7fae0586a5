/** Where things are in the checkout, from the sources as from dist/. */
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

function findRoot(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'package.json'))) dir = dirname(dir);
  return dir;
}

export const CHECKOUT = findRoot();
export const IMAGES_DIR = join(CHECKOUT, '.cache', 'images');
export const SHADOWVM = join(CHECKOUT, 'bin', 'shadowvm');

/** Path of a result in out/, whose folder is made. */
export function outPath(file: string): string {
  mkdirSync(join(CHECKOUT, 'out'), { recursive: true });
  return join(CHECKOUT, 'out', file);
}
