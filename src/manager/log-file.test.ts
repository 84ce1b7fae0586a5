import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readLogPart } from './log-file.js';

let dir: string;
let path: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'svm-'));
  path = join(dir, 'console.log');
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

test('the end of a log, and then what came after it', async () => {
  writeFileSync(path, 'boot\nlogin:\n');
  expect(await readLogPart(path, { maxBytes: 7 })).toEqual({ text: 'login:\n', nextByte: 12 });
  expect(await readLogPart(path, { maxBytes: 100, fromByte: 12 })).toEqual({ text: '', nextByte: 12 });
  appendFileSync(path, 'root\n');
  expect(await readLogPart(path, { maxBytes: 3, fromByte: 12 })).toEqual({ text: 'roo', nextByte: 15 });
  expect(await readLogPart(path, { maxBytes: 3, fromByte: 15 })).toEqual({ text: 't\n', nextByte: 17 });
});

test('a log that is not there is empty, and one that became shorter begins anew', async () => {
  expect(await readLogPart(join(dir, 'none'), { maxBytes: 9 })).toEqual({ text: '', nextByte: 0 });
  writeFileSync(path, 'anew');
  expect(await readLogPart(path, { maxBytes: 9, fromByte: 12 })).toEqual({ text: 'anew', nextByte: 4 });
});

test('bytes that are no UTF-8 are passed on as marks of that, and hold nobody up', async () => {
  writeFileSync(path, Buffer.from([0x61, 0xff, 0x80, 0x80, 0x80, 0x80, 0xc3]));
  const first = await readLogPart(path, { maxBytes: 100, fromByte: 0 });
  expect(first).toEqual({ text: 'a\ufffd\ufffd\ufffd\ufffd\ufffd', nextByte: 6 });
  expect(await readLogPart(path, { maxBytes: 100, fromByte: 6 })).toEqual({ text: '\ufffd', nextByte: 7 });
});

test('read in pieces while it grows in pieces, it is what was written', () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(9), fc.integer({ min: 4, max: 9 }))),
      fc.string({ unit: 'grapheme-composite' }),
      async (steps, text) => {
        const bytes = Buffer.from(text);
        writeFileSync(path, '');
        let [written, read, next] = [0, '', 0];
        const readOn = async (maxBytes: number) => {
          const part = await readLogPart(path, { maxBytes, fromByte: next });
          read += part.text;
          next = part.nextByte;
        };
        for (const [grow, maxBytes] of steps) {
          appendFileSync(path, bytes.subarray(written, written + grow));
          written += grow;
          // A lone piece of a character is not waited for; there is more than one byte at a time in these.
          if (next + 4 <= written) await readOn(maxBytes);
        }
        appendFileSync(path, bytes.subarray(written));
        while (next < bytes.length) await readOn(64);
        expect(read).toBe(text);
      },
    ),
    { numRuns: 50 },
  ));
