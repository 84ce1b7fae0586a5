import { expect, test } from 'vitest';
import { MIB, vmSpecSchema } from './spec.js';

const messages = (more: object): string[] =>
  vmSpecSchema
    .safeParse({ name: 'web', ...more })
    .error?.issues.map(({ path, message }) => `${path.join('.')}: ${message}`) ?? [];

const when = (metric: string, above: number, heldMs = 0) => ({
  shadow: { kind: 'when', triggers: [{ metric, above, heldMs }] },
});

const RAM = 'ramBytes: a VM has 67108864 to 68719476736 bytes of RAM (64 MiB to 64 GiB), in whole MiB';
const VCPUS = 'vcpus: a VM has 1 to 8 vCPUs';

test.each([
  ['too little RAM', { ramBytes: 63 * MIB }, RAM],
  ['too much RAM', { ramBytes: 65 * 1024 * MIB }, RAM],
  ['half a MiB', { ramBytes: 64.5 * MIB }, RAM],
  ['RAM that is no number', { ramBytes: '256M' }, RAM],
  ['no vCPU', { vcpus: 0 }, VCPUS],
  ['too many vCPUs', { vcpus: 9 }, VCPUS],
  ['half a vCPU', { vcpus: 1.5 }, VCPUS],
  [
    'more CPU than there is',
    when('cpu', 101),
    'shadow.triggers.0.above: a cpu trigger is at most 100, which is all vCPUs of the VM busy',
  ],
  [
    'more memory than there is',
    when('memory', 100.5),
    'shadow.triggers.0.above: a memory trigger is at most 100, which is all of the RAM',
  ],
  ['a trigger that always holds', when('network', 0), 'shadow.triggers.0.above: a trigger is above 0'],
  [
    'a trigger held for days',
    when('cpu', 50, 1e9),
    'shadow.triggers.0.heldMs: a trigger is held for 0 to 3600000 ms, which is an hour',
  ],
  ['no trigger', { shadow: { kind: 'when', triggers: [] } }, 'shadow.triggers: a rule has a trigger'],
  ['too short a lag', { pacing: { maxLagMs: 1 } }, 'pacing.maxLagMs: the lag wished for is 20 to 60000 ms'],
  [
    'paused all the time',
    { pacing: { maxPausedShare: 1 } },
    'pacing.maxPausedShare: the share of time paused is above 0 and at most 0.5',
  ],
  [
    'no CPU for epochs',
    { pacing: { cpuBudget: 0 } },
    'pacing.cpuBudget: the CPU budget is a share of one host CPU, above 0 and at most 1',
  ],
  ['a port beyond all', { publish: [{ hostPort: 70_000, guestPort: 80 }] }, 'publish.0.hostPort: a port is 1 to 65535'],
])('%s', (_, more, message) => expect(messages(more)).toEqual([message]));

test('what is at a bound is within it', () => {
  for (const ramBytes of [64 * MIB, 64 * 1024 * MIB]) expect(messages({ ramBytes })).toEqual([]);
  for (const vcpus of [1, 8]) expect(messages({ vcpus })).toEqual([]);
  // Traffic has no bound of its own: hundred is a percentage only where it is one.
  for (const trigger of [when('cpu', 100), when('memory', 100), when('network', 1e9)])
    expect(messages(trigger)).toEqual([]);
});
