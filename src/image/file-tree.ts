/** A file system in memory: what goes into an initramfs, free of the build machine's owners, times and privileges. */
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { posix } from 'node:path';

export type TreeEntry =
  | { kind: 'directory'; mode: number }
  | { kind: 'file'; mode: number; content: Buffer }
  | { kind: 'symlink'; target: string }
  | { kind: 'device'; mode: number; major: number; minor: number };

const SYMLINKS_MAX = 40;

/**
 * Paths are relative ("usr/bin/sh") and usr-merged: Debian's older packages ship /lib/x and newer ones /usr/lib/x, and a
 * tree that holds both kinds would have a folder where a symlink belongs.
 */
export class FileTree {
  readonly #entries = new Map<string, TreeEntry>();

  /** Paths and entries; sorted, so that the same content always makes the same archive and parents come first. */
  *entries(): IterableIterator<[path: string, entry: TreeEntry]> {
    for (const path of [...this.#entries.keys()].sort()) yield [path, this.#entries.get(path)!];
  }

  get(path: string): TreeEntry | undefined {
    return this.#entries.get(mergeUsr(path));
  }

  /** Adds or replaces; missing parent folders are made. */
  set(path: string, entry: TreeEntry): void {
    const merged = mergeUsr(path);
    for (let parent = posix.dirname(merged); parent !== '.'; parent = posix.dirname(parent))
      if (!this.#entries.has(parent)) this.#entries.set(parent, { kind: 'directory', mode: 0o755 });
    this.#entries.set(merged, entry);
  }

  /** Path of the entry that a path leads to through symlinks at its end, or undefined where it leads nowhere. */
  follow(path: string): string | undefined {
    let at = mergeUsr(path);
    for (let hops = 0; hops < SYMLINKS_MAX; hops++) {
      const entry = this.#entries.get(at);
      if (entry === undefined) return undefined;
      if (entry.kind !== 'symlink') return at;
      at = linkTarget(at, entry.target);
    }
    return undefined;
  }
}

/** "lib/x" → "usr/lib/x". The tree's own links /lib → usr/lib make the old names work. */
export function mergeUsr(path: string): string {
  return /^(bin|sbin|lib|lib32|lib64|libx32)\//.test(path) ? `usr/${path}` : path;
}

/** Where a symlink leads, as a path of the tree. */
export function linkTarget(linkPath: string, target: string): string {
  return mergeUsr(posix.join('/', posix.isAbsolute(target) ? '' : posix.dirname(linkPath), target).slice(1));
}

/** Reads a folder into a tree; `keep` is asked for every path but folders, with the path that it has in the tree. */
export function readTree(folder: string, keep: (path: string) => boolean): FileTree {
  const tree = new FileTree();
  const walk = (relative: string): void => {
    for (const item of readdirSync(`${folder}/${relative}`, { withFileTypes: true })) {
      const path = relative === '' ? item.name : `${relative}/${item.name}`;
      if (item.isDirectory()) walk(path);
      else if (!keep(mergeUsr(path))) continue;
      else if (item.isSymbolicLink()) {
        // Resolved from where the package had it: "../../usr/lib/x" seen from /lib/a is not what it is from /usr/lib/a.
        const to = linkTarget(path, readlinkSync(`${folder}/${path}`));
        tree.set(path, { kind: 'symlink', target: posix.relative(posix.dirname(mergeUsr(path)), to) });
      } else if (item.isFile()) {
        const mode = statSync(`${folder}/${path}`).mode & 0o7777;
        tree.set(path, { kind: 'file', mode, content: readFileSync(`${folder}/${path}`) });
      }
    }
  };
  walk('');
  return tree;
}
