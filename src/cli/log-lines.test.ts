import { expect, test } from 'vitest';
import { logLine } from './log-lines.js';

test('a line has time, level, message, cause and fields, and nothing that commands the terminal', () => {
  const time = Date.parse('2026-01-02T03:04:05.678Z');
  const json = { level: 40, time, msg: 'QEMU said \u001b[2J', vm: 'web', pid: 7, err: { message: 'broken pipe' } };
  expect(logLine(JSON.stringify(json))).toMatch(
    /^\d\d:\d\d:05\.678 warn {2}QEMU said \?\[2J: broken pipe vm=web pid=7\n$/,
  );
  expect(logLine(JSON.stringify({ level: 50, time, msg: 'same', err: { message: 'same' } }))).toMatch(/ error same\n$/);
});
