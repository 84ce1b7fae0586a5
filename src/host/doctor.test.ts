import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { examineHost, type Finding, isAtLeast } from './doctor.js';

const dir = mkdtempSync(join(tmpdir(), 'svdoctor-'));
const { SHADOWVM_QEMU } = process.env;
afterAll(() => rmSync(dir, { recursive: true, force: true }));
afterEach(() => {
  if (SHADOWVM_QEMU === undefined) delete process.env.SHADOWVM_QEMU;
  else process.env.SHADOWVM_QEMU = SHADOWVM_QEMU;
});

async function examine(imagesDir = join(dir, 'images')): Promise<Map<string, Finding>> {
  const findings = await examineHost({ imagesDir, stateDir: join(dir, 'not', 'yet', 'there') });
  return new Map(findings.map((finding) => [finding.name, finding]));
}

describe('this host', () => {
  test('it is examined within 4 s, every finding says something, every trouble has a remedy', async () => {
    const startedAt = performance.now();
    const findings = await examine();
    expect(performance.now() - startedAt).toBeLessThan(4000);
    expect([...findings.keys()]).toEqual([
      ...['node', 'root', 'kernel', 'qemu', 'kvm', 'tsc'],
      ...['tracking', 'memory', 'cgroups', 'network', 'firewall', 'disk', 'images'],
    ]);
    for (const { status, found, remedy } of findings.values()) {
      expect(found).toMatch(/\w/);
      if (status === 'ok') expect(remedy).toBeNull();
      else expect(remedy).toMatch(/\w/);
    }
    // The tests need these; where they fail here, nothing else will work.
    for (const name of ['node', 'qemu', 'memory', 'disk', 'tsc']) expect(findings.get(name)?.status).toBe('ok');
    expect(readdirSync(dir)).not.toContain('not');
  });

  test('a missing QEMU is a failure with its remedy, and KVM is not examined', async () => {
    process.env.SHADOWVM_QEMU = '/nowhere/qemu';
    const findings = await examine();
    expect(findings.get('qemu')).toMatchObject({ status: 'fail', remedy: expect.stringMatching(/apt-get install/) });
    expect(findings.get('kvm')?.status).toBe('warn');
  });
});

test('images are told by their manifests, broken ones by name', async () => {
  const imagesDir = join(dir, 'some-images');
  expect((await examine(imagesDir)).get('images')).toMatchObject({
    status: 'warn',
    found: expect.stringMatching(/does not exist/),
  });
  mkdirSync(join(imagesDir, 'default'), { recursive: true });
  // Builds under way are hidden.
  mkdirSync(join(imagesDir, '.builds'));
  writeFileSync(join(imagesDir, 'default', 'manifest.json'), JSON.stringify({ name: 'default', imageMiB: 42.4 }));
  expect((await examine(imagesDir)).get('images')).toEqual({
    name: 'images',
    status: 'ok',
    found: 'default (42 MiB)',
    remedy: null,
  });
  mkdirSync(join(imagesDir, 'redis'));
  expect((await examine(imagesDir)).get('images')).toMatchObject({
    status: 'warn',
    found: expect.stringMatching(/redis/),
  });
});

test.each([
  ['6.7.0', true],
  ['6.18.44-cloud', true],
  ['7.0', true],
  ['6.1.0-9-amd64', false],
  ['5.15', false],
  ['', false],
])('%j is at least 6.7: %s', (version, expected) => expect(isAtLeast(version, [6, 7])).toBe(expected));
