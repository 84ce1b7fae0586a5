/** What a guest's root folder holds: chosen out of unpacked Debian packages, with the libraries that it needs to start. */
import { posix } from 'node:path';
import { ShadowVmError } from '../errors.js';
import { type ElfNeeds, readElfNeeds } from './elf.js';
import type { FileTree } from './file-tree.js';

/** Of no use to a service that runs in RAM behind a serial console. */
const LEFT_OUT = [
  'etc/apparmor.d/',
  'etc/cron',
  'etc/default/',
  'etc/init.d/',
  'etc/logrotate.d/',
  'etc/systemd/',
  'usr/include/',
  'usr/lib/systemd/',
  'usr/lib/sysusers.d/',
  'usr/lib/tmpfiles.d/',
  'usr/lib/udev/',
  'usr/share/apport/',
  'usr/share/bash-completion/',
  'usr/share/bug/',
  'usr/share/doc/',
  'usr/share/doc-base/',
  'usr/share/fish/',
  'usr/share/info/',
  'usr/share/lintian/',
  'usr/share/locale/',
  'usr/share/man/',
  'usr/share/metainfo/',
  'usr/share/zsh/',
];

/** Whether a file of a package that is taken whole goes into the image. */
export function isWanted(path: string): boolean {
  return !LEFT_OUT.some((prefix) => path.startsWith(prefix)) && !/\.(a|la|pyc)$/.test(path);
}

/** Whether a file may be a shared library or the dynamic loader: all that is looked at in a package of libraries. */
export function isLibrary(path: string): boolean {
  return /^usr\/lib(32|64|x32)?\/.*\.so(\.|$)/.test(path) && isWanted(path);
}

/** glibc's pthread_exit and pthread_cancel load this by dlopen, which no DT_NEEDED tells, and abort without it. */
const LOADED_BY_LIBC = 'libgcc_s.so.1';

/**
 * Adds to the root the libraries and loaders that its ELF files need, and those that these need in turn.
 * @param libraries files of all packages that were unpacked
 * @returns "program needs library" for what is nowhere, of files that are no commands (plug-ins may do without)
 * @throws IMAGE_BUILD_FAILED when a command could not start
 */
export function addLibraries(root: FileTree, libraries: FileTree): string[] {
  const byName = indexLibraries(libraries);
  const queue = [...root.entries()].map(([path]) => path);
  const missing: string[] = [];
  const add = (path: string): void => {
    // The link that the loader looks for and the file that it leads to.
    for (const each of [path, libraries.follow(path)]) {
      if (each === undefined || root.get(each) !== undefined) continue;
      root.set(each, libraries.get(each)!);
      queue.push(each);
    }
  };
  for (let path = queue.shift(); path !== undefined; path = queue.shift()) {
    const needs = needsOf(root, path);
    if (needs === null) continue;
    const loader = needs.interpreter?.slice(1);
    if (loader !== undefined) {
      if (libraries.follow(loader) !== undefined) add(loader);
      else if (root.follow(loader) === undefined) missing.push(`${path} needs ${loader}`);
    }
    for (const name of needs.needed) {
      const found = byName.get(name);
      if (found !== undefined) add(found);
      else if (isCommand(path)) {
        throw new ShadowVmError('IMAGE_BUILD_FAILED', {
          attempted: 'gather the shared libraries',
          subject: path,
          reason: `it needs ${name}, which none of the packages has`,
          remedy: 'Name the package that has it among the packages of the image',
        });
      } else if (root.get(`${posix.dirname(path)}/${name}`) === undefined) missing.push(`${path} needs ${name}`);
      if (name === 'libc.so.6' && byName.has(LOADED_BY_LIBC)) add(byName.get(LOADED_BY_LIBC)!);
    }
  }
  return [...new Set(missing)];
}

function isCommand(path: string): boolean {
  return /^usr\/s?bin\//.test(path);
}

function needsOf(root: FileTree, path: string): ElfNeeds | null {
  const entry = root.get(path);
  if (entry?.kind !== 'file') return null;
  try {
    return readElfNeeds(entry.content);
  } catch (error) {
    throw new ShadowVmError('IMAGE_BUILD_FAILED', {
      attempted: 'read what a program needs',
      subject: path,
      reason: `its ELF headers are damaged: ${(error as Error).message}`,
      cause: error,
    });
  }
}

/** Library name → path. Where a name occurs twice, the folder that the loader searches wins: the one with the shortest path. */
function indexLibraries(libraries: FileTree): Map<string, string> {
  const index = new Map<string, string>();
  for (const [path, entry] of libraries.entries()) {
    if (entry.kind === 'directory' || entry.kind === 'device' || !isLibrary(path)) continue;
    const name = posix.basename(path);
    const known = index.get(name);
    if (known === undefined || path.split('/').length < known.split('/').length) index.set(name, path);
  }
  return index;
}
