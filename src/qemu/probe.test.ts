import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { findQemu, parseQemuVersion, probeBios, QEMU_BINARY } from './probe.js';

const dir = mkdtempSync(join(tmpdir(), 'svprobe-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function fakeQemu(name: string, script: string): string {
  const path = join(dir, name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

describe('version', () => {
  test.each([
    ['QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)', { major: 7, minor: 2, micro: 22 }],
    ['QEMU emulator version 10.0.2\nCopyright', { major: 10, minor: 0, micro: 2 }],
    ['QEMU emulator version 9.1', { major: 9, minor: 1, micro: 0 }],
    ['GNU bash, version 5.2', null],
    ['', null],
  ])('%j', (text, version) => expect(parseQemuVersion(text)).toEqual(version));
});

describe('finding QEMU', () => {
  const answer = (version: string): string => `echo "QEMU emulator version ${version} (test)"`;

  test('the one that SHADOWVM_QEMU names, with its data folders', async () => {
    const path = fakeQemu('qemu-ten', answer('10.0.2'));
    const env = { SHADOWVM_QEMU: path, SHADOWVM_QEMU_DATA: '/opt/q/seabios:/opt/q/qemu', PATH: '' };
    expect(await findQemu({ env })).toEqual({
      path,
      version: { major: 10, minor: 0, micro: 2 },
      dataDirs: ['/opt/q/seabios', '/opt/q/qemu'],
    });
  });

  test('the first in PATH; what is no executable file is passed over', async () => {
    writeFileSync(join(dir, 'plain'), '');
    const path = fakeQemu(QEMU_BINARY, answer('7.2.0'));
    expect(await findQemu({ env: { PATH: `/nowhere::${dir}` } })).toMatchObject({ path, dataDirs: [] });
    await expect(findQemu({ env: { SHADOWVM_QEMU: join(dir, 'plain') } })).rejects.toMatchObject({
      code: 'QEMU_MISSING',
    });
    await expect(findQemu({ env: { SHADOWVM_QEMU: dir } })).rejects.toMatchObject({ code: 'QEMU_MISSING' });
  });

  test('none at all, one that is too old, one that is no QEMU, one that fails: each says what to do', async () => {
    const cases: [string, string][] = [
      ['/nowhere/qemu', 'QEMU_MISSING'],
      ['no-such-qemu', 'QEMU_MISSING'],
      [fakeQemu('old', answer('7.1.9')), 'QEMU_TOO_OLD'],
      [fakeQemu('ancient', answer('6.2.0')), 'QEMU_TOO_OLD'],
      [fakeQemu('other', 'echo hello'), 'QEMU_MISSING'],
      [fakeQemu('broken', 'echo "libfoo.so is missing" >&2; exit 127'), 'QEMU_MISSING'],
    ];
    for (const [path, code] of cases)
      await expect(findQemu({ env: { SHADOWVM_QEMU: path, PATH: '/usr/bin' } })).rejects.toMatchObject({
        code,
        remedy: expect.stringMatching(/\w/),
      });
  });
});

test('the probe guest fits its place and starts at the reset vector', () => {
  const bios = probeBios();
  expect(bios.length).toBe(64 * 1024);
  expect([...bios.subarray(-16, -11)]).toEqual([0xea, 0, 0, 0, 0xf0]);
  expect(bios[0]).toBe(0xfa);
});
