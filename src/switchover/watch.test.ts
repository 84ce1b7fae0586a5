/** The watch against a primary that falls silent in every way. Time, QEMU's words and the guest's are the test's. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import type { QemuProcess } from '../qemu/process.js';
import type { QmpEvent } from '../qemu/qmp.js';
import { probeSchema } from '../vm/probe.js';
import type { ProbeOutcome } from './probe-call.js';
import { type Death, FailureWatch, longestWaitMs } from './watch.js';

const TICK_MS = 20;

/** A process of which the kernel really knows the state and the waiting for CPUs. */
let process_: ChildProcess;
beforeAll(() => {
  process_ = spawn('sleep', ['600']);
});
afterAll(() => process_.kill('SIGKILL'));

let nowMs: number;
beforeEach(() => {
  nowMs = 1000;
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
  vi.spyOn(process.hrtime, 'bigint').mockImplementation(() => BigInt(Math.round(nowMs * 1e6)));
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

/** Lets time pass as it does for a manager that runs. */
function pass(ms: number, each: () => void = () => {}): void {
  for (let passed = 0; passed < ms; passed += TICK_MS) {
    nowMs += TICK_MS;
    each();
    vi.advanceTimersByTime(TICK_MS);
  }
}

/** The manager's loop stands still for so long. */
function block(ms: number): void {
  nowMs += ms;
  vi.advanceTimersByTime(TICK_MS);
}

const loopTurns = () => new Promise((resolve) => setTimeout(resolve, 5));

interface Options {
  promoted?: boolean;
  canTakeOver?: boolean;
  hasDied?: boolean;
  probe?: () => Promise<ProbeOutcome>;
}

function watched(pausedTotalMs: () => number = () => 0, options: Options = {}) {
  let tellDeath!: (atNs: bigint) => void;
  let endMonitor!: (reason: unknown) => void;
  let answer!: () => void;
  const listeners = new Set<(event: QmpEvent) => void>();
  const asked: string[] = [];
  const agent = { beats: 0, last: null as { atNs: bigint } | null, bye: null as 'poweroff' | 'reboot' | null };
  const primary = {
    pid: process_.pid,
    agent,
    hasDied: options.hasDied ?? false,
    died: new Promise<bigint>((resolve) => {
      tellDeath = resolve;
    }),
    qmp: {
      closed: new Promise((resolve) => {
        endMonitor = resolve;
      }),
      onEvent: (listener: (event: QmpEvent) => void) => {
        listeners.add(listener);
        return () => listeners.delete(listener);
      },
      execute: (command: string) => {
        asked.push(command);
        return new Promise<void>((resolve) => {
          answer = resolve;
        });
      },
    },
  };
  const deaths: Death[] = [];
  const shutdowns: string[] = [];
  const suspicions: number[] = [];
  const hangs: string[] = [];
  const healths: string[] = [];
  const watch = new FailureWatch({
    primary: primary as unknown as QemuProcess,
    promoted: options.promoted ?? false,
    canTakeOver: () => options.canTakeOver ?? true,
    onHang: (evidence) => hangs.push(evidence),
    pausedTotalMs,
    onDeath: (death) => deaths.push(death),
    onShutdown: (how) => shutdowns.push(how),
    onSuspicion: (silentMs) => suspicions.push(silentMs),
    ...(options.probe === undefined
      ? {}
      : {
          probes: {
            declared: [probeSchema.parse({ check: { kind: 'tcp', port: 80 }, periodMs: 200, timeoutMs: 100 })],
            call: options.probe,
            onHealth: (_probe, health) => healths.push(health),
          },
        }),
  });
  const beat = () => {
    agent.beats++;
    agent.last = { atNs: process.hrtime.bigint() };
  };
  const say = (event: QmpEvent) => {
    for (const listener of [...listeners]) listener(event);
  };
  return {
    ...{ watch, agent, deaths, hangs, healths, shutdowns, suspicions, asked, beat, say },
    tellDeath: () => tellDeath(0n),
    endMonitor: () => endMonitor(null),
    answer: () => answer(),
    listeners,
  };
}

const causes = (deaths: Death[]) => deaths.map(({ cause }) => cause);

describe('certain signs', () => {
  test('the kernel’s word is a death', async () => {
    const vm = watched();
    vm.tellDeath();
    await loopTurns();
    expect(causes(vm.deaths)).toEqual(['process-died']);
    expect(vm.listeners.size).toBe(0);
  });

  test('the monitor’s end is a death', async () => {
    const vm = watched();
    vm.endMonitor();
    await loopTurns();
    expect(causes(vm.deaths)).toEqual(['monitor-ended']);
  });

  test('the monitor’s end, heard before the kernel’s word that is there already, is what the kernel says', async () => {
    const vm = watched(undefined, { hasDied: true });
    vm.endMonitor();
    await loopTurns();
    expect(causes(vm.deaths)).toEqual(['process-died']);
  });

  test.each([
    [{ event: 'SHUTDOWN', data: { guest: true, reason: 'guest-reset' } }],
    [{ event: 'SHUTDOWN', data: { guest: true, reason: 'guest-panic' } }],
    [{ event: 'GUEST_PANICKED', data: { action: 'pause' } }],
  ])('%j, which nobody announced, is a death by the guest’s own doing', (event) => {
    const vm = watched();
    vm.say(event);
    expect(causes(vm.deaths)).toEqual(['guest-reset']);
  });

  test('a guest that resets is told from a process that dies, however close they come', async () => {
    const vm = watched();
    vm.tellDeath();
    await Promise.resolve();
    vm.say({ event: 'SHUTDOWN', data: { guest: true, reason: 'guest-reset' } });
    await loopTurns();
    expect(causes(vm.deaths)).toEqual(['guest-reset']);
  });

  test('is told once', async () => {
    const vm = watched();
    vm.say({ event: 'GUEST_PANICKED' });
    vm.endMonitor();
    vm.tellDeath();
    await loopTurns();
    pass(5000);
    expect(vm.deaths).toHaveLength(1);
  });
});

describe('an end that the guest wanted', () => {
  test.each(['poweroff', 'reboot'] as const)('and announced is no failure: %s', async (bye) => {
    for (const sign of ['event', 'death', 'monitor'] as const) {
      const vm = watched();
      vm.agent.bye = bye;
      if (sign === 'event') vm.say({ event: 'SHUTDOWN', data: { guest: true, reason: 'guest-reset' } });
      if (sign === 'death') vm.tellDeath();
      if (sign === 'monitor') vm.endMonitor();
      await loopTurns();
      expect([vm.shutdowns, vm.deaths]).toEqual([[bye], []]);
    }
  });

  test('and did not announce is none either when it switches the power off: a panic never does', () => {
    const vm = watched();
    vm.say({ event: 'SHUTDOWN', data: { guest: true, reason: 'guest-shutdown' } });
    expect([vm.shutdowns, vm.deaths]).toEqual([['poweroff'], []]);
  });

  test('events that are not the guest’s say nothing', () => {
    const vm = watched();
    for (const event of [
      { event: 'SHUTDOWN', data: { guest: false, reason: 'host-qmp-quit' } },
      { event: 'SHUTDOWN' },
      { event: 'STOP' },
      { event: 'RESUME' },
    ])
      vm.say(event);
    expect([vm.shutdowns, vm.deaths]).toEqual([[], []]);
    vm.watch.close();
  });
});

describe('silence', () => {
  test('before the first beat says nothing', () => {
    const vm = watched();
    pass(60_000);
    expect([vm.deaths, vm.suspicions]).toEqual([[], []]);
    vm.watch.close();
  });

  test('is suspected, asked about once, and cleared by a beat', async () => {
    const vm = watched();
    vm.beat();
    pass(500, () => nowMs % 40 === 0 && vm.beat());
    expect(vm.suspicions).toEqual([]);
    pass(300);
    expect(vm.suspicions).toHaveLength(1);
    expect(vm.asked).toEqual(['query-status']);
    vm.answer();
    await loopTurns();
    vm.beat();
    pass(20);
    expect(vm.suspicions).toEqual([expect.any(Number), 0]);
    pass(100, vm.beat);
    expect(vm.deaths).toEqual([]);
    vm.watch.close();
  });

  test('of the guest alone is a hang only after long', async () => {
    const vm = watched();
    vm.beat();
    pass(TICK_MS);
    for (let silentMs = TICK_MS; silentMs < 1460; silentMs += TICK_MS) {
      pass(TICK_MS);
      if (vm.asked.length > 0) vm.answer();
      await Promise.resolve();
      expect(vm.deaths).toEqual([]);
    }
    for (let i = 0; i < 10 && vm.deaths.length === 0; i++) {
      pass(TICK_MS);
      vm.answer();
      await Promise.resolve();
    }
    expect(causes(vm.deaths)).toEqual(['guest-hung']);
  });

  test('of guest and monitor is a hang of QEMU', () => {
    const vm = watched();
    vm.beat();
    pass(TICK_MS);
    pass(360);
    expect(vm.deaths).toEqual([]);
    pass(100);
    expect(causes(vm.deaths)).toEqual(['qemu-hung']);
  });

  test('of a process that is stopped is a death as soon as it is suspect', async () => {
    process_.kill('SIGSTOP');
    while (!/^State:\tT/m.test(readFileSync(`/proc/${process_.pid}/status`, 'utf8'))) await loopTurns();
    const vm = watched();
    vm.beat();
    pass(TICK_MS);
    pass(140);
    expect(vm.deaths).toEqual([]);
    pass(100);
    expect(causes(vm.deaths)).toEqual(['process-stopped']);
    process_.kill('SIGCONT');
  });

  test('in which the manager itself stood still is none of the guest’s', () => {
    const vm = watched();
    vm.beat();
    pass(TICK_MS);
    for (let i = 0; i < 20; i++) {
      block(1000);
      pass(40);
      vm.beat();
      pass(TICK_MS);
    }
    expect([vm.deaths, vm.suspicions]).toEqual([[], []]);
    // Even a single block of a minute, and a stopped process does not change what the manager could not hear.
    block(60_000);
    expect(vm.deaths).toEqual([]);
    pass(200);
    expect(vm.suspicions).toHaveLength(1); // from here on it counts
    vm.watch.close();
  });

  test('of an epoch’s pause is excused, but not of a pause without end', () => {
    let pausedMs = 0;
    const vm = watched(() => pausedMs);
    vm.beat();
    pass(TICK_MS);
    pass(260, () => {
      pausedMs += TICK_MS;
    });
    expect(vm.suspicions).toEqual([]);
    pass(600, () => {
      pausedMs += TICK_MS;
    });
    expect(causes(vm.deaths)).toEqual(['qemu-hung']);
  });

  test('after close() tells nobody', async () => {
    const vm = watched();
    vm.beat();
    pass(TICK_MS);
    vm.watch.close();
    pass(5000);
    vm.say({ event: 'GUEST_PANICKED' });
    vm.tellDeath();
    vm.endMonitor();
    await loopTurns();
    expect([vm.deaths, vm.shutdowns, vm.suspicions]).toEqual([[], [], []]);
  });

  test('leaves a hang alone while nothing could take over, tells it once, and ends it when something can', () => {
    const options = { canTakeOver: false };
    const vm = watched(undefined, options);
    vm.beat();
    pass(4000);
    expect(vm.hangs).toHaveLength(1);
    expect(vm.deaths).toEqual([]);
    options.canTakeOver = true;
    pass(TICK_MS);
    expect(vm.deaths).toHaveLength(1);
    vm.watch.close();
  });

  test('expects beats of a promoted guest at once, and of a booting one only after its first', () => {
    const booting = watched();
    const promoted = watched(undefined, { promoted: true });
    pass(4000);
    expect(booting.deaths).toEqual([]);
    expect(promoted.deaths).toHaveLength(1);
    booting.watch.close();
  });
});

describe('excuses', () => {
  test('are never negative: a shadow made anew counts its pauses from 0', () => {
    let pausedMs = 5000;
    const vm = watched(() => pausedMs);
    vm.beat();
    pass(TICK_MS);
    pausedMs = 0;
    pass(160);
    expect([vm.deaths, vm.suspicions]).toEqual([[], []]);
  });

  test('of waiting for a CPU are of the thread that waits now, not of the one that has waited most', () => {
    const slept = (waitedMs: number, ranMs = 0) => ({ state: 'S', ranMs, waitedMs });
    const before = new Map([
      ['vcpu', slept(9000)],
      ['main', slept(100)],
    ]);
    expect(longestWaitMs(before, new Map([...before, ['main', slept(350)]]), 400)).toBe(250);
    expect(longestWaitMs(before, new Map([...before, ['new', slept(40)]]), 400)).toBe(40);
    expect(longestWaitMs(before, new Map(), 400)).toBe(0);
  });

  test('hold for a wait that is not over: one that wants to run or sits in the kernel, not for one that spins or sleeps', () => {
    const main = (state: string, ranMs: number) => new Map([['main', { state, ranMs, waitedMs: 7 }]]);
    expect(longestWaitMs(main('S', 50), main('R', 60), 400)).toBe(390);
    expect(longestWaitMs(main('S', 50), main('D', 50), 400)).toBe(400);
    expect(longestWaitMs(main('R', 50), main('R', 450), 400)).toBe(0);
    expect(longestWaitMs(main('R', 50), main('S', 60), 400)).toBe(0);
    expect(longestWaitMs(main('R', 50), main('T', 60), 400)).toBe(0);
  });
});

describe('probes', () => {
  const answers = () => {
    let outcome: ProbeOutcome | null = { kind: 'succeeded' };
    return {
      call: (): Promise<ProbeOutcome> => (outcome === null ? new Promise(() => {}) : Promise.resolve(outcome)),
      set: (next: ProbeOutcome | null) => {
        outcome = next;
      },
    };
  };
  /** As `pass`, with time for results to arrive, in a guest that beats. */
  async function live(vm: ReturnType<typeof watched>, ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += TICK_MS) {
      pass(TICK_MS, vm.beat);
      await Promise.resolve();
      await Promise.resolve();
    }
  }
  const refused: ProbeOutcome = { kind: 'failed', reason: 'refused' };

  test('that fail three times in a row are the guest’s failure, though it beats', async () => {
    const { call, set } = answers();
    const vm = watched(() => 0, { probe: call });
    await live(vm, 1000);
    set(refused);
    await live(vm, 380);
    expect([vm.healths, vm.deaths]).toEqual([['well', 'failing'], []]);
    await live(vm, 200);
    expect(vm.healths).toEqual(['well', 'failing', 'failed']);
    expect(vm.deaths).toEqual([
      {
        cause: 'probe-failed',
        evidence: 'the probe tcp:80 failed 3 times in a row: refused',
        decidedAtNs: expect.any(BigInt),
        wellAtMs: expect.any(Number),
      },
    ]);
  });

  test('that never succeeded say nothing', async () => {
    const vm = watched(() => 0, { probe: () => Promise.resolve(refused) });
    await live(vm, 5000);
    expect([vm.healths, vm.deaths, vm.watch.probes()[0]?.health]).toEqual([[], [], 'unproven']);
  });

  test('are told once while nothing could take over, and again after they were well', async () => {
    const { call, set } = answers();
    const vm = watched(() => 0, { probe: call, canTakeOver: false });
    await live(vm, 300);
    set(null);
    await live(vm, 3000);
    expect([vm.deaths, vm.hangs]).toEqual([[], [expect.stringContaining('no answer within 100 ms')]]);
    set({ kind: 'succeeded' });
    await live(vm, 500);
    set(refused);
    await live(vm, 1000);
    expect([vm.deaths, vm.hangs.length]).toEqual([[], 2]);
  });

  test('without an answer are excused by pauses and by a manager that stood still', async () => {
    const { call, set } = answers();
    let pausedMs = 0;
    const vm = watched(() => pausedMs, { probe: call });
    await live(vm, 300);
    set(null);
    for (let round = 0; round < 100; round++) {
      pausedMs += TICK_MS;
      await live(vm, TICK_MS);
    }
    expect(vm.healths).toEqual(['well']);
    block(2000);
    vm.beat();
    expect(vm.healths).toEqual(['well']);
    await live(vm, 200);
    expect(vm.healths).toEqual(['well', 'failing']);
  });
});
