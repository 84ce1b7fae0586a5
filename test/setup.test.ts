import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

// The scripts are plain JavaScript, because they run before there is a compiler; `tsc -p scripts` checks their types.
const script = (name: string) => new URL(`../scripts/${name}`, import.meta.url).href;
const { missingPackages, notRootMessage, parseOsRelease, unsupportedSystem } = await import(script('setup/debian.mjs'));
const { compareVersions, nodeIsTooOld } = await import(script('setup/node.mjs'));
const { isInstalled } = await import(script('setup/npm.mjs'));
const { excerpt, run, SetupError } = await import(script('setup/process.mjs'));
const { backportsSource, environmentOf, mirrorOf, qemuMajor } = await import(script('setup/qemu10.mjs'));
const { hashPaths, readStamp, removeStamp, stampState, writeStamp } = await import(script('setup/stamp.mjs'));
const { closingLine } = await import(script('test.mjs'));

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'shadowvm-setup-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

describe('Node version', () => {
  it('compares numbers and not text', () => {
    expect(compareVersions('20.9.0', '20.20')).toBeLessThan(0);
    expect(compareVersions('20.20.0', '20.20')).toBe(0);
    expect(compareVersions('22.1.0', '20.20')).toBeGreaterThan(0);
  });

  it('says which one is needed, and nothing when it is new enough', () => {
    expect(nodeIsTooOld('18.20.4')).toMatch(/Node 20\.20 or newer is needed, and this is 18\.20\.4/);
    expect(nodeIsTooOld(process.versions.node)).toBeNull();
  });
});

describe('Debian packages', () => {
  it('counts a package as there only when dpkg calls it installed', () => {
    const output =
      'gcc\tinstalled\nmake\tconfig-files\ncpio\tunpacked\nlibc6-dev\tinstalled\nlibc6-dev\tnot-installed\n';
    expect(missingPackages(['gcc', 'make', 'cpio', 'libc6-dev', 'zstd'], output)).toEqual(['make', 'cpio', 'zstd']);
    expect(missingPackages(['gcc'], '')).toEqual(['gcc']);
  });

  it('gives someone who is not root the command to run', () => {
    expect(notRootMessage(['make', 'cpio'])).toContain(
      'sudo apt-get update && sudo apt-get install --no-install-recommends make cpio',
    );
  });

  it('takes Debian and its children on x86-64, and nothing else', () => {
    const bookworm = parseOsRelease(
      'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n',
    );
    expect(bookworm).toEqual({
      PRETTY_NAME: 'Debian GNU/Linux 12 (bookworm)',
      VERSION_CODENAME: 'bookworm',
      ID: 'debian',
    });
    expect(unsupportedSystem(bookworm, 'x64')).toBeNull();
    expect(unsupportedSystem({ ID: 'ubuntu', ID_LIKE: 'debian' }, 'x64')).toBeNull();
    expect(unsupportedSystem({ ID: 'fedora', PRETTY_NAME: 'Fedora 43' }, 'x64')).toMatch(/this is Fedora 43/);
    expect(unsupportedSystem({}, 'x64')).toMatch(/needs Debian 12 or 13/);
    expect(unsupportedSystem(bookworm, 'arm64')).toMatch(/x86-64 only/);
  });
});

describe('node_modules', () => {
  const locked = {
    packages: {
      '': {},
      'node_modules/zod': { version: '4.6.7', integrity: 'a' },
      'node_modules/for-windows': { version: '1.0.0', optional: true },
    },
  };

  it('is complete when npm noted all that is not optional', () => {
    expect(isInstalled(locked, { packages: { 'node_modules/zod': { version: '4.6.7', integrity: 'a' } } })).toBe(true);
  });

  it.each([
    ['nothing is installed, or the install was killed', null],
    ['a package is missing', { packages: {} }],
    ['a package has another version', { packages: { 'node_modules/zod': { version: '4.6.6', integrity: 'a' } } }],
    ['a package has another content', { packages: { 'node_modules/zod': { version: '4.6.7', integrity: 'b' } } }],
    [
      'a package is there that the lock file does not know',
      {
        packages: {
          'node_modules/zod': { version: '4.6.7', integrity: 'a' },
          'node_modules/old': { version: '1.0.0' },
        },
      },
    ],
  ])('is not when %s', (_, installed) => {
    expect(isInstalled(locked, installed)).toBe(false);
  });
});

describe('stamps', () => {
  const hash = () => hashPaths(folder, ['src', 'absent'], (path: string) => !path.endsWith('.test.ts'));

  it('hash names and contents, not times', () => {
    mkdirSync(join(folder, 'src'));
    writeFileSync(join(folder, 'src/a.ts'), 'one');
    const first = hash();
    utimesSync(join(folder, 'src/a.ts'), 1, 1);
    writeFileSync(join(folder, 'src/a.test.ts'), 'not wanted');
    expect(hash()).toBe(first);

    writeFileSync(join(folder, 'src/a.ts'), 'two');
    const second = hash();
    expect(second).not.toBe(first);
    writeFileSync(join(folder, 'src/b.ts'), '');
    expect(hash()).not.toBe(second);
  });

  it('hold for their key and age only', () => {
    const stamp = { key: 'k', writtenAtMs: 1_000 };
    expect(stampState(stamp, 'k', 1_999, 1_000)).toBe('fresh');
    expect(stampState(stamp, 'k', 2_000, 1_000)).toBe('old');
    expect(stampState(stamp, 'k', 999, 1_000)).toBe('old'); // the clock was set back
    expect(stampState(stamp, 'k', 1e15)).toBe('fresh');
    expect(stampState(stamp, 'other', 1_001)).toBe('none');
    expect(stampState(null, 'k', 1_001)).toBe('none');
  });

  it('are none when absent, removed or damaged', () => {
    const file = join(folder, 'deep/stamp.json');
    expect(readStamp(file)).toBeNull();
    writeStamp(file, 'k', 5);
    expect(readStamp(file)).toEqual({ key: 'k', writtenAtMs: 5 });
    writeFileSync(file, '{"key":"k"');
    expect(readStamp(file)).toBeNull();
    writeFileSync(file, '{"key":"k"}');
    expect(readStamp(file)).toBeNull();
    removeStamp(file);
    expect(readStamp(file)).toBeNull();
    removeStamp(file);
  });
});

describe('commands', () => {
  it('that fail show both ends of their output', async () => {
    const log = join(folder, 'log');
    const failing = run(log, 'sh', ['-c', 'echo to stdout; seq 100; echo to stderr >&2; exit 7']);
    await expect(failing).rejects.toThrow(SetupError);
    await expect(failing).rejects.toThrow(/exit code 7:.*to stdout.*\.\.\. \d+ lines left out \.\.\..*to stderr/s);
    await expect(run(log, join(folder, 'no-such-command'), [])).rejects.toThrow(/ENOENT/);
  });

  it('are shown whole when they are short', () => {
    expect(excerpt('one\ntwo\n')).toBe('one\ntwo');
  });

  it('end with the setup when it is killed, with all that they started', async () => {
    const pidFile = join(folder, 'pid');
    const program = `
      import { exitCode, stopChildrenOnSignals } from ${JSON.stringify(script('setup/process.mjs'))};
      stopChildrenOnSignals();
      await exitCode(${JSON.stringify(join(folder, 'log'))}, 'sh', ['-c', 'sleep 60 & echo $! > ${pidFile}; wait']);
      throw new Error('the step went on');`;
    const setup = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: 'ignore' });
    const exit = once(setup, 'exit');
    const pid = Number(await eventually(() => existsSync(pidFile) && readFileSync(pidFile, 'utf8').trim()));
    setup.kill('SIGTERM');
    expect(await exit).toEqual([128 + 15, null]);
    // Ended, or at least dead and not yet reaped by whoever inherited it.
    await eventually(() => {
      const stat = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : ') Z ';
      return stat.includes(') Z ');
    });
  });
});

it('two setups take turns', async () => {
  const order = join(folder, 'order');
  const program = (name: string) => `
    import { appendFileSync } from 'node:fs';
    import { takeLock } from ${JSON.stringify(script('setup/lock.mjs'))};
    const say = (what) => appendFileSync(${JSON.stringify(order)}, '${name} ' + what + '\\n');
    await takeLock(${JSON.stringify(join(folder, 'lock'))}, ${JSON.stringify(join(folder, 'log'))}, () => say('waits'));
    say('begins');
    if ('${name}' === 'first') await new Promise((resolve) => process.stdin.on('data', resolve));
    say('ends');
    process.exit(0);`;
  const start = (name: string) => spawn(process.execPath, ['--input-type=module', '-e', program(name)]);
  const lines = () => (existsSync(order) ? readFileSync(order, 'utf8').trim().split('\n') : []);
  const first = start('first');
  await eventually(() => lines().includes('first begins'));
  const second = start('second');
  const secondExit = once(second, 'exit');
  await eventually(() => lines().includes('second waits'));
  first.stdin.write('go on\n');
  await secondExit;
  expect(lines()).toEqual(['first begins', 'second waits', 'first ends', 'second begins', 'second ends']);
});

describe('QEMU 10', () => {
  it('knows a version when it sees one', () => {
    expect(qemuMajor('QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\n')).toBe(10);
    expect(qemuMajor('QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n')).toBe(7);
    expect(qemuMajor('')).toBeNull();
  });

  it('comes from the mirror that the system uses', () => {
    const targets = 'http://mirror/security/\tbookworm-security\nhttp://mirror/debian/\tbookworm\n';
    expect(mirrorOf(targets, 'bookworm')).toBe('http://mirror/debian/');
    expect(mirrorOf(targets, 'trixie')).toBeNull();
    expect(backportsSource('http://mirror/debian/', 'bookworm', '/keys.gpg')).toBe(
      'Types: deb\nURIs: http://mirror/debian/\nSuites: bookworm-backports\nComponents: main\nSigned-By: /keys.gpg\n',
    );
  });

  it('is found by variables, which name libraries only when there are any', () => {
    expect(environmentOf('/q', false)).toEqual({
      SHADOWVM_QEMU: '/q/usr/bin/qemu-system-x86_64',
      SHADOWVM_QEMU_DATA: '/q/usr/share/seabios:/q/usr/share/qemu',
      QEMU_MODULE_DIR: '/q/usr/lib/x86_64-linux-gnu/qemu',
    });
    expect(environmentOf('/q', true).LD_LIBRARY_PATH).toBe('/q/usr/lib/x86_64-linux-gnu');
  });
});

it('the closing line counts tests, and files that could not be loaded', () => {
  const report = { numPassedTests: 5, numFailedTests: 0, numPendingTests: 0, numTodoTests: 0, testResults: [] };
  expect(closingLine(report)).toBe('5 passed, 0 failed');
  const broken = [{ status: 'failed', assertionResults: [] }];
  expect(closingLine({ ...report, numFailedTests: 1, numPendingTests: 2, testResults: broken })).toBe(
    '5 passed, 2 failed, 2 skipped',
  );
});

async function eventually<T>(condition: () => T, timeoutMs = 10_000): Promise<T> {
  for (const deadline = Date.now() + timeoutMs; ; ) {
    const value = condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
