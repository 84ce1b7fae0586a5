import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { canAskForWakeLatency, wakeLatencyInForceUs as inForce } from '../../harness/wake-latency.js';
import { monotonicMs } from '../clock.js';
import { AwakeCpus, wakeLatencyUs } from './awake-cpus.js';

const folder = mkdtempSync(join(tmpdir(), 'awake-cpus-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('hardware keeps its lightest sleep, a guest of a hypervisor none; without idle drivers nothing is asked for', () => {
  expect(['intel_idle', 'acpi_idle', 'haltpoll', 'none', null].map(wakeLatencyUs)).toEqual([2, 2, 0, null, null]);
});

describe('a request', () => {
  const device = () => {
    const path = join(folder, `device-${Math.random()}`);
    writeFileSync(path, '');
    return path;
  };

  test('is made by quick rounds only', () => {
    const path = device();
    const cpus = new AwakeCpus(7, path);
    for (const atMs of [0, 100, 200, 221]) cpus.noteRound(atMs);
    expect(readFileSync(path)).toHaveLength(0);
    cpus.noteRound(240);
    expect(readFileSync(path).readInt32LE()).toBe(7);
    cpus.close();
  });

  test('is not made where nothing is to be asked for, nor again where it can not be', () => {
    const path = join(folder, 'made-later');
    const [none, refused] = [new AwakeCpus(null, path), new AwakeCpus(0, path)];
    for (const atMs of [0, 1]) for (const cpus of [none, refused]) cpus.noteRound(atMs);
    writeFileSync(path, '');
    for (const atMs of [2, 3]) for (const cpus of [none, refused]) cpus.noteRound(atMs);
    expect(readFileSync(path)).toHaveLength(0);
  });

  test.skipIf(!canAskForWakeLatency)(
    'is in force in the kernel, ends soon after the last round, and can be made again',
    async () => {
      const before = inForce();
      expect(before).toBeGreaterThan(1);
      const cpus = new AwakeCpus(1);
      for (let i = 0; i < 2; i++) {
        cpus.noteRound(monotonicMs() - 1);
        cpus.noteRound();
        expect(inForce()).toBe(1);
        await expect.poll(inForce, { timeout: 2000, interval: 10 }).toBe(before);
      }
      cpus.close();
    },
  );
});
