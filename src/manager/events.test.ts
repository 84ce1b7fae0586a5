import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { eventSchema } from '../vm/view.js';
import { EventLog } from './events.js';

let dir: string;
let path: string;
let logged: string[];
const log = { error: (_: unknown, message: string) => void logged.push(message) } as never;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'svm-'));
  path = join(dir, 'events.jsonl');
  logged = [];
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const numbers = (log: EventLog, filter = {}) => log.list(filter).map((event) => event.seq);

test('events are numbered, listed and on disk as JSON lines of the schema', async () => {
  const events = await EventLog.open(path, { log });
  const before = process.hrtime.bigint();
  events.append('info', 'vm.started', 'web', 'web runs', { pid: 7 });
  events.append('warn', 'failure.detected', 'db', 'db is silent', {}, 42n);
  events.append('info', 'manager.note', null, 'a note');
  await events.flush();

  expect(numbers(events)).toEqual([1, 2, 3]);
  expect(numbers(events, { since: 1 })).toEqual([2, 3]);
  expect(numbers(events, { limit: 2 })).toEqual([2, 3]);
  expect(numbers(events, { limit: 0 })).toEqual([]);
  expect(numbers(events, { vm: 'web' })).toEqual([1]);
  expect(BigInt(events.list()[0]!.atNs)).toBeGreaterThanOrEqual(before);
  expect(events.list()[1]!.atNs).toBe('42');
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  expect(lines.map((line) => eventSchema.parse(JSON.parse(line)))).toEqual(events.list());
  await events.close();
});

test('numbers go on after a restart, and a torn last line costs only itself', async () => {
  const first = await EventLog.open(path, { log });
  for (let i = 0; i < 5; i++) first.append('info', 'test', null, `event ${i}`);
  await first.close();
  appendFileSync(path, '{"seq":6,"at":"2026-01-01T00:0');

  const second = await EventLog.open(path, { log });
  expect(numbers(second)).toEqual([1, 2, 3, 4, 5]);
  expect(second.append('info', 'test', null, 'after').seq).toBe(6);
  await second.close();
  const third = await EventLog.open(path, { log });
  expect(numbers(third)).toEqual([1, 2, 3, 4, 5, 6]);
  await third.close();
});

test('a spoiled line in the middle costs what is before it, not the numbers', async () => {
  const first = await EventLog.open(path, { log });
  first.append('info', 'test', null, 'one');
  await first.flush();
  appendFileSync(path, 'garbage\n{"seq":"no"}\n');
  first.append('info', 'test', null, 'two');
  await first.close();
  const second = await EventLog.open(path, { log });
  expect(numbers(second)).toEqual([1, 2]);
  await second.close();
});

test('the ring keeps the newest, also over a rotation and a restart', async () => {
  const options = { log, ringEvents: 10, fileBytesMax: 2000 };
  const first = await EventLog.open(path, options);
  for (let i = 0; i < 100; i++) {
    first.append('info', 'test', null, `event ${i}`);
    if (i % 5 === 0) await first.flush();
  }
  expect(numbers(first)).toEqual([91, 92, 93, 94, 95, 96, 97, 98, 99, 100]);
  expect(numbers(first, { since: 3 })).toHaveLength(10);
  await first.close();
  expect(statSync(path).size).toBeLessThanOrEqual(2000);
  expect(statSync(`${path}.1`).size).toBeLessThanOrEqual(2000);
  const second = await EventLog.open(path, options);
  expect(numbers(second)).toEqual([91, 92, 93, 94, 95, 96, 97, 98, 99, 100]);
  await second.close();
});

test('followers hear of each event until they stop; one that throws is taken off and the maker does not notice', async () => {
  const events = await EventLog.open(path, { log });
  const heard: number[] = [];
  const stop = events.follow((event) => heard.push(event.seq));
  events.follow(() => {
    throw new Error('bad follower');
  });
  events.append('info', 'test', null, 'one');
  events.append('info', 'test', null, 'two');
  stop();
  events.append('info', 'test', null, 'three');
  expect(heard).toEqual([1, 2]);
  expect(logged).toEqual(['a follower of the events failed and was taken off']);
  await events.close();
});

test('data that JSON can not hold, or too much of it, never stops an event', async () => {
  const events = await EventLog.open(path, { log });
  const cycle: Record<string, unknown> = {};
  cycle.self = cycle;
  const changed = { value: 1 };
  events.append('info', 'test', null, 'cycle', cycle);
  events.append('info', 'test', null, 'bigint', { ns: 5n });
  events.append('info', 'test', null, 'big', { text: 'x'.repeat(1e6) });
  events.append('info', 'test', null, 'y'.repeat(1e6), changed);
  changed.value = 2;
  const [first, second, third, fourth] = events.list();
  expect(first!.data.omitted).toContain('data that is not JSON');
  expect(second!.data).toEqual({ ns: '5' });
  expect(third!.data).toEqual({ omitted: '1000011 characters of data' });
  expect(fourth!.data).toEqual({ value: 1 });
  expect(fourth!.message).toHaveLength(2048);
  await events.close();
});

test('a disk that fails is told once, and memory goes on', async () => {
  const events = await EventLog.open(path, { log, fileBytesMax: 1 });
  mkdirSync(`${path}.1`); // A rotation can not put its file there.
  for (let i = 0; i < 4; i++) {
    events.append('info', 'test', null, `event ${i}`);
    await events.flush();
  }
  expect(numbers(events)).toEqual([1, 2, 3, 4]);
  expect(events.diskErrors).toBe(3);
  expect(logged).toEqual(['events can not be written to disk; they are kept in memory only']);
  rmdirSync(`${path}.1`);
  events.append('info', 'test', null, 'again');
  await events.close();
  expect(readFileSync(path, 'utf8')).toMatch(/^\{"seq":5,.*\n$/);
});
