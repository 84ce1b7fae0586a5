import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';
import {
  cpuSeconds,
  diesOfSigkill,
  isRunning,
  parseStat,
  processesWith,
  processState,
  startTicks,
} from './process-stat.js';

const NOBODY = 2 ** 22 + 1;

test('a program may be called anything', () => {
  const fields = parseStat('42 (a) b (c)) S 1 2 3');
  expect([3, 4, 6, 7].map(fields)).toEqual(['S', '1', '3', undefined]);
});

test('this process runs, and another one with its number would not be it', () => {
  const began = startTicks(process.pid) as number;
  expect(isRunning({ pid: process.pid, startTicks: began })).toBe(true);
  expect(isRunning({ pid: process.pid, startTicks: began + 1 })).toBe(false);
  expect(cpuSeconds(process.pid)).toBeGreaterThan(0);
  expect(processState(process.pid)).toBe('R');
});

test('what does not run is told as that', () => {
  expect(isRunning({ pid: NOBODY, startTicks: 1 })).toBe(false);
  expect(startTicks(NOBODY)).toBeNull();
  expect(processState(NOBODY)).toBeNull();
  expect(cpuSeconds(NOBODY)).toBeNull();
  expect(diesOfSigkill(NOBODY)).toBe(false);
});

test.each([
  ['SIGKILL', true],
  ['SIGSEGV', false],
] as const)('a process that died of %s died of SIGKILL: %s', async (signal, outside) => {
  // Its parent does not reap it, so that it can be looked at.
  const script = `setTimeout(() => {}, 60_000); const c = require('child_process').spawn('sleep', ['60']); console.log(c.pid); require('child_process').execSync('sleep 2')`;
  const parent = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(parent.stdout, 'data')) as [Buffer];
  const pid = Number(line.toString());
  expect(processesWith('sleep').some((each) => each.pid === pid)).toBe(true);
  process.kill(pid, signal);
  while (processState(pid) !== 'Z') await new Promise((resolve) => setTimeout(resolve, 5));
  expect(diesOfSigkill(pid)).toBe(outside);
  parent.kill('SIGKILL');
});
