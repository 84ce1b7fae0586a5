import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import Database from 'libsql';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { HistoryStore } from './store.js';

const T0 = 1_700_000_100; // a multiple of 300
let dir: string;
let file: string;

beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'shadowvm-history-'));
  file = path.join(dir, 'history.db');
});
afterEach(() => rmSync(dir, { recursive: true }));

it('keeps seconds for an hour, and rolls them up', () => {
  const store = HistoryStore.open(file);
  for (let s = 0; s < 2 * 3600; s++) store.append('web', T0 + s, { cpu: s % 60 });
  const recent = store.query('web', 'cpu', T0 + 7190, T0 + 7200);
  expect(recent.map((point) => point.mean)).toEqual([50, 51, 52, 53, 54, 55, 56, 57, 58, 59]);
  store.close();
  const again = HistoryStore.open(file);
  const all = again.query('web', 'cpu', T0, T0 + 7200);
  expect(all).toHaveLength(120);
  expect(all[0]).toEqual({ atS: T0, mean: 29.5, max: 59 });
  again.close();
});

it('answers in seconds as long as those reach back, wherever in a coarser row they began', () => {
  const store = HistoryStore.open(file);
  for (let s = 130; s < 400; s++) store.append('web', T0 + s, { cpu: 1 });
  expect(store.query('web', 'cpu', 0, T0 + 400)).toHaveLength(270);
  store.close();
});

it('fills the bucket that was open at a crash again from its seconds', () => {
  const crashed = HistoryStore.open(file);
  for (let s = 0; s < 30; s++) crashed.append('web', T0 + s, { cpu: 10 });
  crashed.flush(); // and no close
  const store = HistoryStore.open(file);
  for (let s = 30; s < 60; s++) store.append('web', T0 + s, { cpu: 30 });
  store.close();
  const rows = new Database(file).prepare('SELECT data FROM usage WHERE tier = 1').all() as { data: ArrayBuffer }[];
  expect(rows).toHaveLength(1);
  expect(Buffer.from(rows[0]!.data).readFloatLE(0)).toBeCloseTo(20);
});

it('survives a clock that jumps: nothing old is taken away, and a second that comes twice is replaced', () => {
  const store = HistoryStore.open(file);
  for (let s = 0; s < 100; s++) store.append('web', T0 + s, { cpu: 1 });
  store.append('web', T0 + 10 * 365 * 86_400, { cpu: 2 });
  store.append('web', T0 + 50, { cpu: 7 });
  store.close();
  const again = HistoryStore.open(file);
  const points = again.query('web', 'cpu', T0, T0 + 100);
  expect(points).toHaveLength(100);
  expect(points[50]!.mean).toBe(7);
  again.close();
});

it('counts what can not be a usage as not measured', () => {
  const store = HistoryStore.open(file);
  [Number.NaN, -1, Number.POSITIVE_INFINITY, 1e300, 5].forEach((cpu, s) => {
    store.append('web', T0 + s, { cpu });
  });
  expect(store.query('web', 'cpu', T0, T0 + 10)).toEqual([{ atS: T0 + 4, mean: 5, max: 5 }]);
  expect(store.query('web', 'memory', T0, T0 + 10)).toEqual([]);
  expect(store.query('db', 'cpu', T0, T0 + 10)).toEqual([]);
  store.remove('web');
  expect(store.query('web', 'cpu', T0, T0 + 10)).toEqual([]);
  store.close();
});

it('begins anew with an empty file and refuses foreign ones', () => {
  writeFileSync(file, '');
  HistoryStore.open(file).close();
  writeFileSync(
    path.join(dir, 'text'),
    'this is not a database, and it is long enough to have a header of one '.repeat(20),
  );
  expect(() => HistoryStore.open(path.join(dir, 'text'))).toThrow(/open the usage history/);
  const other = new Database(path.join(dir, 'other.db'));
  other.exec('CREATE TABLE x (y)');
  other.close();
  expect(() => HistoryStore.open(path.join(dir, 'other.db'))).toThrow(/another program/);
});

it('loses what can not be written, and a new one goes on', () => {
  const store = HistoryStore.open(file);
  store.append('web', T0, { cpu: 1 });
  store.flush();
  const other = new Database(file);
  other.exec('BEGIN IMMEDIATE');
  store.append('web', T0 + 1, { cpu: 1 });
  expect(() => store.flush()).toThrow(/locked/);
  other.exec('ROLLBACK');
  other.close();
  const again = HistoryStore.open(file);
  again.append('web', T0 + 4, { cpu: 1 });
  expect(again.query('web', 'cpu', T0, T0 + 10).map((point) => point.atS - T0)).toEqual([0, 4]);
  again.close();
});
