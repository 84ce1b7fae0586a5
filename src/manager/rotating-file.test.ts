import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { RotatingFile } from './rotating-file.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'svm-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const unexpected = (error: Error) => {
  throw error;
};

test('lines come out whole and in order across bursts', async () => {
  const path = join(dir, 'a.log');
  const file = await RotatingFile.open(path, { onError: unexpected });
  let expected = '';
  for (let i = 0; i < 1000; i++) {
    const line = `line ${i}\n`;
    file.write(line);
    expected += line;
    if (i % 100 === 0) await file.flush();
  }
  await file.close();
  expect(readFileSync(path, 'utf8')).toBe(expected);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

test('at most two files of the given size are kept, and no line is lost between them', async () => {
  const path = join(dir, 'a.log');
  const file = await RotatingFile.open(path, { fileBytesMax: 1000, onError: unexpected });
  for (let i = 0; i < 300; i++) {
    file.write(`${String(i).padStart(9, '0')}\n`);
    if (i % 7 === 0) await file.flush();
  }
  await file.close();
  const kept = (readFileSync(`${path}.1`, 'utf8') + readFileSync(path, 'utf8')).trimEnd().split('\n').map(Number);
  expect(statSync(path).size).toBeLessThanOrEqual(1000);
  expect(statSync(`${path}.1`).size).toBeLessThanOrEqual(1000);
  expect(kept.at(-1)).toBe(299);
  expect(kept).toEqual(kept.map((_, i) => kept[0]! + i));
  expect(kept.length).toBeGreaterThan(100);
});

test('the torn end is cut before the first new line', async () => {
  const path = join(dir, 'a.log');
  const first = await RotatingFile.open(path, { onError: unexpected });
  first.write('whole\nto');
  await first.close();
  const second = await RotatingFile.open(path, { onError: unexpected }, 'whole\n'.length);
  second.write('new\n');
  await second.close();
  expect(readFileSync(path, 'utf8')).toBe('whole\nnew\n');
});

test('a full disk is told once, costs lines and never throws', async () => {
  const errors: Error[] = [];
  const file = await RotatingFile.open('/dev/full', { onError: (error) => errors.push(error) });
  for (let i = 0; i < 3; i++) {
    file.write('lost\n');
    await file.flush();
  }
  await file.close();
  expect(errors).toHaveLength(1);
  expect(errors[0]).toMatchObject({ code: 'ENOSPC' });
  expect(file).toMatchObject({ errors: 3, linesLost: 3 });
});

test('what waits for the disk is bounded', async () => {
  const errors: Error[] = [];
  const path = join(dir, 'a.log');
  const file = await RotatingFile.open(path, { pendingBytesMax: 100, onError: (error) => errors.push(error) });
  for (let i = 0; i < 50; i++) file.write('0123456789\n');
  expect(file.linesLost).toBe(41);
  expect(errors).toHaveLength(1);
  await file.flush();
  file.write('after\n');
  await file.close();
  expect(readFileSync(path, 'utf8')).toBe('0123456789\n'.repeat(9) + 'after\n');
});

test('the last words of a dying process get out at once', async () => {
  const path = join(dir, 'a.log');
  const file = await RotatingFile.open(path, { onError: unexpected });
  file.write('last words\n');
  file.flushSync();
  expect(readFileSync(path, 'utf8')).toBe('last words\n');
  await file.close();
  file.write('too late\n');
  expect(file.linesLost).toBe(1);
});
