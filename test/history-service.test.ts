/** The history in its thread, on real files. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { ShadowVmError } from '../src/errors.js';
import { HistoryService } from '../src/history/service.js';

const T0 = 1_700_006_400;
let dir: string;
let service: HistoryService;
const trouble: ShadowVmError[] = [];
const losses: number[] = [];

function open(file = 'history.db'): HistoryService {
  service = new HistoryService({
    path: join(dir, file),
    onTrouble: (error) => trouble.push(error),
    onLoss: (seconds) => losses.push(seconds),
  });
  return service;
}

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'shadowvm-service-'));
  trouble.length = 0;
  losses.length = 0;
});
afterEach(async () => {
  await service.close();
  rmSync(dir, { recursive: true });
});

it('answers what it was told, also after it was closed and opened again', async () => {
  open().take([{ vm: 'web', atS: T0, usage: { cpu: 12 } }]);
  expect((await service.ask('points', 'web', 'cpu', T0, T0 + 1, 10)).points).toEqual([{ atS: T0, mean: 12, max: 12 }]);
  service.take([{ vm: 'web', atS: T0 + 1, usage: { cpu: 14 } }]);
  await service.close();
  await service.close();
  expect((await open().ask('points', 'web', 'cpu', T0, T0 + 5, 10)).points).toHaveLength(2);
});

it('loses seconds rather than keep more than a few waiting, and tells it', async () => {
  open();
  for (let s = 0; s < 40; s++) service.take([{ vm: 'web', atS: T0 + s, usage: { cpu: 1 } }]);
  await service.ask('points', 'web', 'cpu', T0, T0 + 1, 1);
  service.take([{ vm: 'web', atS: T0 + 40, usage: { cpu: 1 } }]);
  expect(losses).toEqual([10]);
  expect((await service.ask('points', 'web', 'cpu', T0, T0 + 60, 60)).points).toHaveLength(31);
});

it('bounds the questions that wait', async () => {
  open();
  const asked = Array.from({ length: 70 }, () => service.ask('points', 'web', 'cpu', T0, T0 + 1, 1));
  const refused = (await Promise.allSettled(asked)).filter(({ status }) => status === 'rejected');
  expect(refused.length).toBe(6);
  expect((refused[0] as PromiseRejectedResult).reason.code).toBe('QUEUE_FULL');
});

it('leaves a file alone that is no history, says what to do, and is no reason to fail', async () => {
  writeFileSync(join(dir, 'foreign'), 'this is no database, and long enough for the header of one. '.repeat(20));
  open('foreign').take([{ vm: 'web', atS: T0, usage: { cpu: 1 } }]);
  await vi.waitFor(() => expect(trouble.length).toBeGreaterThan(0), 5000);
  await expect(service.ask('points', 'web', 'cpu', T0, T0 + 1, 1)).rejects.toMatchObject({
    code: 'STATE_CORRUPT',
    remedy: expect.stringMatching(/Move the file away/),
  });
  service.take([{ vm: 'web', atS: T0 + 1, usage: { cpu: 1 } }]);
});
