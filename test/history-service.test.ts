/** The history in its thread, on real files. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { ShadowVmError } from '../src/errors.js';
import type { Outlook } from '../src/forecast/outlook.js';
import { HistoryService } from '../src/history/service.js';

const T0 = 1_700_006_400;
let dir: string;
let service: HistoryService;
const trouble: ShadowVmError[] = [];
const losses: number[] = [];
const outlooks: { vm: string; told: Outlook[] }[] = [];

function open(file = 'history.db'): HistoryService {
  service = new HistoryService({
    path: join(dir, file),
    forecasts: { intervalS: 10, seasonS: 240 },
    onOutlook: (vm, told) => outlooks.push({ vm, told }),
    onTrouble: (error) => trouble.push(error),
    onLoss: (seconds) => losses.push(seconds),
  });
  return service;
}

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'shadowvm-service-'));
  trouble.length = 0;
  losses.length = 0;
  outlooks.length = 0;
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

it('forecasts each VM, and after a restart goes on from what the history holds', async () => {
  const load = (s: number) => (s % 240 < 60 ? 90 : 10);
  const second = (s: number) => [{ vm: 'web', atS: T0 + s, usage: { demand: load(s) } }];
  open();
  for (let s = 0; s < 1600; s += 20) {
    for (let i = s; i < s + 20; i++) service.take(second(i));
    await service.ask('points', 'web', 'demand', T0, T0 + 1, 1);
  }
  expect(outlooks.at(-1)!.told[0]).toMatchObject({ metric: 'demand', samples: 159 });
  await service.close();
  outlooks.length = 0;
  open();
  service.take(second(1600));
  await vi.waitFor(() => expect(outlooks).toHaveLength(1), 5000);
  const [{ vm, told }] = outlooks as [{ vm: string; told: Outlook[] }];
  expect(vm).toBe('web');
  expect(told[0]!.samples).toBe(160);
  // Interval 160 is the last third of a season; the next begins in 8.
  expect(told[0]!.ahead[2]!.expected).toBeLessThan(30);
  expect(told[0]!.ahead[10]!.expected).toBeGreaterThan(60);
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
