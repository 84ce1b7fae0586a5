/** Epochs of a real guest under load, found by both ways of tracking. Its copy needs no QEMU: it is plain memory. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { ShadowVmError } from '../src/errors.js';
import { EpochSource, GuestRam } from '../src/native/memory.js';
import { cutEpoch, endsProtection, needsResync } from '../src/protect/epoch.js';
import { Protector } from '../src/protect/protector.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { MIB, pacingSchema } from '../src/vm/spec.js';
import { BareQemus, until } from './bare-qemu.js';

const RAM_BYTES = 192 * MIB;
const PACING = pacingSchema.parse({ maxLagMs: 100 });
/** The most that a guest without heartbeats may be ahead of what a rewind goes back to; src/protect/protector.ts. */
const UNCONFIRMED_MAX = 2;

let qemus: BareQemus;
let primary: QemuProcess;
beforeAll(async () => {
  qemus = await BareQemus.open();
  primary = await qemus.boot(RAM_BYTES);
  await run('shadowvm-guest memcheck 16 2000 & shadowvm-guest memwriter 16 8 &');
  await until('memcheck', () => /^memcheck i=/.test(primary.agent.last?.app ?? ''));
});
afterAll(() => qemus.close());

async function run(command: string): Promise<void> {
  expect(await primary.agent.exec(command)).toBe(0);
}

/** How far memcheck is, and what it found wrong. */
function memcheck(qemu: QemuProcess): { writes: number; bad: number } {
  const [, writes, bad] = /^memcheck i=(\d+) rounds=\d+ bad=(\d+)$/.exec(qemu.agent.last?.app ?? '') ?? [];
  return { writes: Number(writes), bad: Number(bad) };
}

async function expectGuestRuns(): Promise<void> {
  const { beats } = primary.agent;
  await until('heartbeats', () => primary.agent.beats > beats + 1);
  expect((await primary.qmp.execute('query-status')).running).toBe(true);
}

/** A primary of which one thing goes wrong. */
function faulty(faults: {
  execute?: (command: string) => Promise<unknown> | null;
  saveDevices?: () => Promise<object>;
}) {
  const qmp = Object.create(primary.qmp, {
    execute: {
      value: (command: 'stop', ...rest: [undefined, object?]) =>
        faults.execute?.(command) ?? primary.qmp.execute(command, ...rest),
    },
  });
  return Object.create(primary, {
    qmp: { value: qmp },
    ...(faults.saveDevices === undefined ? {} : { saveDevices: { value: faults.saveDevices } }),
  }) as QemuProcess;
}

const qmpError = (code: 'QMP_TIMEOUT' | 'QMP_ERROR') => new ShadowVmError(code, { attempted: 'x', reason: 'injected' });

describe.each(['write', 'checksum'] as const)('tracking by %s', (tracking) => {
  let source: EpochSource;
  let target: GuestRam;
  beforeAll(async () => {
    source = new EpochSource({ ram: primary.ram, control: primary.control, pid: primary.pid, tracking });
    target = new GuestRam('copy', RAM_BYTES);
    await source.sync(target);
  });
  afterAll(() => {
    source.close();
    target.close();
  });

  /** An epoch whose guest stays stopped until its copy was compared. @returns pages that differ */
  async function compareAfterEpoch(undoEpochs = 0) {
    const cut = await cutEpoch(primary, source, true);
    const result = await source.commit(target, undoEpochs);
    const differences = primary.ram.differences(target);
    await primary.qmp.execute('cont');
    return { differences, cut, result };
  }

  test('after each epoch the copy is what the guest was', async () => {
    for (let i = 0; i < 8; i++) {
      const { differences, cut, result } = await compareAfterEpoch();
      expect(differences).toBe(0);
      expect(cut.deviceState.length).toBeGreaterThan(1000);
      expect(result.changedPages).toBeGreaterThan(0);
      await sleep(30);
    }
    await expectGuestRuns();
  });

  test('epochs that do not stop it for long keep up with a guest that writes', async () => {
    let changedPages = 0;
    for (let i = 0; i < 25; i++) {
      await cutEpoch(primary, source);
      changedPages += (await source.commit(target, 0)).changedPages;
    }
    expect(changedPages).toBeGreaterThan(0);
    expect((await compareAfterEpoch()).differences).toBe(0);
  });

  test('pages that were written with what they held are dropped', async () => {
    await run('yes shadow | head -c 8388608 > /dev/shm/same');
    await compareAfterEpoch();
    await run('dd if=/dev/shm/same of=/dev/shm/same conv=notrunc bs=65536 2> /dev/null');
    const { differences, cut, result } = await compareAfterEpoch();
    expect(differences).toBe(0);
    const samePages = 8 * 256;
    if (tracking === 'write') {
      expect(cut.copiedPages).toBeGreaterThan(samePages * 0.9);
      expect(result.droppedPages).toBeGreaterThan(samePages * 0.9);
    }
    // The load of the other programs changes at most a few hundred in the time that the rewriting takes.
    expect(result.changedPages).toBeLessThan(cut.scannedPages);
    await run('rm /dev/shm/same');
  });

  test('memory that the guest frees and takes again is followed', async () => {
    for (const command of [
      'head -c 16777216 /dev/urandom > /dev/shm/new',
      'head -c 8388608 /dev/zero > /dev/shm/new',
      'rm /dev/shm/new',
    ]) {
      await run(command);
      expect((await compareAfterEpoch()).differences).toBe(0);
    }
  });

  test('what an aborted epoch had collected is in the next one', async () => {
    for (let i = 0; i < 5; i++) {
      await source.collect();
      await sleep(20);
      if (i % 2 === 0) await source.collect();
      await source.abort();
    }
    expect((await compareAfterEpoch()).differences).toBe(0);
  });

  test('what was rewound is in the next one', async () => {
    for (let i = 0; i < 3; i++) {
      await compareAfterEpoch(2);
      await sleep(30);
    }
    await source.rewind(target, 2);
    await expect(source.rewind(target, 1)).rejects.toMatchObject({ code: 'ERR_NO_UNDO' });
    expect((await compareAfterEpoch()).differences).toBe(0);
  });

  test.each([
    ['a stop that fails', faultyStop('QMP_ERROR')],
    ['a stop that is late', faultyStop('QMP_TIMEOUT')],
    [
      'a device state that can not be saved',
      () => faulty({ saveDevices: () => Promise.reject(qmpError('QMP_ERROR')) }),
    ],
  ])('%s gives the epoch up; the guest runs on, and the next epoch catches up', async (_what, primaryWith) => {
    for (const keepStopped of [false, true]) {
      const error: unknown = await cutEpoch(primaryWith(), source, keepStopped).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({ reason: 'injected' });
      expect([endsProtection(error), needsResync(error)]).toEqual([false, false]);
      await expectGuestRuns();
    }
    expect((await compareAfterEpoch()).differences).toBe(0);
  });

  function faultyStop(code: 'QMP_TIMEOUT' | 'QMP_ERROR') {
    return () =>
      faulty({
        // Late: QEMU stops the guest all the same, after we have given up waiting.
        execute: (command) =>
          command !== 'stop'
            ? null
            : code === 'QMP_ERROR'
              ? Promise.reject(qmpError(code))
              : primary.qmp.execute('stop').then(() => Promise.reject(qmpError(code))),
      });
  }

  test('a monitor that is cut off in the middle ends the epoch at once, and protection with it', async () => {
    const waiting = await qemus.launch();
    const copy = new GuestRam('copy', waiting.ram.bytes);
    const epochs = new EpochSource({ ram: waiting.ram, control: waiting.control, pid: waiting.pid, tracking });
    await epochs.sync(copy);
    const cutting = cutEpoch(waiting, epochs).catch((error: unknown) => error);
    waiting.freeze(); // its monitor would never answer
    setTimeout(() => waiting.qmp.destroy(), 30);
    const error = await cutting;
    expect(error).toMatchObject({ code: 'QMP_CLOSED' });
    expect(endsProtection(error)).toBe(true);
    epochs.close();
    copy.close();
    await waiting.dispose();
  });

  describe('the protector', () => {
    let copy: GuestRam;
    const protectors: Protector[] = [];
    afterEach(async () => {
      vi.useRealTimers();
      for (const each of protectors.splice(0)) await each.close();
      copy.close();
      await expectGuestRuns();
    });

    function protect(of: QemuProcess = primary, ramBytes = RAM_BYTES) {
      const heard = { ready: 0, aborted: [] as unknown[], lost: [] as unknown[] };
      copy = new GuestRam('copy', ramBytes);
      const protector = new Protector(of, copy, tracking, PACING, {
        ready: () => heard.ready++,
        aborted: (error) => heard.aborted.push(error),
        lost: (error) => heard.lost.push(error),
      });
      protectors.push(protector);
      return { protector, heard, epoch: () => protector.committed?.epoch ?? 0 };
    }

    test('is ready with the first epoch, goes on by itself, and hands over everything', async () => {
      const { protector, heard, epoch } = protect();
      expect([protector.committed, protector.lagMs()]).toEqual([null, null]);
      protector.start();
      await until('the first epoch', () => epoch() >= 1);
      await until('more epochs', () => epoch() >= 8);
      expect(heard).toEqual({ ready: 1, aborted: [], lost: [] });
      expect(protector.stats()).toMatchObject({ epochsAborted: 0, pauseMs: { count: expect.any(Number) } });
      expect(protector.stats().pauseMs.count).toBeGreaterThanOrEqual(8);
      const before = memcheck(primary).writes;
      await protector.handOver();
      expect((await primary.qmp.execute('query-status')).running).toBe(false);
      expect(primary.ram.differences(copy)).toBe(0);
      expect(before).toBeGreaterThan(0);
      await primary.qmp.execute('cont');
      // A hand-over that did not come about.
      const handedOver = epoch();
      protector.start();
      await until('epochs again', () => epoch() > handedOver + 1);
      expect(heard.ready).toBe(1);
    });

    test('halts in any phase: what is committed is whole, and nothing moves any more', async () => {
      const { protector, heard, epoch } = protect();
      await protector.halt(); // before it began
      for (const delayMs of [0, 1, 5, 30, 80, 130, 200, 250, 270, 290]) {
        protector.start();
        await sleep(delayMs);
        const halts = [protector.halt(), protector.halt()];
        await Promise.all(halts);
        const [atHalt, pauses] = [epoch(), protector.stats().pauseMs.count];
        await sleep(30);
        expect([epoch(), protector.stats().pauseMs.count, protector.pausedSinceMs]).toEqual([atHalt, pauses, null]);
        expect(heard.lost).toEqual([]);
      }
      protector.start();
      await until('an epoch', () => epoch() >= 1);
    });

    test('held, cuts no epoch', async () => {
      const { protector, epoch } = protect();
      protector.start();
      await until('epochs', () => epoch() >= 2);
      await protector.hold(60_000);
      const held = epoch();
      await sleep(300);
      expect(epoch()).toBe(held);
      await protector.hold(0);
      await until('epochs again', () => epoch() > held);
    });

    test('a copy of another size is lost at once', async () => {
      const { protector, heard } = protect(primary, RAM_BYTES / 2);
      protector.start();
      await until('the loss', () => heard.lost.length > 0);
      expect(heard.lost[0]).toMatchObject({ code: 'ERR_SIZE' });
      await sleep(50);
      expect(heard).toMatchObject({ ready: 0, lost: { length: 1 } });
    });

    test('some failures are told and got over; eight in a row are a loss', async () => {
      let fail = false;
      const of = faulty({
        execute: (command) => (fail && command === 'stop' ? Promise.reject(qmpError('QMP_ERROR')) : null),
      });
      const { protector, heard, epoch } = protect(of);
      protector.start();
      await until('an epoch', () => epoch() >= 1);
      fail = true;
      await until('an aborted epoch', () => heard.aborted.length >= 2);
      fail = false;
      const before = epoch();
      await until('epochs again', () => epoch() > before);
      expect([heard.lost, protector.stats().epochsAborted]).toEqual([[], heard.aborted.length]);
      heard.aborted.length = 0;
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
      fail = true;
      while (heard.lost.length === 0) {
        await vi.advanceTimersByTimeAsync(4000);
        for (let turns = 0; turns < 50; turns++) await new Promise((resolve) => setImmediate(resolve));
      }
      expect([heard.aborted.length, heard.lost.length]).toEqual([7, 1]);
    });

    test('of a guest that falls silent keeps what it was before: at most two epochs are taken back', async () => {
      const { protector, epoch } = protect();
      protector.start();
      await until('epochs', () => epoch() >= 4);
      // The agent alone is stopped: the guest writes on, as one does that hangs in some other way.
      const agent = `$(ps | sed -n 's/^ *\\([0-9]*\\) .*shadowvm-guest agent$/\\1/p' | head -1)`;
      await run(`agent=${agent}; (sleep 0.2; kill -STOP $agent; sleep 2; kill -CONT $agent) &`);
      const lastBeat = () => primary.agent.last?.atNs ?? 0n;
      await until('silence', () => process.hrtime.bigint() - lastBeat() > 500_000_000n);
      await sleep(300);
      const silent = epoch();
      await sleep(300);
      expect(epoch()).toBe(silent);
      await protector.halt();
      const taken = await protector.rewindToConfirmed();
      expect(taken).toBeGreaterThan(0);
      expect(taken).toBeLessThanOrEqual(UNCONFIRMED_MAX);
      expect(epoch()).toBe(silent - taken);
      expect(protector.committed!.cutAtNs < lastBeat()).toBe(true);
      expect(await protector.rewindToConfirmed()).toBe(0);
      // The heartbeats come back, and with them the epochs.
      protector.start();
      await until('epochs again', () => epoch() > silent);
      await protector.handOver();
      expect(primary.ram.differences(copy)).toBe(0);
      await primary.qmp.execute('cont');
    });

    test('of a VM that dies says nothing: that is the detector’s business', async () => {
      const waiting = await qemus.launch();
      copy = new GuestRam('copy', waiting.ram.bytes);
      const heard: string[] = [];
      const protector = new Protector(waiting, copy, tracking, PACING, {
        ready: () => heard.push('ready'),
        aborted: () => heard.push('aborted'),
        lost: () => heard.push('lost'),
      });
      protectors.push(protector);
      protector.start();
      await until('the first epochs', () => (protector.committed?.epoch ?? 0) >= 1);
      waiting.kill();
      await waiting.exited;
      await sleep(100);
      expect(heard).toEqual(['ready']);
      await protector.halt();
      expect(protector.committed).not.toBeNull();
      await waiting.dispose();
    });
  });
});

test('a copy wakes up: with its device state in a QEMU that waited, the guest goes on where it was', async () => {
  const shadow = await qemus.launch({ spec: { name: 'bare', ramBytes: RAM_BYTES, vcpus: 1 } });
  const protector = new Protector(primary, shadow.ram, 'write', PACING, {
    ready: () => {},
    aborted: () => {},
    lost: () => {},
  });
  protector.start();
  await until('epochs', () => (protector.committed?.epoch ?? 0) >= 5);
  await protector.handOver();
  const before = memcheck(primary);
  primary.kill();
  await shadow.loadDevices(protector.committed!.deviceState, 10_000);
  await shadow.qmp.execute('cont');
  await until('the first heartbeat of the shadow', () => shadow.agent.beats > 0);
  expect(memcheck(shadow).writes).toBeGreaterThanOrEqual(before.writes);
  const at = memcheck(shadow).writes;
  // Every page is looked at twice.
  await until('two rounds of memcheck', () => memcheck(shadow).writes > at + 2 * 16 * 256);
  expect(memcheck(shadow).bad).toBe(0);
  await protector.close();
});
