import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { progressLine } from './progress.js';

let written: string;
const output = (isTTY: boolean) => ({
  isTTY,
  columns: 40,
  write: (text: string | Uint8Array) => {
    written += String(text);
    return true;
  },
});

beforeEach(() => {
  written = '';
  vi.useFakeTimers({ toFake: ['setTimeout', 'setInterval', 'clearTimeout', 'clearInterval', 'performance'] });
});
afterEach(() => void vi.useRealTimers());

test('without a terminal each step is one line, told once', () => {
  const line = progressLine(output(false), false);
  line.report({ message: 'fetching', done: 0.1 });
  line.report({ message: 'fetching', done: 0.2 });
  line.report({ message: 'packing' });
  line.end();
  expect(written).toBe('fetching\npacking\n');
});

test('on a terminal one line is rewritten with percents and seconds, cut to its width, and taken away', () => {
  const line = progressLine(output(true), false);
  line.report({ message: 'fetching', done: 0.256 });
  expect(written).toBe('');
  vi.advanceTimersByTime(500);
  expect(written).toBe('\r\u001b[K 25%  fetching (0 s)');
  vi.advanceTimersByTime(600);
  expect(written).toContain('fetching (1 s)');
  written = '';
  line.report({ message: 'x'.repeat(100) });
  expect(written).toBe(`\r\u001b[K${'x'.repeat(39)}`);
  written = '';
  line.end();
  expect(written).toBe('\r\u001b[K');
  vi.advanceTimersByTime(5000);
  expect(written).toBe('\r\u001b[K');
});

test('what is over at once shows nothing on a terminal', () => {
  const line = progressLine(output(true), false);
  line.report({ message: 'quick' });
  line.end();
  vi.advanceTimersByTime(5000);
  expect(written).toBe('');
});

test('for programs each report is a JSON line', () => {
  const line = progressLine(output(true), true);
  line.report({ message: 'fetching', done: 0.5 });
  line.end();
  expect(JSON.parse(written)).toEqual({ progress: { message: 'fetching', done: 0.5 } });
});
