/** The probes against the real kernel and the real QEMU. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findQemu, hostTscKhz, probeKvm, probeTracking, type Qemu, runProbeGuest } from '../src/qemu/probe.js';

const dir = mkdtempSync(join(tmpdir(), 'svprobe-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
let qemu: Qemu;
beforeAll(async () => {
  qemu = await findQemu();
});

const leftovers = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith('shadowvm-probe-'));

describe('the probe guest', () => {
  test('it runs to its end under TCG, so that it can succeed at all', async () => {
    const run = await runProbeGuest(qemu, 'tcg', 'max', 10_000);
    expect(run).toMatchObject({ ok: true });
    expect(leftovers()).toEqual([]);
  });

  test('a deadline that is too short is told as one, and nothing is left', async () => {
    const run = await runProbeGuest(qemu, 'tcg', 'max', 1);
    expect(run.ok).toBe(false);
    expect(run.reason).toMatch(/within 1 ms/);
    expect(run.elapsedMs).toBeLessThan(1000);
    expect(leftovers()).toEqual([]);
  });

  test('QEMU’s own words are told when it gives up', async () => {
    const run = await runProbeGuest(qemu, 'tcg', 'no-such-cpu', 10_000);
    expect(run.ok).toBe(false);
    expect(run.reason).toMatch(/no-such-cpu/);
  });

  test('a QEMU that can not be started is a reason, not an exception', async () => {
    const run = await runProbeGuest({ ...qemu, path: '/nowhere/qemu' }, 'tcg', 'max', 1000);
    expect(run).toMatchObject({ ok: false, reason: expect.stringMatching(/ENOENT/) });
  });
});

describe('KVM', () => {
  test('the answer comes within its deadline, with a reason, and agrees with a longer look', async () => {
    const startedAt = performance.now();
    const answer = await probeKvm({ qemu, deadlineMs: 2000 });
    expect(performance.now() - startedAt).toBeLessThan(3000);
    expect(answer.reason).toMatch(/\w/);
    if (answer.usable) expect((await runProbeGuest(qemu, 'kvm', 'host', 10_000)).ok).toBe(true);
  });

  test('a second question is answered from memory, another process’s from the file', async () => {
    const cacheFile = join(dir, 'kvm.json');
    // Another path to the same QEMU: a key of its own.
    const path = join(dir, 'qemu');
    writeFileSync(path, `#!/bin/sh\necho run >> ${join(dir, 'runs')}\nexec ${qemu.path} "$@"\n`, { mode: 0o755 });
    const options = { qemu: { ...qemu, path }, cacheFile };
    const first = await probeKvm(options);
    expect(await probeKvm(options)).toEqual(first);
    // The file is there only where the question got past opening /dev/kvm.
    if (!first.reason.startsWith('/dev/kvm')) {
      expect(readFileSync(join(dir, 'runs'), 'utf8')).toBe('run\n');
      const cached = JSON.parse(readFileSync(cacheFile, 'utf8'));
      expect(cached).toMatchObject(first);
      const other = { ...qemu, path: join(dir, 'never-run') };
      const foreign = { ...cached, key: cached.key.replace(path, other.path), usable: true, reason: 'from the file' };
      writeFileSync(cacheFile, JSON.stringify(foreign));
      expect(await probeKvm({ qemu: other, cacheFile })).toEqual({ usable: true, reason: 'from the file' });
    }
  });

  test('a damaged, a foreign or a stale file is not believed', async () => {
    const cacheFile = join(dir, 'kvm-bad.json');
    const path = join(dir, 'missing-qemu');
    writeFileSync(cacheFile, '{"key":');
    const answer = await probeKvm({ qemu: { ...qemu, path }, cacheFile });
    expect(answer.usable).toBe(false);
    if (answer.reason.startsWith('/dev/kvm')) return;
    const cached = JSON.parse(readFileSync(cacheFile, 'utf8'));
    const stale = join(dir, 'missing-qemu-2');
    writeFileSync(
      cacheFile,
      JSON.stringify({
        ...cached,
        key: cached.key.replace(path, stale),
        reason: 'stale',
        atMs: Date.now() - 90_000_000,
      }),
    );
    expect((await probeKvm({ qemu: { ...qemu, path: stale }, cacheFile })).reason).not.toBe('stale');
  });
});

test('the time stamp counter is measured within 0.1 %, and within what the kernel found', () => {
  const khz = hostTscKhz();
  expect(Number.isInteger(khz)).toBe(true);
  expect(hostTscKhz()).toBe(khz);
  // Measured independently: by a process of its own, over its own 20 ms.
  const script = `console.log(require(${JSON.stringify(addonPath())}).measureTscKhz())`;
  for (let i = 0; i < 5; i++) {
    const other = Number(execFileSync(process.execPath, ['-e', script], { encoding: 'utf8' }));
    expect(Math.abs(other - khz) / khz).toBeLessThan(0.001);
  }
});

test('write tracking works, or a reason says why not', () => {
  const tracking = probeTracking();
  const [major = 0, minor = 0] = execFileSync('uname', ['-r'], { encoding: 'utf8' }).split('.').map(Number);
  if (tracking.usable) expect(major > 6 || (major === 6 && minor >= 7)).toBe(true);
  else expect(tracking.reason).toMatch(/\w/);
  // It leaves neither mappings nor descriptors behind.
  const before = readdirSync('/proc/self/fd').length;
  for (let i = 0; i < 100; i++) probeTracking();
  expect(readdirSync('/proc/self/fd').length).toBe(before);
});

function addonPath(): string {
  return new URL('../native/build/shadowvm.node', import.meta.url).pathname;
}
