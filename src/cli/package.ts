/** What is known about ShadowVM's own files, from the sources as from dist/. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const PACKAGE_ROOT = ['../../', '../../../']
  .map((path) => fileURLToPath(new URL(path, import.meta.url)))
  .find((path) => existsSync(`${path}package.json`))!;

export const VERSION = (JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { version: string })
  .version;

/** Where `npm run setup` puts the images that it builds. */
export const SETUP_IMAGES_DIR = join(PACKAGE_ROOT, '.cache/images');
