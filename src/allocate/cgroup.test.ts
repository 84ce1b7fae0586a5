/** Detection, paths and values against a tree of plain files; test/cgroup.test.ts has the real kernel. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type CgroupDriver, openCgroups } from './cgroup.js';
import { folderOf, parseCgroupMounts, parseOwnCgroup } from './cgroup-mounts.js';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'svcg-'));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function file(path: string, content = ''): void {
  mkdirSync(join(root, path, '..'), { recursive: true });
  writeFileSync(join(root, path), content);
}
const content = (path: string): string => readFileSync(join(root, path), 'utf8');

const v2Mount = (at: string, cgroup = '/'): string => `41 31 0:38 ${cgroup} ${root}/${at} rw - cgroup2 cgroup2 rw\n`;
const v1Mount = (at: string, controllers: string): string =>
  `32 31 0:29 / ${root}/${at} rw,relatime - cgroup cgroup rw,${controllers}\n`;

function open(mountinfo: string, ownCgroup = '0::/\n'): CgroupDriver {
  const { driver, reason } = openCgroups('shadowvm-1', { mountinfo, ownCgroup });
  if (driver === null) throw new Error(reason);
  return driver;
}

describe('the mount table', () => {
  test('cgroup mounts are found among others, escapes undone', () => {
    const text = [
      '22 27 0:21 / /proc rw,relatime - proc proc rw',
      '31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755',
      '32 31 0:29 /docker/ab /sys/fs/cgroup/cpu,cpuacct rw shared:9 master:3 - cgroup cgroup rw,cpu,cpuacct',
      '41 31 0:38 / /sys/fs/my\\040cgroup rw - cgroup2 cgroup2 rw,nsdelegate',
      '',
    ].join('\n');
    expect(parseCgroupMounts(text)).toEqual([
      {
        version: 1,
        mountPoint: '/sys/fs/cgroup/cpu,cpuacct',
        root: '/docker/ab',
        controllers: ['rw', 'cpu', 'cpuacct'],
      },
      { version: 2, mountPoint: '/sys/fs/my cgroup', root: '/', controllers: [] },
    ]);
  });

  test('the own cgroup is found in each hierarchy', () => {
    const text = '9:name=systemd:/\n4:memory:/a:b/c\n2:cpu,cpuacct:/x\n0::/system.slice/shadowvm.service\n';
    expect(parseOwnCgroup(text, 'memory')).toBe('/a:b/c');
    expect(parseOwnCgroup(text, 'cpuacct')).toBe('/x');
    expect(parseOwnCgroup(text, null)).toBe('/system.slice/shadowvm.service');
    expect(parseOwnCgroup(text, 'pids')).toBeNull();
  });

  test('a cgroup’s folder depends on what the mount shows', () => {
    const mount = { version: 2 as const, mountPoint: '/m', root: '/docker/ab', controllers: [] };
    expect(folderOf(mount, '/docker/ab/c')).toBe('/m/c');
    expect(folderOf(mount, '/docker/ab')).toBe('/m');
    expect(folderOf(mount, '/docker/abc')).toBeNull();
    expect(folderOf({ ...mount, root: '/' }, '/')).toBe('/m');
    expect(folderOf({ ...mount, root: '/' }, '/a')).toBe('/m/a');
  });
});

describe('v2', () => {
  beforeEach(() => {
    file('u/cgroup.controllers', 'cpuset cpu io memory pids\n');
    file('u/cgroup.subtree_control', 'pids\n');
  });

  test('it enables the controllers on the way and writes what the kernel expects', () => {
    const driver = open(v2Mount('u'));
    expect(driver.version).toBe(2);
    expect(content('u/cgroup.subtree_control')).toBe('+cpu +memory');
    expect(content('u/shadowvm-1/cgroup.subtree_control')).toBe('+cpu +memory');
    driver.create('web');
    expect(content('u/shadowvm-1/web/cpu.max')).toBe('max 100000');
    expect(content('u/shadowvm-1/web/memory.max')).toBe('max');
    expect(content('u/shadowvm-1/web/cpu.weight')).toBe('100');
    driver.addProcess('web', 4321);
    expect(content('u/shadowvm-1/web/cgroup.procs')).toBe('4321');
    file('u/shadowvm-1/web/memory.current', '1000000\n');
    driver.setLimits('web', { cpuPercent: 12.5, memoryBytes: 64 * 1024 * 1024, cpuWeight: 7 });
    expect(content('u/shadowvm-1/web/cpu.max')).toBe('12500 100000');
    expect(content('u/shadowvm-1/web/memory.max')).toBe(`${64 * 1024 * 1024}`);
    expect(content('u/shadowvm-1/web/cpu.weight')).toBe('7');
    driver.makeIdle('web');
    expect(content('u/shadowvm-1/web/cpu.idle')).toBe('1');
    driver.setLimits('web', { cpuPercent: null });
    expect(content('u/shadowvm-1/web/cpu.max')).toBe('max 100000');
    expect(content('u/shadowvm-1/web/memory.max')).toBe(`${64 * 1024 * 1024}`);
  });

  test('controllers that are enabled already are not touched', () => {
    file('u/cgroup.subtree_control', 'cpu memory pids\n');
    open(v2Mount('u'));
    expect(content('u/cgroup.subtree_control')).toBe('cpu memory pids\n');
  });

  test('usage is in nanoseconds and bytes', () => {
    const driver = open(v2Mount('u'));
    driver.create('web');
    file('u/shadowvm-1/web/cpu.stat', 'usage_usec 1500\nuser_usec 1000\nnr_throttled 2\nthrottled_usec 30\n');
    file('u/shadowvm-1/web/memory.current', '4096\n');
    expect(driver.usage('web')).toEqual({ cpuNs: 1_500_000, throttledNs: 30_000, memoryBytes: 4096 });
  });

  test('a memory limit below what is in use is refused, not executed; page cache does not count', () => {
    const driver = open(v2Mount('u'));
    driver.create('web');
    const MIB = 1024 * 1024;
    file('u/shadowvm-1/web/memory.current', `${100 * MIB}\n`);
    file('u/shadowvm-1/web/memory.stat', `anon ${20 * MIB}\nfile ${80 * MIB}\nshmem ${50 * MIB}\n`);
    expect(() => driver.setLimits('web', { memoryBytes: 69 * MIB })).toThrow(
      expect.objectContaining({ code: 'CGROUP_FAILED' }),
    );
    expect(content('u/shadowvm-1/web/memory.max')).toBe('max');
    driver.setLimits('web', { memoryBytes: 70 * MIB });
    expect(content('u/shadowvm-1/web/memory.max')).toBe(`${70 * MIB}`);
  });

  test('where the root can not be used, the delegated cgroup is, and the manager steps into a leaf of it', () => {
    file('u/cgroup.controllers', 'pids\n');
    file('u/system.slice/sv.service/cgroup.controllers', 'cpu memory\n');
    file('u/system.slice/sv.service/cgroup.procs', `${process.pid}\n`);
    const driver = open(v2Mount('u'), '0::/system.slice/sv.service\n');
    driver.create('web');
    expect(content('u/system.slice/sv.service/manager/cgroup.procs')).toBe(`${process.pid}`);
    expect(content('u/system.slice/sv.service/shadowvm-1/web/cpu.max')).toBe('max 100000');
  });

  test('v2 without the controllers gives way to v1', () => {
    file('u/cgroup.controllers', 'hugetlb\n');
    file('cpu/shadowvm-1/cpu.cfs_quota_us');
    file('memory/x');
    const driver = open(v2Mount('u') + v1Mount('cpu', 'cpu,cpuacct') + v1Mount('memory', 'memory'));
    expect(driver.version).toBe(1);
  });
});

describe('v1', () => {
  const mounts = (): string => v1Mount('c', 'cpu,cpuacct') + v1Mount('m', 'memory');
  beforeEach(() => {
    file('c/shadowvm-1/cpu.cfs_quota_us');
    file('m/x');
  });

  test('it writes what the kernel expects', () => {
    const driver = open(mounts());
    driver.create('web');
    expect(content('c/shadowvm-1/web/cpu.cfs_period_us')).toBe('100000');
    expect(content('c/shadowvm-1/web/cpu.cfs_quota_us')).toBe('-1');
    expect(content('c/shadowvm-1/web/cpu.shares')).toBe('1024');
    expect(content('m/shadowvm-1/web/memory.limit_in_bytes')).toBe('-1');
    driver.setLimits('web', { cpuPercent: 1, memoryBytes: 2 ** 30, cpuWeight: 1 });
    expect(content('c/shadowvm-1/web/cpu.cfs_quota_us')).toBe('1000');
    expect(content('c/shadowvm-1/web/cpu.shares')).toBe('10');
    expect(content('m/shadowvm-1/web/memory.limit_in_bytes')).toBe(`${2 ** 30}`);
    driver.setLimits('web', { cpuPercent: 250, cpuWeight: 10_000 });
    expect(content('c/shadowvm-1/web/cpu.cfs_quota_us')).toBe('250000');
    expect(content('c/shadowvm-1/web/cpu.shares')).toBe('102400');
  });

  test('usage is in nanoseconds and bytes', () => {
    const driver = open(mounts());
    driver.create('web');
    file('c/shadowvm-1/web/cpuacct.usage', '123456\n');
    file('c/shadowvm-1/web/cpu.stat', 'nr_periods 9\nnr_throttled 1\nthrottled_time 789\n');
    file('m/shadowvm-1/web/memory.usage_in_bytes', '8192\n');
    expect(driver.usage('web')).toEqual({ cpuNs: 123_456, throttledNs: 789, memoryBytes: 8192 });
  });
});

describe('where it can not work', () => {
  test.each([
    ['nothing is mounted', (): string => '', /v2 is not mounted.*cpu controller is not mounted/],
    ['memory is missing', () => v1Mount('c', 'cpu,cpuacct'), /memory controller is not mounted/],
    ['there are no quotas', () => v1Mount('c', 'cpu,cpuacct') + v1Mount('m', 'memory'), /CFS_BANDWIDTH/],
    ['the folder is gone', () => v1Mount('gone', 'cpu,cpuacct') + v1Mount('m', 'memory'), /ENOENT/],
  ])('%s: a reason, no exception', (_, mountinfo, reason) => {
    mkdirSync(join(root, 'c'));
    mkdirSync(join(root, 'm'));
    const result = openCgroups('shadowvm-1', { mountinfo: mountinfo(), ownCgroup: '' });
    expect(result.driver).toBeNull();
    expect(result.reason).toMatch(reason);
  });
});

describe('arguments', () => {
  let driver: CgroupDriver;
  beforeEach(() => {
    file('c/shadowvm-1/cpu.cfs_quota_us');
    file('m/x');
    driver = open(v1Mount('c', 'cpu,cpuacct') + v1Mount('m', 'memory'));
    driver.create('web');
  });

  test.each(['', '.', '..', '../x', 'a/b', '/x', 'a.b', 'x'.repeat(101), '-x', 'a\0'])(
    'the name %j is refused',
    (name) => {
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
      expect(() => driver.create(name)).toThrow(invalid);
      expect(() => driver.addProcess(name, 1)).toThrow(invalid);
      expect(() => driver.setLimits(name, {})).toThrow(invalid);
      expect(() => openCgroups(name)).toThrow(invalid);
    },
  );

  test.each([
    { cpuPercent: 0 },
    { cpuPercent: 0.99 },
    { cpuPercent: -1 },
    { cpuPercent: Number.NaN },
    { cpuPercent: Number.POSITIVE_INFINITY },
    { memoryBytes: 0 },
    { memoryBytes: -1 },
    { memoryBytes: 2 ** 60 },
    { cpuWeight: 0 },
    { cpuWeight: 10_001 },
  ])('%j is refused and nothing is written', (limits) => {
    expect(() => driver.setLimits('web', limits)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(content('c/shadowvm-1/web/cpu.cfs_quota_us')).toBe('-1');
  });

  test.each([0, -1, Number.NaN, 2 ** 23])('process %d is refused', (pid) => {
    expect(() => driver.addProcess('web', pid)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(existsSync(join(root, 'c/shadowvm-1/web/cgroup.procs'))).toBe(false);
  });
});
