import { expect, test } from 'vitest';
import type { Event } from '../vm/view.js';
import { eventLine, eventLines } from './events.js';

const event = (seq: number, level: Event['level'], type: string, vm: string | null, message: string): Event => ({
  seq,
  at: '2026-01-02T03:04:05.678Z',
  atNs: '1',
  level,
  type,
  vm,
  message,
  data: {},
});

test('a list is aligned to its widest, and warnings and failures are seen at its edge', () =>
  expect(
    eventLines([
      event(98, 'info', 'vm.running', 'web', 'booted'),
      event(99, 'warn', 'host.no-kvm', null, 'emulation'),
      event(100, 'error', 'failure.detected', 'database', 'it died'),
    ]).replace(/2026-01-0\d \d\d:/g, 'DAY HH:'),
  ).toBe(
    [
      '     98  DAY HH:04:05.678  web       vm.running        booted',
      '!    99  DAY HH:04:05.678  -         host.no-kvm       emulation',
      '!!  100  DAY HH:04:05.678  database  failure.detected  it died',
      '',
    ].join('\n'),
  ));

test('one that comes alone has room for most, and is one line whatever it says', () =>
  expect(eventLine(event(7, 'info', 'vm.failed', 'web', 'a\nb\u001b[2J')).replace(/2026-01-0\d \d\d:/, 'DAY HH:')).toBe(
    '        7  DAY HH:04:05.678  web       vm.failed            a?b?[2J\n',
  ));
