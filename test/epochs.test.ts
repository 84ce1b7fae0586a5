/** Epochs of a real guest under load, found by both ways of tracking, in a shadow image that no QEMU waits beside. */
import { readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { ShadowVmError } from '../src/errors.js';
import type { ShadowImage } from '../src/native/image.js';
import { EpochSource } from '../src/native/memory.js';
import { cutEpoch, endsProtection, lacksRoom, needsResync } from '../src/protect/epoch.js';
import { type CommittedEpoch, Protector } from '../src/protect/protector.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { readEpoch } from '../src/shadow/epochs.js';
import { MIB, pacingSchema } from '../src/vm/spec.js';
import { BareQemus, until } from './bare-qemu.js';
import { commit, differences, residentPages, SmallDisk, TestImages } from './test-image.js';

const RAM_BYTES = 192 * MIB;
const PACING = pacingSchema.parse({ maxLagMs: 100 });
/** The most that a guest without heartbeats may be ahead of what a rewind goes back to; src/protect/protector.ts. */
const UNCONFIRMED_MAX = 2;

const images = new TestImages();
let qemus: BareQemus;
let primary: QemuProcess;
beforeAll(async () => {
  qemus = await BareQemus.open();
  primary = await qemus.boot(RAM_BYTES);
  await run('shadowvm-guest memcheck 16 2000 & shadowvm-guest memwriter 16 8 &');
  await until('memcheck', () => /^memcheck i=/.test(primary.agent.last?.app ?? ''));
});
afterAll(async () => {
  await qemus.close();
  await images.close();
});

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

/** A primary that is paused through its monitor, and of which one thing goes wrong. */
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
    servesPauses: { value: false },
    ...(faults.saveDevices === undefined ? {} : { saveDevices: { value: faults.saveDevices } }),
  }) as QemuProcess;
}

const qmpError = (code: 'QMP_TIMEOUT' | 'QMP_ERROR') => new ShadowVmError(code, { attempted: 'x', reason: 'injected' });

describe.each(['write', 'checksum'] as const)('tracking by %s', (tracking) => {
  let source: EpochSource;
  let image: ShadowImage;
  beforeAll(async () => {
    image = await images.create(RAM_BYTES);
    source = sourceOf(primary, image);
    await source.sync();
  });
  afterAll(() => source.close());

  function sourceOf({ ram, control, pid }: QemuProcess, to: ShadowImage): EpochSource {
    return new EpochSource({ ram, control, pid, tracking, image: to.native });
  }

  /** An epoch whose guest stays stopped until the image was compared with it. @returns pages that differ */
  async function compareAfterEpoch() {
    const cut = await cutEpoch(primary, source, true);
    const result = await commit(source, cut.deviceState);
    const different = await differences(primary.ram, image);
    await primary.qmp.execute('cont');
    return { differences: different, cut, result };
  }

  test('after each epoch the image is what the guest was', async () => {
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
      changedPages += (await commit(source)).changedPages;
    }
    expect(changedPages).toBeGreaterThan(0);
    expect((await compareAfterEpoch()).differences).toBe(0);
  });

  test.runIf(tracking === 'write')(
    'what each quick epoch changes is left open for the next few, and not for ever',
    async () => {
      /** Of a guest that stands still, which writes nothing. @returns pages that were reported all the same */
      const reported = async () => {
        const { copiedPages } = await source.collect({ urgent: true });
        const { changedPages } = await commit(source);
        expect(changedPages).toBe(0);
        return copiedPages;
      };
      let left: number[] = [];
      // Epochs of a slow machine may not follow each other quickly enough.
      for (let attempt = 0; attempt < 5 && (left[0] ?? 0) === 0; attempt++) {
        for (let i = 0; i < 8; i++) {
          await cutEpoch(primary, source, false, { quiet: true });
          await commit(source);
        }
        await cutEpoch(primary, source, true);
        await commit(source);
        left = [];
        for (let i = 0; i < 6; i++) left.push(await reported());
        expect(await differences(primary.ram, image)).toBe(0);
        await primary.qmp.execute('cont');
      }
      expect(left[0]).toBeGreaterThan(0);
      expect(left.at(-1)).toBe(0);
      for (let i = 0; i < 8; i++) {
        await cutEpoch(primary, source, false, { quiet: true });
        await commit(source);
        if (i % 3 === 2) expect((await compareAfterEpoch()).differences).toBe(0);
      }
    },
  );

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

  test('a scrub finds what no scan reports, and the next epoch repairs it', async () => {
    await compareAfterEpoch();
    // Written through a mapping that is not QEMU's, as a fault of the memory would; where the kernel keeps its code.
    const page = 4096;
    const before = Buffer.alloc(1);
    readSync(primary.ram.fd, before, 0, 1, 0);
    writeSync(primary.ram.fd, Buffer.from([before[0]! ^ 1]), 0, 1, 0);
    const { comparedPages, nextPage } = await source.scrub(0, RAM_BYTES / page);
    expect([comparedPages > 0, nextPage]).toEqual([true, 0]);
    const { differences: left, cut } = await compareAfterEpoch();
    expect(left).toBe(0);
    if (tracking === 'write') expect(cut.repairedPages).toBe(1);
    writeSync(primary.ram.fd, before, 0, 1, 0);
    await source.scrub(0, RAM_BYTES / page);
    expect((await compareAfterEpoch()).differences).toBe(0);
  });

  test('what was rewound is in the next one, and the standby goes back as well', async () => {
    const waiting = await qemus.launch({ spec: { name: 'bare', ramBytes: RAM_BYTES, vcpus: 1 }, lazy: true });
    const resident = { ram: waiting.ram, control: waiting.control, share: 1 };
    const epochs: number[] = [];
    for (let i = 0; i < 4; i++) {
      await sleep(30);
      const { deviceState } = await cutEpoch(primary, source);
      epochs.push((await commit(source, deviceState, resident)).epoch);
    }
    const { present } = await residentPages(resident, image);
    expect(present.length).toBeGreaterThan(1000);
    const [, to, gone] = epochs as [number, number, number];
    await source.rewind(to, resident);
    expect(image.describe()).toMatchObject({ headEpoch: to, lastEpoch: epochs.at(-1) });
    // What differs is absent, and comes from the image when it is needed.
    const after = await residentPages(resident, image);
    expect(after.stale).toEqual([]);
    expect(after.present.length).toBeLessThan(present.length);
    expect(after.present.length).toBeGreaterThan(present.length / 2);
    await expect(source.rewind(gone, resident)).rejects.toMatchObject({ code: 'ERR_NO_EPOCH' });
    // Writes since the epochs that were given up are not all that differs.
    await expect(source.collect()).rejects.toMatchObject({ code: 'ERR_NOT_SYNCED' });
    await source.sync();
    expect((await compareAfterEpoch()).differences).toBe(0);
    await waiting.dispose();
  });

  test('a disk that is full in the middle of a pass costs that epoch only', async () => {
    const disk = new SmallDisk(join(images.folder, `full-${tracking}`), 384 * MIB);
    const copy = await images.create(RAM_BYTES, join(disk.folder, 'a'));
    const epochs = sourceOf(primary, copy);
    try {
      await epochs.sync();
      const cut = await cutEpoch(primary, epochs);
      await commit(epochs, cut.deviceState);
      disk.fill(256 * 1024);
      await run('head -c 16777216 /dev/urandom > /dev/shm/new');
      for (let i = 0; i < 3; i++) {
        const error: unknown = await cutEpoch(primary, epochs).catch((thrown: unknown) => thrown);
        expect(error).toMatchObject({ code: 'EPOCH_FAILED', cause: { code: 'ENOSPC' } });
        expect([lacksRoom(error), needsResync(error), endsProtection(error)]).toEqual([true, false, false]);
        expect(copy.describe().headEpoch).toBe(1);
        await expectGuestRuns();
      }
      disk.makeRoom();
      await cutEpoch(primary, epochs, true);
      expect((await commit(epochs)).changedPages).toBeGreaterThan(4096 * 0.9);
      expect(await differences(primary.ram, copy)).toBe(0);
      await primary.qmp.execute('cont');
      await run('rm /dev/shm/new');
    } finally {
      epochs.close();
      await copy.close();
      disk.close();
      await source.sync(); // what the other one heard of, this one has not
    }
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
    const epochs = sourceOf(waiting, await images.create(waiting.ram.bytes));
    await epochs.sync();
    const cutting = cutEpoch(waiting, epochs).catch((error: unknown) => error);
    waiting.freeze(); // its monitor would never answer
    setTimeout(() => waiting.qmp.destroy(), 30);
    const error = await cutting;
    expect(error).toMatchObject({ code: 'QMP_CLOSED' });
    expect(endsProtection(error)).toBe(true);
    epochs.close();
    await waiting.dispose();
  });

  describe('the protector', () => {
    let copy: ShadowImage;
    const protectors: Protector[] = [];
    afterEach(async () => {
      vi.useRealTimers();
      for (const each of protectors.splice(0)) await each.close();
      await expectGuestRuns();
    });

    async function protect(of: QemuProcess = primary, from: CommittedEpoch | null = null, folder?: string) {
      const heard = { ready: 0, aborted: [] as unknown[], lost: [] as unknown[] };
      if (from === null) copy = await images.create(of.ram.bytes, folder);
      const protector = new Protector({
        primary: of,
        image: copy,
        generation: 0,
        tracking,
        pacing: PACING,
        durability: 'interval',
        from,
        followed: false,
        resident: () => null,
        output: () => null,
        events: {
          ready: () => heard.ready++,
          aborted: (error) => heard.aborted.push(error),
          repaired: () => {},
          lost: (error) => heard.lost.push(error),
        },
      });
      protectors.push(protector);
      return { protector, heard, epoch: () => protector.committed?.epoch ?? 0 };
    }

    test('is ready with the first epoch, goes on by itself, and hands over everything', async () => {
      const { protector, heard, epoch } = await protect();
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
      expect(await differences(primary.ram, copy)).toBe(0);
      expect(before).toBeGreaterThan(0);
      await primary.qmp.execute('cont');
      // A hand-over that did not come about.
      const handedOver = epoch();
      protector.start();
      await until('epochs again', () => epoch() > handedOver + 1);
      expect(heard.ready).toBe(1);
    });

    test('halts in any phase: what is committed is whole, and nothing moves any more', async () => {
      const { protector, heard, epoch } = await protect();
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
      const { protector, epoch } = await protect();
      protector.start();
      await until('epochs', () => epoch() >= 2);
      await protector.hold(60_000);
      const held = epoch();
      await sleep(300);
      expect(epoch()).toBe(held);
      await protector.hold(0);
      await until('epochs again', () => epoch() > held);
    });

    test('an image of another size is refused at once', async () => {
      const { ram, control, pid } = primary;
      const { native } = await images.create(RAM_BYTES / 2);
      expect(() => new EpochSource({ ram, control, pid, tracking, image: native })).toThrow(
        expect.objectContaining({ code: 'ERR_SIZE' }),
      );
    });

    test('begun anew on the same image goes on from its epochs, and is ready at once', async () => {
      const first = await protect();
      first.protector.start();
      await until('epochs', () => first.epoch() >= 3);
      await first.protector.close();
      const from = await readEpoch(copy, first.epoch(), 'test');
      const { protector, heard, epoch } = await protect(primary, from);
      expect(epoch()).toBe(from.epoch);
      protector.start();
      await until('epochs again', () => epoch() >= from.epoch + 3);
      await protector.handOver();
      expect(await differences(primary.ram, copy)).toBe(0);
      await primary.qmp.execute('cont');
      expect(heard).toEqual({ ready: 0, aborted: [], lost: [] });
    });

    test('some failures are told and got over; eight in a row are a loss', async () => {
      let fail = false;
      const of = faulty({
        execute: (command) => (fail && command === 'stop' ? Promise.reject(qmpError('QMP_ERROR')) : null),
      });
      const { protector, heard, epoch } = await protect(of);
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

    test('without room for an epoch goes on trying for as long as it takes', async () => {
      const disk = new SmallDisk(join(images.folder, `room-${tracking}`), 384 * MIB);
      const { protector, heard, epoch } = await protect(primary, null, join(disk.folder, 'a'));
      try {
        protector.start();
        await until('an epoch', () => epoch() >= 1);
        await protector.hold(60_000);
        disk.fill(64 * 1024);
        await protector.hold(0);
        await run('head -c 16777216 /dev/urandom > /dev/shm/new');
        // More in a row than of any other failure.
        await until('aborted epochs', () => heard.aborted.length > 8 || heard.lost.length > 0);
        for (const error of heard.aborted) expect(lacksRoom(error)).toBe(true);
        const before = epoch();
        disk.makeRoom();
        await until('epochs again', () => epoch() > before + 1);
        await protector.handOver();
        expect(await differences(primary.ram, copy)).toBe(0);
        await primary.qmp.execute('cont');
        expect(heard.lost).toEqual([]);
        await run('rm /dev/shm/new');
      } finally {
        await protector.close();
        await copy.close();
        disk.close();
      }
    });

    test('of a guest that falls silent keeps what it was before: at most two epochs are taken back', async () => {
      const { protector, epoch } = await protect();
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
      const confirmed = protector.newestConfirmed()!;
      expect(confirmed).toBeLessThan(silent);
      expect(confirmed).toBeGreaterThanOrEqual(silent - UNCONFIRMED_MAX);
      await protector.rewind(await readEpoch(copy, confirmed, 'test'));
      expect(epoch()).toBe(confirmed);
      expect(protector.committed!.cutAtNs < lastBeat()).toBe(true);
      expect(protector.newestConfirmed()).toBe(confirmed);
      expect(copy.epochs().at(-1)!.epoch).toBe(confirmed);
    });

    test('of a VM that dies says nothing: that is the detector’s business', async () => {
      const waiting = await qemus.launch();
      const { protector, heard } = await protect(waiting);
      protector.start();
      await until('the first epochs', () => (protector.committed?.epoch ?? 0) >= 1);
      waiting.kill();
      await waiting.exited;
      await sleep(100);
      expect(heard).toEqual({ ready: 1, aborted: [], lost: [] });
      await protector.halt();
      expect(protector.committed).not.toBeNull();
      await waiting.dispose();
    });
  });
});

test('the image wakes up: a QEMU that waited without RAM goes on where the guest was, and all of it is there', async () => {
  const shadow = await qemus.launch({ spec: { name: 'bare', ramBytes: RAM_BYTES, vcpus: 1 }, lazy: true });
  const image = await images.create(RAM_BYTES);
  const { ram, control, pid } = primary;
  const source = new EpochSource({ ram, control, pid, tracking: 'write', image: image.native });
  await source.sync();
  await commit(source, (await cutEpoch(primary, source)).deviceState);
  const cut = await cutEpoch(primary, source, true);
  await commit(source, cut.deviceState);
  source.close();
  const before = memcheck(primary);
  primary.kill();
  const troubles: string[] = [];
  shadow.fillFrom(image.native, '', (page, why) => troubles.push(`${page}: ${why}`));
  await shadow.loadDevices(cut.deviceState, 10_000);
  await shadow.qmp.execute('cont');
  await until('the first heartbeat of the shadow', () => shadow.agent.beats > 0);
  expect(memcheck(shadow).writes).toBeGreaterThanOrEqual(before.writes);
  const at = memcheck(shadow).writes;
  // Every page is looked at twice.
  await until('two rounds of memcheck', () => memcheck(shadow).writes > at + 2 * 16 * 256);
  expect(memcheck(shadow).bad).toBe(0);
  expect(await shadow.filled).toBe(true);
  expect(troubles).toEqual([]);
  expect(shadow.pager!.needed().length).toBeGreaterThan(0);
  // It can be protected from here on by what it writes from now on.
  const next = new EpochSource({ ...pick(shadow), tracking: 'write', image: image.native });
  await next.follow();
  const first = await cutEpoch(shadow, next, true);
  const { epoch, changedPages } = await commit(next, first.deviceState);
  expect(epoch).toBe(3);
  expect(changedPages).toBeLessThan(RAM_BYTES / 4096 / 4);
  expect(await differences(shadow.ram, image)).toBe(0);
  next.close();
});

const pick = ({ ram, control, pid }: QemuProcess) => ({ ram, control, pid });
