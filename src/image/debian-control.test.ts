import { describe, expect, test } from 'vitest';
import { type PackageRecord, parseDepends, parsePolicy, parseRecords, selectPackages } from './debian-control.js';

describe('package records', () => {
  test('are read with their dependencies, priority and digest', () => {
    const text = [
      'Package: passwd\nVersion: 1:4.13\nPriority: required\nEssential: no\nFilename: pool/p.deb\nSHA256: AB12\n',
      'Package: tool\nVersion: 2\nPriority: optional\nPre-Depends: init-system-helpers (>= 1.54~)\n' +
        'Depends: libc6 (>= 2.34),\n debconf (>= 0.5) | debconf-2.0\nDescription: words\n Depends: not a field\n .\n more\n',
      '',
    ].join('\n');
    expect(parseRecords(text)).toEqual([
      { name: 'passwd', version: '1:4.13', depends: [], base: true, sha256: 'ab12' },
      {
        name: 'tool',
        version: '2',
        depends: [['init-system-helpers'], ['libc6'], ['debconf', 'debconf-2.0']],
        base: false,
        // No file name: installed, but in no archive.
        sha256: undefined,
      },
    ]);
  });

  test('that are none give nothing', () => {
    expect(parseRecords('')).toEqual([]);
    expect(parseRecords('N: Unable to locate package x\n')).toEqual([]);
  });

  test.each([
    ['', []],
    ['libc6', [['libc6']]],
    ['python3:any (>= 3.7~), libstdc++6 [amd64] | libfoo <!nocheck>', [['python3'], ['libstdc++6', 'libfoo']]],
    [' , a1 | ', [['a1']]],
  ])('dependencies %j', (field, expected) => expect(parseDepends(field)).toEqual(expected));
});

describe('policies', () => {
  const policy = `redis-server:
  Installed: (none)
  Candidate: 5:7.0.15-1
  Version table:
     5:7.0.15-1 500
        500 http://archive.example/debian bookworm/main amd64 Packages
     5:7.0.14-1 500
        500 http://archive.example/debian bookworm/main amd64 Packages
libc6:
  Installed: 2.36-9
  Candidate: 2.36-9
  Version table:
 *** 2.36-9 500
        500 http://archive.example/debian bookworm/main amd64 Packages
        100 /var/lib/dpkg/status
local:
  Installed: 1.0
  Candidate: 1.0
  Version table:
 *** 1.0 100
        100 /var/lib/dpkg/status
default-mta:
  Installed: (none)
  Candidate: (none)
  Version table:
`;
  test('tell the candidates that an archive has', () => {
    expect([...parsePolicy(policy)]).toEqual([
      ['redis-server', '5:7.0.15-1'],
      ['libc6', '2.36-9'],
    ]);
    expect(parsePolicy('').size).toBe(0);
  });
});

describe('selecting packages', () => {
  const archive = (packages: Record<string, string>, base: string[] = [], provided: Record<string, string[]> = {}) => {
    let looks = 0;
    const record = (name: string): PackageRecord => ({
      name,
      version: '1',
      depends: parseDepends(packages[name]!),
      base: base.includes(name),
      sha256: '00',
    });
    return {
      looks: () => looks,
      show: async (names: readonly string[]) => {
        looks++;
        return new Map(names.filter((name) => name in packages).map((name) => [name, record(name)]));
      },
      providers: async (name: string) => provided[name] ?? [],
    };
  };
  const select = async (requested: string[], from: ReturnType<typeof archive>) =>
    (await selectPackages(requested, from)).map(({ record, use }) => `${record.name} ${use}`);

  test('follows dependencies, takes libraries as such, and leaves the base system out', async () => {
    const debian = archive(
      {
        server: 'tools, adduser, essential',
        tools: 'libc6, libx',
        libx: 'libc6, data',
        libc6: '',
        data: '',
        adduser: 'passwd',
        essential: 'libe',
      },
      ['essential'],
    );
    expect(await select(['server'], debian)).toEqual([
      'data whole',
      'libc6 libraries',
      'libx libraries',
      'server whole',
      'tools whole',
    ]);
    // One look per level of dependencies.
    expect(debian.looks()).toBeLessThanOrEqual(4);
  });

  test('takes whole what was asked for by name, whatever it is', async () => {
    const debian = archive({ bash: 'libc6', libc6: '' }, ['bash']);
    expect(await select(['bash', 'libc6'], debian)).toEqual(['bash whole', 'libc6 whole']);
  });

  test('takes the first alternative there is, or one that is in already, or a provider', async () => {
    const debian = archive({ a: 'nowhere | b1', b1: '', c: 'd1 | b1', d1: '', e: 'mail', postfix: '' }, [], {
      mail: ['postfix'],
    });
    expect(await select(['a'], debian)).toEqual(['a whole', 'b1 whole']);
    expect(await select(['b1', 'c'], debian)).toEqual(['b1 whole', 'c whole']);
    expect(await select(['c'], debian)).toEqual(['c whole', 'd1 whole']);
    expect(await select(['e'], debian)).toEqual(['e whole', 'postfix whole']);
  });

  test('ends on circles', async () => {
    expect(await select(['p1'], archive({ p1: 'p2', p2: 'p1' }))).toEqual(['p1 whole', 'p2 whole']);
  });

  test('names what is missing, and who wants it', async () => {
    await expect(select(['gone'], archive({}))).rejects.toMatchObject({ code: 'PACKAGE_MISSING', subject: 'gone' });
    await expect(select(['a1'], archive({ a1: 'x1 | x2' }))).rejects.toMatchObject({
      code: 'PACKAGE_MISSING',
      subject: 'x1 | x2',
      reason: expect.stringContaining('a1 depends on it'),
    });
  });
});
