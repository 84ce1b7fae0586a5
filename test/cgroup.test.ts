/** CPU and memory limits on the real kernel, with whichever cgroup version it has. Needs root. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { type CgroupDriver, openCgroups } from '../src/allocate/cgroup.js';

const MIB = 1024 * 1024;
// The process id keeps two runs of the tests on one host apart.
const PARENT = `shadowvm-test-${process.pid}`;
const opened = openCgroups(PARENT);
const driver = opened.driver as CgroupDriver;
const children: ChildProcess[] = [];

async function cleanUp(): Promise<void> {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
  const { busy } = await driver.sweep('');
  for (const name of busy) await driver.remove(name);
}

afterEach(async () => {
  if (opened.driver !== null) await cleanUp();
});
afterAll(() => {
  if (opened.driver === null) return;
  driver.close();
  expect(readFileSync('/proc/self/cgroup', 'utf8')).not.toContain(PARENT);
});

function start(script: string): ChildProcess & { pid: number } {
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  return child as ChildProcess & { pid: number };
}

const BURN = 'console.log("up"); for (;;);';

async function cpuSharePercent(name: string, ms: number): Promise<number> {
  const before = driver.usage(name).cpuNs;
  const startedAt = performance.now();
  await sleep(ms);
  return (driver.usage(name).cpuNs - before) / 1e4 / (performance.now() - startedAt);
}

describe.skipIf(opened.driver === null)('cgroups', () => {
  test('a busy process is held to its quota, and runs on in the moment it is raised', async () => {
    driver.create('burn');
    const child = start(BURN);
    await once(child.stdout!, 'data');
    driver.addProcess('burn', child.pid);
    driver.setLimits('burn', { cpuPercent: 5 });
    await sleep(200);
    expect(await cpuSharePercent('burn', 1000)).toBeLessThan(9);
    expect(driver.usage('burn').throttledNs).toBeGreaterThan(0);
    // Unlimited again: what a promotion does to a shadow. Throttled threads must run at once, not at the next period.
    driver.setLimits('burn', { cpuPercent: null });
    expect(await cpuSharePercent('burn', 500)).toBeGreaterThan(20);
  });

  test('a weight divides a contended core', async () => {
    driver.create('light');
    driver.create('heavy');
    // Twice as many as cores, so that each core is contended wherever the scheduler puts them.
    for (const name of ['light', 'heavy', 'light', 'heavy']) driver.addProcess(name, start(BURN).pid);
    driver.setLimits('light', { cpuWeight: 1 });
    driver.setLimits('heavy', { cpuWeight: 1000 });
    await sleep(300);
    const [light, heavy] = await Promise.all([cpuSharePercent('light', 1500), cpuSharePercent('heavy', 1500)]);
    expect(heavy).toBeGreaterThan(light * 3);
    // Idle: next to nothing, however much it weighs.
    driver.setLimits('light', { cpuWeight: 1000 });
    driver.makeIdle('light');
    await sleep(300);
    const [idle, others] = await Promise.all([cpuSharePercent('light', 500), cpuSharePercent('heavy', 500)]);
    expect(others).toBeGreaterThan(idle * 3);
  });

  test('memory is charged and limited; a limit below what is in use is refused', async () => {
    driver.create('fat');
    const child = start(`
      process.stdin.destroy();
      setTimeout(() => { global.kept = Buffer.alloc(${64 * MIB}, 1); console.log('up'); }, 300);
      setInterval(() => {}, 1000);`);
    driver.addProcess('fat', child.pid);
    await once(child.stdout!, 'data');
    expect(driver.usage('fat').memoryBytes).toBeGreaterThan(64 * MIB);
    expect(() => driver.setLimits('fat', { memoryBytes: 16 * MIB })).toThrow(
      expect.objectContaining({ code: 'CGROUP_FAILED' }),
    );
    expect(child.exitCode).toBeNull();
    expect(child.signalCode).toBeNull();
    driver.setLimits('fat', { memoryBytes: 512 * MIB });
    driver.setLimits('fat', { memoryBytes: null });
  });

  test('a process that outgrows its limit is ended by the kernel, not the manager', async () => {
    driver.create('greedy');
    driver.setLimits('greedy', { memoryBytes: 96 * MIB });
    const child = start(`
      setTimeout(() => { global.kept = []; setInterval(() => kept.push(Buffer.alloc(${16 * MIB}, 1)), 5); }, 300);`);
    driver.addProcess('greedy', child.pid);
    const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
    expect(signal).toBe('SIGKILL');
  });

  test('a cgroup is removed once its process has ended; while it lives, sweeping leaves it', async () => {
    driver.create('vm-a');
    driver.create('vm-b');
    driver.create('other');
    const child = start(BURN);
    driver.addProcess('vm-a', child.pid);
    expect(await driver.sweep('vm-')).toEqual({ removed: ['vm-b'], busy: ['vm-a'] });
    child.kill('SIGKILL');
    await driver.remove('vm-a');
    await driver.remove('vm-a');
    expect(await driver.sweep('')).toEqual({ removed: ['other'], busy: [] });
  });

  test('removing what has a living process fails within its time, with a remedy', async () => {
    driver.create('alive');
    driver.addProcess('alive', start(BURN).pid);
    await expect(driver.remove('alive')).rejects.toMatchObject({
      code: 'CGROUP_FAILED',
      remedy: expect.stringMatching(/ended/),
    });
  });

  test('making it again takes its limits away', () => {
    driver.create('again');
    driver.setLimits('again', { cpuPercent: 5, memoryBytes: 64 * MIB, cpuWeight: 5 });
    driver.create('again');
    driver.setLimits('again', { memoryBytes: 32 * MIB });
  });

  test('what does not exist is an error: process, cgroup', async () => {
    driver.create('empty');
    const child = start('');
    await once(child, 'exit');
    expect(() => driver.addProcess('empty', child.pid)).toThrow(expect.objectContaining({ code: 'CGROUP_FAILED' }));
    expect(() => driver.setLimits('missing', { cpuPercent: 5 })).toThrow(
      expect.objectContaining({ code: 'CGROUP_FAILED' }),
    );
    expect(() => driver.usage('missing')).toThrow(expect.objectContaining({ code: 'CGROUP_FAILED' }));
  });

  test('raising a limit takes less than a millisecond', () => {
    driver.create('quick');
    const tookMs: number[] = [];
    for (let i = 0; i < 50; i++) {
      driver.setLimits('quick', { cpuPercent: 1, memoryBytes: 256 * MIB });
      const startedAt = performance.now();
      driver.setLimits('quick', { cpuPercent: null, memoryBytes: null });
      tookMs.push(performance.now() - startedAt);
    }
    tookMs.sort((a, b) => a - b);
    expect(tookMs[25]!).toBeLessThan(1);
  });
});
