/** An epoch source over a plain memory that no QEMU has: checksums find what changed, and a model says what is right. */
import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { NATIVE_BUILD_DIR } from '../src/native/index.js';
import { EpochSource, GuestRam, QemuControl } from '../src/native/memory.js';
import { failure, rejection, thrownBy } from './failures.js';
import {
  checksumSource,
  commit,
  differences,
  presentPages,
  residentPages,
  SmallDisk,
  TestImages,
} from './test-image.js';

const PAGE = 4096;
/** Of a standby's RAM; native/epoch.cc. */
const FILLED_BY_A_COMMIT = 1024;
const MIB = 1024 * 1024;

const images = new TestImages();
afterAll(() => images.close());

/** Damages the middle of the largest file: a block of pages. */
function flipByte(folder: string): void {
  const files = readdirSync(folder).map((name) => join(folder, name));
  const [largest] = files.sort((a, b) => statSync(b).size - statSync(a).size);
  const fd = openSync(largest!, 'r+');
  const at = Math.floor(statSync(largest!).size / 2);
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, at);
  writeSync(fd, Buffer.from([byte[0]! ^ 0xff]), 0, 1, at);
  closeSync(fd);
}

function copyMemory(from: GuestRam, to: GuestRam): void {
  const content = Buffer.alloc(from.bytes);
  readSync(from.fd, content, 0, content.length, 0);
  writeSync(to.fd, content, 0, content.length, 0);
}

describe('epochs of a plain memory', () => {
  test('take turns', async () => {
    const ram = new GuestRam('a', 32 * MIB);
    writeSync(ram.fd, Buffer.alloc(32 * MIB, 7), 0, 32 * MIB, 0);
    const source = checksumSource(ram, await images.create(32 * MIB));
    const uses = [
      () => source.sync(),
      () => source.follow(),
      () => source.collect(),
      () => commit(source),
      () => source.rewind(1, null),
      () => source.scrub(0, 1),
      () => source.abort(),
    ];
    const first = source.sync();
    for (const use of uses) expect(await rejection(use())).toMatchObject(failure('ERR_BUSY'));
    expect(thrownBy(() => source.close())).toMatchObject(failure('ERR_BUSY'));
    // Under an operation that goes on, the memory may be closed.
    ram.close();
    expect(await first).toMatchObject({ scannedPages: (32 * MIB) / PAGE });
    source.close();
    source.close();
    for (const use of uses) expect(await rejection(use())).toMatchObject(failure('ERR_CLOSED'));
  });

  test('need a comparison first, and an image of the same size', async () => {
    const ram = new GuestRam('a', 2 * PAGE);
    const source = checksumSource(ram, await images.create(2 * PAGE));
    expect(await rejection(source.collect())).toMatchObject(failure('ERR_NOT_SYNCED'));
    expect(await rejection(commit(source))).toMatchObject(failure('ERR_NOT_SYNCED'));
    expect(await rejection(source.scrub(0, 1))).toMatchObject(failure('ERR_NOT_SYNCED'));
    expect(await rejection(source.rewind(1, null))).toMatchObject(failure('ERR_NO_EPOCH'));
    await source.abort();
    for (const pages of [1, 3]) {
      const other = await images.create(pages * PAGE);
      expect(thrownBy(() => checksumSource(ram, other))).toMatchObject(failure('ERR_SIZE'));
      await source.sync();
      const [resident, control] = [new GuestRam('c', pages * PAGE), new QemuControl(pages * PAGE)];
      const waiting = { ram: resident, control, share: 1 };
      expect(await rejection(commit(source, undefined, waiting))).toMatchObject(failure('ERR_SIZE'));
      for (const each of [resident, control]) each.close();
      for (const use of [() => commit(source, undefined, waiting), () => source.rewind(1, waiting)])
        expect(await rejection(use())).toMatchObject(failure('ERR_CLOSED'));
    }
    source.close();
    ram.close();
  });

  test('a memory too large to keep books of is an error, not an end of the process', () => {
    const script = `
      const { GuestRam, QemuControl, EpochSource, ShadowImage } = require(${JSON.stringify(`${NATIVE_BUILD_DIR}shadowvm.node`)});
      const bytes = 8 * 1024 ** 3, ram = new GuestRam('a', bytes), control = new QemuControl(bytes), image = new ShadowImage();
      image.create(process.argv[1], { vm: 'test', ramBytes: bytes }).then(() => {
        const { execFileSync } = require('node:child_process'), { readFileSync } = require('node:fs');
        for (const moreMiB of [2, 100]) {
          const taken = Number(/VmSize:\\s+(\\d+)/.exec(readFileSync('/proc/self/status'))[1]) * 1024;
          execFileSync('prlimit', ['--pid', process.pid, '--as=' + (taken + moreMiB * 1024 ** 2) + ':']);
          try {
            new EpochSource({ ram, control, pid: process.pid, tracking: 'checksum', image });
          } catch ({ code, syscall }) {
            console.log(code, syscall);
          }
        }
      });
    `;
    const { status, signal, stdout, stderr } = spawnSync(
      process.execPath,
      ['-e', script, join(images.folder, 'too-large')],
      { encoding: 'utf8' },
    );
    expect({ status, signal, stdout, stderr }).toEqual({
      status: 0,
      signal: null,
      stdout: 'ENOMEM malloc\nENOMEM mmap\n',
      stderr: '',
    });
  });

  test('an image that is closed takes no epoch, and loses none that it has', async () => {
    const ram = new GuestRam('a', 8 * PAGE);
    const image = await images.create(8 * PAGE);
    const source = checksumSource(ram, image);
    await source.sync();
    await commit(source);
    await image.close();
    expect(thrownBy(() => checksumSource(ram, image))).toMatchObject(failure('ERR_CLOSED'));
    for (const each of [source, ram]) each.close();
  });

  test('a hole that opens in the primary is zeros in the image', async () => {
    const ram = new GuestRam('a', 8 * PAGE);
    writeSync(ram.fd, Buffer.alloc(8 * PAGE, 5), 0, 8 * PAGE, 0);
    const image = await images.create(8 * PAGE);
    const source = checksumSource(ram, image);
    await source.sync();
    expect(await commit(source)).toMatchObject({ epoch: 1, changedPages: 8, zeroPages: 0 });
    const path = `/proc/${process.pid}/fd/${ram.fd}`;
    execFileSync('fallocate', ['--punch-hole', '--offset', `${2 * PAGE}`, '--length', `${3 * PAGE}`, path]);
    await source.collect();
    expect(await commit(source)).toMatchObject({ epoch: 2, changedPages: 3, zeroPages: 3, droppedPages: 0 });
    expect([await differences(ram, image), ram.residentBytes()]).toEqual([0, 5 * PAGE]);
    await source.rewind(1, null);
    expect(await differences(ram, image)).toBe(3);
    // What was given up is found again, by a comparison.
    expect(await rejection(source.collect())).toMatchObject(failure('ERR_NOT_SYNCED'));
    await source.sync();
    expect(await commit(source)).toMatchObject({ epoch: 3, changedPages: 3 });
    expect(await differences(ram, image)).toBe(0);
    for (const each of [source, ram]) each.close();
  });

  test.each([
    [false, 'one thread'],
    [true, 'two threads'],
  ])(
    'what the staging area does not hold goes into the record at once, and the last content counts (%s: %s)',
    async (holdsOutput) => {
      const bytes = 16 * MIB;
      const ram = new GuestRam('a', bytes);
      const image = await images.create(bytes);
      const source = checksumSource(ram, image);
      await source.sync();
      await commit(source);
      for (let round = 0; round < 3; round++) {
        const before = Buffer.alloc(bytes);
        readSync(ram.fd, before, 0, bytes, 0);
        writeSync(ram.fd, randomBytes(bytes / 2), 0, bytes / 2, 0);
        await source.collect();
        writeSync(ram.fd, randomBytes(bytes / 4), 0, bytes / 4, (bytes / 8) * round);
        await source.collect();
        if (round === 1) await source.abort();
        // Some of it as it was at the last commit: recorded already, so it has to be recorded again.
        if (round === 2) writeSync(ram.fd, await image.readPage(7), 0, PAGE, 7 * PAGE);
        const { stagedPages } = await source.collect({ urgent: true });
        const { changedPages, droppedPages } = await commit(source, undefined, null, { holdsOutput });
        expect(await differences(ram, image)).toBe(0);
        // A page counts once, however often it was recorded, and not at all when it is what it was.
        const after = Buffer.alloc(bytes);
        readSync(ram.fd, after, 0, bytes, 0);
        let changed = 0;
        for (let at = 0; at < bytes; at += PAGE)
          if (before.compare(after, at, at + PAGE, at, at + PAGE) !== 0) changed++;
        expect([changedPages, droppedPages]).toEqual([changed, stagedPages - changed]);
        expect(image.epochs().at(-1)!.changedPages).toBe(changed);
      }
      const { indexBytes } = await image.stats();
      expect(indexBytes).toBeLessThanOrEqual(bytes * 0.005);
      expect((await image.verify()).damagedPages).toEqual([]);
      await expect.poll(packThreads).toBe(holdsOutput ? 1 : 0);
      for (const each of [source, ram]) each.close();
      await image.close();
      await expect.poll(packThreads).toBe(0); // the kernel lists a thread for a moment after it was joined
    },
  );

  const packThreads = () =>
    readdirSync('/proc/self/task').filter((tid) => {
      try {
        return readFileSync(`/proc/self/task/${tid}/comm`, 'utf8').trim() === 'shadowvm-pack';
      } catch {
        return false; // it ended since it was listed
      }
    }).length;

  test('holds leave with their epoch when a sign of life came after it, and not else', async () => {
    const ram = new GuestRam('a', 8 * PAGE);
    const control = new QemuControl(8 * PAGE);
    const { native } = await images.create(8 * PAGE);
    const source = new EpochSource({ ram, control, pid: process.pid, tracking: 'checksum', image: native });
    await source.sync();
    const release = async () =>
      (await commit(source, undefined, null, { holdsOutput: true, releases: 0b101 })).released;
    expect([await release(), control.releaseHolds(0)]).toEqual([false, true]);
    source.noteSign(process.hrtime.bigint()); // of before the cut
    expect([await release(), control.releaseHolds(0)]).toEqual([false, true]);
    const waits = release();
    const { headEpoch } = native.describe();
    await sleep(5); // the word is waited for, and the epoch does not count before it
    expect(native.describe().headEpoch).toBe(headEpoch);
    source.noteSign(process.hrtime.bigint());
    expect(await waits).toBe(true);
    expect(native.describe().headEpoch).toBe(headEpoch + 1);
    expect(control.unreleasedHolds()).toBe(0b101); // nobody is there who would
    source.noteSign(process.hrtime.bigint() + 10n ** 9n);
    expect((await commit(source)).released).toBe(false); // nothing was to leave
    expect([await release(), control.releaseHolds(0)]).toEqual([true, false]);
    for (const each of [source, ram, control]) each.close();
  });

  test.each([1, 0.25])(
    'a standby of which %d is to be resident is filled, kept fresh, and taken back',
    async (share) => {
      const bytes = 8 * MIB;
      const pages = bytes / PAGE;
      const [ram, resident] = [new GuestRam('a', bytes), new GuestRam('b', bytes)];
      const control = new QemuControl(bytes);
      control.makeLazy();
      const waiting = { ram: resident, control, share };
      const image = await images.create(bytes);
      const source = checksumSource(ram, image);
      writeSync(ram.fd, randomBytes(bytes), 0, bytes, 0);
      await source.sync();
      for (let epoch = 1; epoch <= 4; epoch++) {
        writeSync(ram.fd, randomBytes(40 * PAGE), 0, 40 * PAGE, 30 * epoch * PAGE);
        writeSync(ram.fd, Buffer.alloc(PAGE), 0, PAGE, 9 * PAGE);
        await source.collect();
        await commit(source, undefined, waiting);
        await expectResident(epoch * FILLED_BY_A_COMMIT);
      }
      // What is not the same any more is absent: 40 pages of two or three epochs.
      await source.rewind(2, waiting);
      await expectResident(pages - 3 * 40);
      for (const each of [source, ram, resident, control]) each.close();

      async function expectResident(filled: number): Promise<void> {
        const { present, stale } = await residentPages(waiting, image);
        expect(stale).toEqual([]);
        expect(present.length).toBeGreaterThanOrEqual(Math.min(filled, Math.floor(share * pages)) - 3 * 40 - 16);
        expect(present.length).toBeLessThanOrEqual(Math.ceil(share * pages) + 16);
      }
    },
  );

  test('a standby is filled and kept fresh while more changes than the staging area holds', async () => {
    const bytes = 16 * MIB;
    const [ram, resident] = [new GuestRam('a', bytes), new GuestRam('b', bytes)];
    const control = new QemuControl(bytes);
    control.makeLazy();
    const waiting = { ram: resident, control, share: 1 };
    const image = await images.create(bytes);
    const source = checksumSource(ram, image);
    writeSync(ram.fd, randomBytes(bytes), 0, bytes, 0);
    await source.sync();
    for (let epoch = 1; epoch <= 3; epoch++) {
      await source.collect();
      await commit(source, undefined, waiting);
      expect((await residentPages(waiting, image)).stale).toEqual([]);
      writeSync(ram.fd, randomBytes(bytes / 2), 0, bytes / 2, (bytes / 8) * epoch);
      writeSync(ram.fd, Buffer.alloc(MIB), 0, MIB, epoch * MIB);
      execFileSync('fallocate', [
        ...['--punch-hole', '--offset', `${10 * MIB}`, '--length', `${epoch * MIB}`],
        `/proc/${process.pid}/fd/${ram.fd}`,
      ]);
    }
    // Nothing changes any more: each commit fills a part.
    for (let filled = 0; filled <= bytes / PAGE; filled += FILLED_BY_A_COMMIT) {
      await source.collect();
      await commit(source, undefined, waiting);
    }
    const { present, stale } = await residentPages(waiting, image);
    expect([present.length, stale]).toEqual([bytes / PAGE, []]);
    for (const each of [source, ram, resident, control]) each.close();
  });

  test('a damaged page of the image ends neither the filling of a standby nor the epochs', async () => {
    const bytes = 4 * MIB;
    const [ram, resident] = [new GuestRam('a', bytes), new GuestRam('b', bytes)];
    const control = new QemuControl(bytes);
    control.makeLazy();
    const waiting = { ram: resident, control, share: 1 };
    const folder = join(images.folder, 'damaged');
    const image = await images.create(bytes, folder);
    const source = checksumSource(ram, image);
    writeSync(ram.fd, randomBytes(bytes), 0, bytes, 0);
    await source.sync();
    await commit(source);
    flipByte(folder);
    await source.collect();
    await commit(source, undefined, waiting);
    const { damagedPages } = await image.verify();
    expect(damagedPages.length).toBeGreaterThan(0);
    expect(damagedPages.length).toBeLessThanOrEqual(16);
    const there = presentPages(waiting).filter((page) => damagedPages.includes(page));
    expect(there).toEqual([]);
    // With its next content it is whole again, and in the standby.
    for (const page of damagedPages) writeSync(ram.fd, randomBytes(PAGE), 0, PAGE, page * PAGE);
    await source.collect();
    await commit(source, undefined, waiting);
    const { present, stale } = await residentPages(waiting, image);
    expect([present.length, stale, await differences(ram, image)]).toEqual([bytes / PAGE, [], 0]);
    for (const each of [source, ram, resident, control]) each.close();
  });

  test('an epoch that finds no room leaves the image as it was, and the next one has its pages', async () => {
    const bytes = 16 * MIB;
    const disk = new SmallDisk(join(images.folder, 'disk'), 48 * MIB);
    const image = await images.create(bytes, join(disk.folder, 'a'));
    const ram = new GuestRam('a', bytes);
    const source = checksumSource(ram, image);
    try {
      writeSync(ram.fd, randomBytes(bytes / 4), 0, bytes / 4, 0);
      await source.sync();
      await commit(source);
      const whole = new GuestRam('b', bytes);
      await image.fill(whole);
      // What is not staged is compressed in the pass before the pause, or not before the commit.
      for (const urgent of [true, false]) {
        disk.fill(64 * 1024);
        for (let attempt = 0; attempt < 3; attempt++) {
          writeSync(ram.fd, randomBytes(MIB), 0, MIB, attempt * MIB);
          const holdsOutput = attempt % 2 === 1;
          const work = source.collect({ urgent }).then(() => commit(source, undefined, null, { holdsOutput }));
          expect(await rejection(work)).toMatchObject(failure('ENOSPC'));
          expect([image.describe().headEpoch, await differences(whole, image)]).toEqual([urgent ? 1 : 2, 0]);
        }
        disk.makeRoom();
        await source.collect({ urgent });
        expect(await commit(source)).toMatchObject({ epoch: urgent ? 2 : 3, changedPages: (3 * MIB) / PAGE });
        expect(await differences(ram, image)).toBe(0);
        copyMemory(ram, whole);
      }
      whole.close();
    } finally {
      source.close();
      await image.close();
      disk.close();
      ram.close();
    }
  });

  test('do in any order what a plain model does', { timeout: 120_000 }, async () => {
    const PAGES = 6;
    const operation = fc.oneof(
      {
        weight: 6,
        arbitrary: fc.record({ op: fc.constant('write' as const), page: fc.nat(PAGES - 1), byte: fc.nat(3) }),
      },
      { weight: 4, arbitrary: fc.record({ op: fc.constant('collect' as const) }) },
      { weight: 4, arbitrary: fc.record({ op: fc.constant('commit' as const) }) },
      { weight: 2, arbitrary: fc.record({ op: fc.constant('rewind' as const), back: fc.nat(3) }) },
      { weight: 1, arbitrary: fc.record({ op: fc.constant('abort' as const) }) },
      { weight: 1, arbitrary: fc.record({ op: fc.constant('sync' as const) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 40 }), async (operations) => {
        const ram = new GuestRam('a', PAGES * PAGE);
        const image = await images.create(PAGES * PAGE);
        const source = checksumSource(ram, image);
        // Each page is one byte repeated: 0 stands for zeros and holes alike.
        const model = { source: new Array<number>(PAGES).fill(0), head: new Array<number>(PAGES).fill(0) };
        const epochs: { epoch: number; head: number[] }[] = [];
        let staged = new Map<number, number>();
        let givenUp = new Set<number>(); // staged when the epoch was given up: the next one has them, changed or not
        let clean = true; // nothing was written or taken back since the last collect
        const collected = () =>
          model.source.forEach((byte, page) => {
            const differs = byte !== (staged.get(page) ?? model.head[page]);
            if (differs || givenUp.has(page)) staged.set(page, byte);
          });
        const giveUp = () => {
          for (const page of staged.keys()) givenUp.add(page);
          staged = new Map();
          clean = false;
        };
        const compared = () => {
          staged = new Map();
          givenUp = new Set();
          collected();
          clean = true;
        };
        await source.sync();
        try {
          for (const step of operations) {
            switch (step.op) {
              case 'write':
                writeSync(ram.fd, Buffer.alloc(PAGE, step.byte), 0, PAGE, step.page * PAGE);
                model.source[step.page] = step.byte;
                clean = false;
                continue;
              case 'collect':
                collected();
                givenUp.clear();
                clean = true;
                expect((await source.collect()).stagedPages).toBe(staged.size);
                continue;
              case 'commit': {
                const before = [...model.head];
                for (const [page, byte] of staged) model.head[page] = byte;
                const changed = model.head.filter((byte, page) => byte !== before[page]).length;
                const result = await commit(source);
                expect(result).toMatchObject({ changedPages: changed, droppedPages: staged.size - changed });
                epochs.push({ epoch: result.epoch, head: [...model.head] });
                staged = new Map();
                if (clean) expect(await differences(ram, image)).toBe(0);
                break;
              }
              case 'rewind': {
                const target = epochs.at(-1 - step.back);
                if (target === undefined) {
                  expect(await rejection(source.rewind(1_000_000, null))).toMatchObject(failure('ERR_NO_EPOCH'));
                  await source.abort();
                  giveUp();
                  break;
                }
                await source.rewind(target.epoch, null);
                epochs.splice(epochs.indexOf(target) + 1);
                model.head = [...target.head];
                await source.sync();
                compared();
                break;
              }
              case 'abort':
                await source.abort();
                giveUp();
                break;
              case 'sync':
                await source.sync();
                compared();
            }
            for (let page = 0; page < PAGES; page++)
              expect((await image.readPage(page)).equals(Buffer.alloc(PAGE, model.head[page]))).toBe(true);
          }
        } finally {
          for (const each of [source, ram]) each.close();
        }
      }),
      { numRuns: 200 },
    );
  });
});
