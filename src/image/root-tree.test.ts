import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { FileTree, linkTarget, mergeUsr, readTree } from './file-tree.js';
import { addLibraries, isLibrary, isWanted } from './root-tree.js';

const folder = mkdtempSync(join(tmpdir(), 'shadowvm-root-'));
afterAll(() => rmSync(folder, { recursive: true }));

describe('paths', () => {
  test.each([
    ['lib/x', 'usr/lib/x'],
    ['usr/lib/x', 'usr/lib/x'],
    ['lib64/ld.so', 'usr/lib64/ld.so'],
    ['sbin/x', 'usr/sbin/x'],
    ['lib', 'lib'],
    ['library/x', 'library/x'],
  ])('%s becomes %s', (path, merged) => expect(mergeUsr(path)).toBe(merged));

  test('links are followed from where they are, and never out of the tree', () => {
    expect(linkTarget('usr/bin/a', 'b')).toBe('usr/bin/b');
    expect(linkTarget('usr/lib64/ld.so', '/lib/x/ld.so')).toBe('usr/lib/x/ld.so');
    expect(linkTarget('a/b', '../../../../etc/x')).toBe('etc/x');
  });

  test('what a guest has no use for is left out', () => {
    for (const path of ['usr/bin/x', 'etc/redis/redis.conf', 'usr/share/zoneinfo/UTC', 'usr/lib/x/y.so.1'])
      expect(isWanted(path), path).toBe(true);
    for (const path of [
      'usr/share/doc/x/y',
      'usr/share/man/man1/x',
      'etc/init.d/x',
      'usr/lib/systemd/x',
      'usr/lib/x.a',
    ])
      expect(isWanted(path), path).toBe(false);
    expect(isLibrary('usr/lib/x86_64-linux-gnu/libx.so.1.2')).toBe(true);
    expect(isLibrary('usr/bin/ldd')).toBe(false);
    expect(isLibrary('usr/share/x.so')).toBe(false);
  });
});

describe('a folder read into a tree', () => {
  test('is merged, and its relative links still lead where they led', () => {
    mkdirSync(join(folder, 'p/lib/sub'), { recursive: true });
    mkdirSync(join(folder, 'p/usr/lib'), { recursive: true });
    writeFileSync(join(folder, 'p/usr/lib/real'), 'x', { mode: 0o640 });
    symlinkSync('../../usr/lib/real', join(folder, 'p/lib/sub/link'));
    const tree = readTree(join(folder, 'p'), () => true);
    expect(tree.follow('lib/sub/link')).toBe('usr/lib/real');
    expect(tree.get('usr/lib/sub/link')).toEqual({ kind: 'symlink', target: '../real' });
  });

  test('a link in a circle leads nowhere', () => {
    const tree = new FileTree();
    tree.set('a', { kind: 'symlink', target: 'b' });
    tree.set('b', { kind: 'symlink', target: 'a' });
    expect(tree.follow('a')).toBeUndefined();
  });
});

describe('libraries', () => {
  const compile = (name: string, ...args: string[]): Buffer => {
    execFileSync('gcc', ['-x', 'c', '-', '-nostdlib', '-o', join(folder, name), `-L${folder}`, ...args], {
      input: 'int f(void) { return 1; } int _start(void) { return 1; }',
    });
    return readFileSync(join(folder, name));
  };
  const inner = compile('libinner.so', '-shared', '-fPIC', '-Wl,-soname,libinner.so.1');
  const outer = compile(
    'libouter.so',
    '-shared',
    '-fPIC',
    '-Wl,-soname,libouter.so.1',
    '-Wl,--no-as-needed',
    '-linner',
  );
  const program = compile('program', '-Wl,--no-as-needed', '-louter', `-Wl,-rpath-link,${folder}`);
  const file = (content: Buffer) => ({ kind: 'file' as const, mode: 0o755, content });
  const all = (): FileTree => {
    const libraries = new FileTree();
    libraries.set('usr/lib/x/libouter.so.1', { kind: 'symlink', target: 'libouter.so.1.2' });
    libraries.set('usr/lib/x/libouter.so.1.2', file(outer));
    libraries.set('usr/lib/x/libinner.so.1', file(inner));
    libraries.set('usr/lib/x/private/libinner.so.1', file(Buffer.from('not this one')));
    libraries.set('usr/lib/x/libunused.so.1', file(inner));
    libraries.set('lib64/ld-linux-x86-64.so.2', file(inner));
    return libraries;
  };

  test('come with all that they need, links included, and none besides', () => {
    const root = new FileTree();
    root.set('usr/bin/program', file(program));
    expect(addLibraries(root, all())).toEqual([]);
    expect([...root.entries()].filter(([, entry]) => entry.kind !== 'directory').map(([path]) => path)).toEqual([
      'usr/bin/program',
      'usr/lib/x/libinner.so.1',
      'usr/lib/x/libouter.so.1',
      'usr/lib/x/libouter.so.1.2',
      'usr/lib64/ld-linux-x86-64.so.2',
    ]);
  });

  test('that are missing fail a command and are told of a plug-in', () => {
    const command = new FileTree();
    command.set('usr/bin/program', file(program));
    expect(() => addLibraries(command, new FileTree())).toThrow(/it needs libouter.so.1/);
    const plugin = new FileTree();
    plugin.set('usr/lib/plugins/p.so', file(outer));
    expect(addLibraries(plugin, new FileTree())).toEqual(['usr/lib/plugins/p.so needs libinner.so.1']);
  });
});
