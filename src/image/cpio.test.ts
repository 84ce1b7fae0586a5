import { execFileSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { packCpio } from './cpio.js';
import { FileTree } from './file-tree.js';

const file = (text: string, mode = 0o644) => ({ kind: 'file' as const, mode, content: Buffer.from(text) });

/** Fields of every header, as written. */
function headers(archive: Buffer): { name: string; mode: number; links: number; inode: number; body: string }[] {
  const found = [];
  for (let at = 0; at < archive.length; ) {
    expect(archive.toString('latin1', at, at + 6)).toBe('070701');
    const field = (index: number) =>
      Number.parseInt(archive.toString('latin1', at + 6 + 8 * index, at + 14 + 8 * index), 16);
    const [inode, mode, links, bytes, nameBytes] = [field(0), field(1), field(4), field(6), field(11)];
    for (const zero of [2, 3, 5, 7, 8, 12]) expect(field(zero)).toBe(0);
    const bodyAt = Math.ceil((at + 110 + nameBytes) / 4) * 4;
    const name = archive.toString('utf8', at + 110, at + 110 + nameBytes - 1);
    found.push({ name, mode, links, inode, body: archive.toString('utf8', bodyAt, bodyAt + bytes) });
    at = Math.ceil((bodyAt + bytes) / 4) * 4;
  }
  expect(found.at(-1)!.name).toBe('TRAILER!!!');
  return found.slice(0, -1);
}

describe('an archive', () => {
  test('holds every kind of entry, owned by root and without times', () => {
    const tree = new FileTree();
    tree.set('bin', { kind: 'symlink', target: 'usr/bin' });
    tree.set('bin/tool', file('run', 0o755));
    tree.set('dev/console', { kind: 'device', mode: 0o600, major: 5, minor: 1 });
    tree.set('etc/ä', file('name is not ASCII'));
    expect(headers(packCpio(tree)).map(({ name, mode, body }) => [name, mode.toString(8), body])).toEqual([
      ['bin', '120777', 'usr/bin'],
      ['dev', '40755', ''],
      ['dev/console', '20600', ''],
      ['etc', '40755', ''],
      ['etc/ä', '100644', 'name is not ASCII'],
      ['usr', '40755', ''],
      ['usr/bin', '40755', ''],
      ['usr/bin/tool', '100755', 'run'],
    ]);
  });

  test('stores equal files once, as links of the first', () => {
    const tree = new FileTree();
    tree.set('a', file('same'));
    tree.set('b', file('same'));
    tree.set('c', file('same', 0o755));
    tree.set('d', file(''));
    tree.set('e', file(''));
    const [a, b, c, d, e] = headers(packCpio(tree));
    expect([a!.body, b!.body, c!.body]).toEqual(['same', '', 'same']);
    expect([a!.links, b!.links, c!.links, d!.links, e!.links]).toEqual([2, 2, 1, 1, 1]);
    expect(a!.inode).toBe(b!.inode);
    expect(new Set([a!.inode, c!.inode, d!.inode, e!.inode]).size).toBe(4);
  });

  test('does not depend on the order in which the tree was made', () => {
    const [one, two] = [new FileTree(), new FileTree()];
    one.set('x/1', file('1'));
    one.set('y', file('2'));
    two.set('y', file('2'));
    two.set('x/1', file('1'));
    expect(packCpio(one).equals(packCpio(two))).toBe(true);
  });

  test('is one that other programs read', () => {
    const tree = new FileTree();
    for (let n = 0; n < 9; n++) tree.set(`d/${'n'.repeat(n + 1)}`, file('b'.repeat(n)));
    const names = execFileSync('cpio', ['-t', '--quiet'], { input: packCpio(tree) })
      .toString()
      .trim()
      .split('\n');
    expect(names).toHaveLength(10);
  });
});
