/** The shadow image on real files: every page of every kept epoch against a model, through aborts, crashes and damage. */
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { type EpochMeta, measureAppend, ShadowImage } from '../src/native/image.js';
import { GuestRam } from '../src/native/memory.js';

const PAGE = 4096;
const PAGES = 64;
const RAM_BYTES = PAGES * PAGE;

const folders: string[] = [];
const opened: ShadowImage[] = [];
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'shadowvm-image-'));
  folders.push(folder);
});
afterAll(async () => {
  for (const image of opened) await image.close();
  for (const each of folders) rmSync(each, { recursive: true, force: true });
});

const failure = (code: string) => ({ code, syscall: expect.stringMatching(/./) });
const rejection = (promise: Promise<unknown>) =>
  promise.then(
    () => new Error('it did not reject'),
    (error: unknown) => error,
  );

/** What a page can look like: nothing, text that compresses, noise that does not. */
function content(kind: number, seed: number): Buffer {
  if (kind === 0) return Buffer.alloc(PAGE);
  if (kind === 1) return Buffer.from(`page ${seed} `.repeat(PAGE).slice(0, PAGE));
  const bytes = Buffer.alloc(PAGE);
  let state = seed * 2654435761 + 1;
  for (let i = 0; i < PAGE; i += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes.writeUInt32LE((state ^ (state >>> 13)) >>> 0, i);
  }
  return bytes;
}

const meta = (epoch: number, parent: number): EpochMeta => ({
  epoch,
  parent,
  generation: 1,
  cutAtWallMs: 1000 * epoch,
  cutAtMonotonicNs: 2n ** 60n + BigInt(epoch),
});
const device = (epoch: number) => Buffer.from(`device state of epoch ${epoch}. `.repeat(50));

/** A memory that is written page by page and stored as epochs, and what each epoch must read as. */
class Guest {
  readonly ram = new GuestRam('image-test', RAM_BYTES);
  readonly epochs = new Map<number, Buffer>();

  write(page: number, bytes: Buffer): void {
    writeSync(this.ram.fd, bytes, 0, PAGE, page * PAGE);
  }

  all(): Buffer {
    const bytes = Buffer.alloc(RAM_BYTES);
    readFileSync(`/proc/self/fd/${this.ram.fd}`).copy(bytes);
    return bytes;
  }

  set(all: Buffer): void {
    writeSync(this.ram.fd, all, 0, RAM_BYTES, 0);
  }

  async commit(image: ShadowImage): Promise<number> {
    const { headEpoch, lastEpoch } = image.describe();
    const epoch = lastEpoch + 1;
    await image.append(meta(epoch, headEpoch), device(epoch), this.ram);
    this.epochs.set(epoch, this.all());
    return epoch;
  }
}

async function create(options: { base?: ShadowImage; segmentBytes?: number; name?: string } = {}) {
  const { base, segmentBytes, name = 'a' } = options;
  const image = await ShadowImage.create(join(folder, name), { vm: 'vm', ramBytes: RAM_BYTES, base, segmentBytes });
  opened.push(image);
  return image;
}

async function reopen(path: string, base?: ShadowImage) {
  const result = await ShadowImage.open(path, base);
  opened.push(result.image);
  return result;
}

async function headOf(image: ShadowImage): Promise<Buffer> {
  const pages: Buffer[] = [];
  for (let page = 0; page < PAGES; page++) pages.push(await image.readPage(page));
  return Buffer.concat(pages);
}

describe('one image', () => {
  test('gives back zeros, text and noise, device states and times, also after it was closed', async () => {
    const image = await create();
    const guest = new Guest();
    for (let page = 0; page < PAGES; page++) guest.write(page, content(page % 3, page));
    const result = await guest.commit(image);
    guest.write(1, content(0, 0));
    guest.write(2, content(1, 77));
    await guest.commit(image);
    expect(result).toBe(1);
    expect(image.epochs().map((e) => [e.epoch, e.parent, e.cutAtMonotonicNs, e.changedPages, e.durable])).toEqual([
      [1, 0, 2n ** 60n + 1n, 42, false],
      [2, 1, 2n ** 60n + 2n, 2, false],
    ]);
    await image.flush();
    expect(image.epochs().every((e) => e.durable)).toBe(true);
    await image.close();
    const { image: again, report } = await reopen(join(folder, 'a'));
    expect(report).toEqual({ headEpoch: 2, lostEpochs: 0, cutBytes: 0, removedFiles: 0, words: '' });
    expect((await headOf(again)).equals(guest.all())).toBe(true);
    expect((await again.deviceState(1)).equals(device(1))).toBe(true);
    await again.rewind(1);
    expect((await headOf(again)).equals(guest.epochs.get(1)!)).toBe(true);
    expect(await rejection(again.rewind(2))).toMatchObject(failure('ERR_NO_EPOCH'));
    expect(await rejection(again.deviceState(2))).toMatchObject(failure('ERR_NO_EPOCH'));
    expect(again.describe()).toMatchObject({ vm: 'vm', headEpoch: 1, lastEpoch: 2, ramBytes: RAM_BYTES, baseId: '' });
  });

  test('stores what did not change only once, and text compressed', async () => {
    const image = await create();
    const guest = new Guest();
    for (let page = 0; page < PAGES; page++) guest.write(page, content(1, page));
    await guest.commit(image);
    const again = await image.append(meta(2, 1), Buffer.alloc(0), guest.ram);
    expect(again).toMatchObject({ changedPages: 0, droppedPages: PAGES });
    expect(again.storedBytes).toBeLessThan(512);
    expect((await image.stats()).bytesOnDisk).toBeLessThan(RAM_BYTES / 10);
  });

  test('tells what storing alone costs', async () => {
    const image = await create();
    const guest = new Guest();
    for (let page = 0; page < PAGES; page++) guest.write(page, content(1, page));
    const cost = measureAppend(image, guest.ram, device(1));
    expect(cost.changedPages).toBe(PAGES);
    expect(cost.cpuMs).toBeGreaterThan(0);
    expect(cost.storedBytes).toBe(image.epochs()[0]!.storedBytes);
    expect((await headOf(image)).equals(guest.all())).toBe(true);
  });

  test('an epoch must build on the head and have a higher number than any before', async () => {
    const image = await create();
    const guest = new Guest();
    guest.write(3, content(1, 3));
    await guest.commit(image);
    for (const [epoch, parent] of [
      [1, 1],
      [2, 0],
      [3, 2],
    ] as const)
      expect(await rejection(image.append(meta(epoch, parent), device(1), guest.ram))).toMatchObject(
        failure('ERR_EPOCH_ORDER'),
      );
    await guest.commit(image);
    await image.rewind(1);
    expect(await rejection(image.append(meta(2, 1), device(1), guest.ram))).toMatchObject(failure('ERR_EPOCH_ORDER'));
    expect(await guest.commit(image)).toBe(3);
  });

  test('is filled newest pages first, up to a share', async () => {
    const image = await create();
    const guest = new Guest();
    for (let page = 0; page < 48; page++) guest.write(page, content(2, page));
    await guest.commit(image);
    for (let page = 40; page < 48; page++) guest.write(page, content(2, page + 100));
    await guest.commit(image);
    const [some, all] = [new GuestRam('some', RAM_BYTES), new GuestRam('all', RAM_BYTES)];
    expect(await image.fill(some, 8 / 48)).toBe(8);
    expect(some.residentBytes()).toBe(8 * PAGE);
    const got = readFileSync(`/proc/self/fd/${some.fd}`);
    expect(got.subarray(40 * PAGE, 48 * PAGE).equals(guest.all().subarray(40 * PAGE, 48 * PAGE))).toBe(true);
    expect(await image.fill(all)).toBe(48);
    expect(all.differences(guest.ram)).toBe(0);
  });

  test('belongs to one process at a time, and is not made over another', async () => {
    const image = await create();
    expect(await rejection(ShadowImage.open(join(folder, 'a')))).toMatchObject(failure('ERR_IMAGE_IN_USE'));
    await image.close();
    expect(await rejection(create())).toMatchObject(failure('ERR_IMAGE_EXISTS'));
    expect(await rejection(ShadowImage.open(join(folder, 'none')))).toMatchObject(failure('ERR_IMAGE_NOT_FOUND'));
    expect(await rejection(ShadowImage.open(folder))).toMatchObject(failure('ERR_IMAGE_NOT_FOUND'));
    expect((await reopen(join(folder, 'a'))).report.headEpoch).toBe(0);
  });
});

describe('a base', () => {
  async function based() {
    const golden = await create({ name: 'golden' });
    const guest = new Guest();
    for (let page = 0; page < 32; page++) guest.write(page, content(2, page));
    await guest.commit(golden);
    await golden.pack({ path: join(folder, 'base.fold'), label: 'golden' });
    await golden.close();
    const { image: base } = await reopen(join(folder, 'base.fold'));
    return { base, guest };
  }

  test('its pages cost nothing, and come back when they are written again', async () => {
    const { base, guest } = await based();
    expect(base.describe()).toMatchObject({ label: 'golden', headEpoch: 1 });
    const image = await create({ base });
    guest.write(0, content(0, 0));
    guest.write(40, content(1, 40));
    expect(await image.append(meta(1, 0), device(1), guest.ram)).toMatchObject({ changedPages: 2, zeroPages: 1 });
    guest.write(0, content(2, 0));
    expect(await image.append(meta(2, 1), device(2), guest.ram)).toMatchObject({ changedPages: 1, basePages: 1 });
    expect((await headOf(image)).equals(guest.all())).toBe(true);
    await image.compact({ force: true, keepFromWallMs: 1e9 });
    await image.close();
    expect(await rejection(ShadowImage.open(join(folder, 'a')))).toMatchObject(failure('ERR_IMAGE_BASE'));
    await base.close();
    const { image: other } = await reopen(join(folder, 'golden'));
    expect(await rejection(ShadowImage.open(join(folder, 'a'), other))).toMatchObject(failure('ERR_IMAGE_BASE'));
    const { image: same } = await reopen(join(folder, 'base.fold'));
    const { image: again } = await reopen(join(folder, 'a'), same);
    expect((await headOf(again)).equals(guest.all())).toBe(true);
    const filled = new GuestRam('filled', RAM_BYTES);
    await again.fill(filled);
    expect(filled.differences(guest.ram)).toBe(0);
  });

  test('a flattened pack needs it no more, another one does', async () => {
    const { base, guest } = await based();
    const image = await create({ base });
    guest.write(1, content(0, 0));
    guest.write(50, content(2, 50));
    await guest.commit(image);
    await image.pack({ path: join(folder, 'flat.fold') });
    await image.pack({ path: join(folder, 'thin.fold'), flatten: false });
    const { image: flat } = await reopen(join(folder, 'flat.fold'));
    expect((await headOf(flat)).equals(guest.all())).toBe(true);
    expect(await rejection(ShadowImage.open(join(folder, 'thin.fold')))).toMatchObject(failure('ERR_IMAGE_BASE'));
    const { image: thin } = await reopen(join(folder, 'thin.fold'), base);
    expect((await headOf(thin)).equals(guest.all())).toBe(true);
    expect(statSync(join(folder, 'thin.fold')).size).toBeLessThan(statSync(join(folder, 'flat.fold')).size / 4);
    expect(await rejection(image.pack({ path: join(folder, 'flat.fold') }))).toMatchObject(failure('EEXIST'));
    expect(await rejection(thin.append(meta(2, 1), device(2), guest.ram))).toMatchObject(failure('ERR_READ_ONLY'));
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    // In a folder under a segment's name, a packed file is an image that can be appended to.
    const copy = mkdtempSync(join(folder, 'imported-'));
    copyFileSync(join(folder, 'flat.fold'), join(copy, '00000001.fold'));
    const { image: imported } = await reopen(copy);
    guest.write(2, content(1, 9));
    await imported.append(meta(imported.describe().lastEpoch + 1, imported.describe().headEpoch), device(2), guest.ram);
    expect((await headOf(imported)).equals(guest.all())).toBe(true);
  });
});

type Step =
  | { do: 'write'; page: number; kind: number; seed: number }
  | { do: 'commit' | 'compact' | 'reopen' | 'flush' }
  | { do: 'rewind'; back: number };
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('write' as const),
      page: fc.nat(PAGES - 1),
      kind: fc.nat(2),
      seed: fc.nat(20),
    }),
  },
  { weight: 5, arbitrary: fc.constant({ do: 'commit' as const }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom({ do: 'compact' as const }, { do: 'reopen' as const }, { do: 'flush' as const }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('rewind' as const), back: fc.nat(3) }) },
);

test('a full disk costs the epoch that did not fit, and nothing else', async () => {
  const disk = join(folder, 'disk');
  mkdirSync(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', disk]);
  try {
    const image = await create({ name: 'disk/a' });
    const guest = new Guest();
    let full: unknown;
    for (let n = 0; full === undefined && n < 20; n++) {
      const before = image.describe().headEpoch;
      for (let page = 0; page < 24; page++) guest.write(page, content(2, n * 100 + page));
      full = await guest.commit(image).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (full !== undefined) expect(image.describe().headEpoch).toBe(before);
    }
    expect(full).toMatchObject(failure('ENOSPC'));
    const head = image.describe().headEpoch;
    expect(head).toBeGreaterThan(2);
    expect((await headOf(image)).equals(guest.epochs.get(head)!)).toBe(true);
    // A fold needs room of its own first; its failure changes nothing either.
    await image.compact({ force: true, keepFromWallMs: head * 1000 }).catch((error: unknown) => {
      expect(error).toMatchObject(failure('ENOSPC'));
    });
    guest.set(guest.epochs.get(head)!);
    guest.write(0, content(1, 1));
    const next = await guest.commit(image);
    expect((await headOf(image)).equals(guest.all())).toBe(true);
    await image.close();
    const { image: again, report } = await reopen(join(disk, 'a'));
    expect(report).toMatchObject({ headEpoch: next, lostEpochs: 0, cutBytes: 0 });
    expect((await headOf(again)).equals(guest.all())).toBe(true);
    await again.close();
  } finally {
    execFileSync('umount', ['-l', disk]);
  }
});

test('whatever happens to it, every kept epoch reads as it was committed', async () => {
  let run = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 120 }), async (steps) => {
      const name = `model-${run++}`;
      let image = await create({ name, segmentBytes: 40_000 });
      const guest = new Guest();
      for (const each of steps) {
        const epochs = image.epochs();
        if (each.do === 'write') guest.write(each.page, content(each.kind, each.seed));
        else if (each.do === 'commit') await guest.commit(image);
        else if (each.do === 'flush') await image.flush();
        else if (each.do === 'compact')
          await image.compact({
            force: true,
            keepFromWallMs: epochs.at(Math.floor(epochs.length / 2))?.cutAtWallMs ?? 0,
          });
        else if (each.do === 'rewind' && epochs.length > 0) {
          const { epoch } = epochs[Math.max(0, epochs.length - 1 - each.back)]!;
          await image.rewind(epoch);
          guest.set(guest.epochs.get(epoch)!);
        } else if (each.do === 'reopen') {
          await image.close();
          const again = await reopen(join(folder, name));
          expect(again.report.words).toBe('');
          image = again.image;
          expect(image.epochs().map((e) => e.epoch)).toEqual(epochs.map((e) => e.epoch));
        }
      }
      for (const { epoch } of image.epochs().reverse()) {
        await image.rewind(epoch);
        expect((await headOf(image)).equals(guest.epochs.get(epoch)!)).toBe(true);
        expect((await image.deviceState(epoch)).equals(device(epoch))).toBe(true);
      }
      await image.close();
      guest.ram.close();
      rmSync(join(folder, name), { recursive: true });
    }),
    { numRuns: 40 },
  );
});

describe('compaction', () => {
  test('keeps the window, gives back the rest, and says when it may not take less', async () => {
    const image = await create({ segmentBytes: 100_000 });
    const guest = new Guest();
    for (let n = 0; n < 30; n++) {
      for (let page = 0; page < 16; page++) guest.write(page, content(2, n * 100 + page));
      await guest.commit(image);
    }
    const result = await image.compact({ keepFromWallMs: 25_500 });
    expect(result).toMatchObject({ done: true, oldestEpoch: 25 });
    expect(result.bytesAfter).toBeLessThan(result.bytesBefore / 3);
    expect(image.epochs().map((e) => e.epoch)).toEqual([25, 26, 27, 28, 29, 30]);
    expect(await rejection(image.rewind(24))).toMatchObject(failure('ERR_NO_EPOCH'));
    expect((await image.compact({ keepFromWallMs: 25_500 })).done).toBe(false);
    // Too small for the window, not for the head.
    expect((await image.compact({ keepFromWallMs: 25_500, maxBytes: 200_000 })).bytesAfter).toBeLessThanOrEqual(
      200_000,
    );
    expect(image.epochs().at(-1)?.epoch).toBe(30);
    await image.compact({ maxBytes: 10_000 });
    expect(await rejection(guest.commit(image))).toMatchObject(failure('ERR_IMAGE_FULL'));
    expect(image.describe().headEpoch).toBe(30);
    await image.compact({ maxBytes: 300_000 });
    expect(await guest.commit(image)).toBe(31);
    expect((await headOf(image)).equals(guest.all())).toBe(true);
  });

  test('and reading, committing and packing do not disturb each other', async () => {
    const image = await create({ segmentBytes: 60_000 });
    const guest = new Guest();
    let going = true;
    const upkeep = (async () => {
      while (going)
        await image.compact({ force: true, keepFromWallMs: 1000 * Math.max(0, image.describe().headEpoch - 3) });
    })();
    for (let n = 0; n < 60; n++) {
      for (let page = 0; page < 8; page++) guest.write((n * 7 + page) % PAGES, content(2, n * 100 + page));
      await guest.commit(image);
      if (n % 10 === 9) expect((await headOf(image)).equals(guest.all())).toBe(true);
    }
    going = false;
    await upkeep;
    await image.pack({ path: join(folder, 'packed.fold') });
    await image.close();
    for (const path of ['a', 'packed.fold']) {
      const { image: again } = await reopen(join(folder, path));
      expect((await headOf(again)).equals(guest.all())).toBe(true);
    }
  });
});

describe('damage', () => {
  async function threeEpochs() {
    const image = await create();
    const guest = new Guest();
    for (let n = 0; n < 3; n++) {
      for (let page = 0; page < 20; page++) guest.write(page + n * 15, content(1 + (page % 2), n * 100 + page));
      await guest.commit(image);
      if (n === 1) await image.flush();
    }
    await image.close();
    return guest;
  }
  const log = (name: string) => join(folder, name, '00000001.log');

  test('a torn end is cut off at every length, and the newest whole epoch is the head', async () => {
    const guest = await threeEpochs();
    const size = statSync(log('a')).size;
    const whole = new Set<number>();
    for (let length = size; length > 400; length -= 1 + Math.floor(size / 61)) {
      cpSync(join(folder, 'a'), join(folder, 'torn'), { recursive: true });
      truncateSync(log('torn'), length);
      const { image, report } = await reopen(join(folder, 'torn'));
      whole.add(report.headEpoch);
      const expected = guest.epochs.get(report.headEpoch) ?? Buffer.alloc(RAM_BYTES);
      expect((await headOf(image)).equals(expected)).toBe(true);
      expect(report.cutBytes > 0).toBe(report.words !== '');
      const epoch = image.describe().lastEpoch + 1;
      await image.append(meta(epoch, report.headEpoch), device(epoch), guest.ram);
      await image.close();
      const { image: again } = await reopen(join(folder, 'torn'));
      expect(again.describe().headEpoch).toBe(epoch);
      expect((await headOf(again)).equals(guest.all())).toBe(true);
      await again.close();
      rmSync(join(folder, 'torn'), { recursive: true });
    }
    expect([...whole].sort()).toEqual([0, 1, 2, 3]);
  });

  test('pages that never reached the disk take their epoch with them, and no flushed one', async () => {
    const guest = await threeEpochs();
    const bytes = readFileSync(log('a'));
    for (let n = 0; n < 40; n++) {
      cpSync(join(folder, 'a'), join(folder, 'lost'), { recursive: true });
      // Epoch 3 was not flushed: any 4 KiB of it may be zeros.
      const from = Math.floor(bytes.length * (0.7 + 0.0072 * n));
      const altered = Buffer.from(bytes).fill(0, from, Math.min(from + PAGE, bytes.length));
      writeFileSync(log('lost'), altered);
      const { image, report } = await reopen(join(folder, 'lost'));
      expect(report.headEpoch).toBe(2);
      expect((await headOf(image)).equals(guest.epochs.get(2)!)).toBe(true);
      await image.close();
      rmSync(join(folder, 'lost'), { recursive: true });
    }
  });

  test('a newer or foreign format is refused, and nothing is changed', async () => {
    await threeEpochs();
    const bytes = readFileSync(log('a'));
    const alter = (at: number, value: number) => {
      const altered = Buffer.from(bytes);
      altered[at] = value;
      writeFileSync(log('a'), altered);
      return altered;
    };
    for (const [at, value, code] of [
      [8, 3, 'ERR_IMAGE_NEWER'],
      [0, 88, 'ERR_IMAGE_FOREIGN'],
      [20, bytes[20]! ^ 1, 'ERR_IMAGE_CORRUPT'],
    ] as const) {
      const altered = alter(at, value);
      expect(await rejection(ShadowImage.open(join(folder, 'a')))).toMatchObject(failure(code));
      expect(readFileSync(log('a')).equals(altered)).toBe(true);
    }
    writeFileSync(join(folder, 'notes.txt'), 'something else');
    expect(await rejection(ShadowImage.open(join(folder, 'notes.txt')))).toMatchObject(failure('ERR_IMAGE_FOREIGN'));
  });

  test('a page whose bits flipped is never served, is found by verify, and is stored again', async () => {
    const image = await create();
    const guest = new Guest();
    for (let page = 0; page < PAGES; page++) guest.write(page, content(2, page));
    await guest.commit(image);
    await image.flush();
    await guest.commit(image); // says that the first one was flushed, so that it is trusted when the image is opened
    await image.close();
    const bytes = readFileSync(log('a'));
    bytes[Math.floor(bytes.length / 2)]! ^= 4;
    writeFileSync(log('a'), bytes);
    const { image: again } = await reopen(join(folder, 'a'));
    const { damagedPages } = await again.verify();
    expect(damagedPages.length).toBeGreaterThan(0);
    for (let page = 0; page < PAGES; page++) {
      const read = await again.readPage(page).catch((error: unknown) => error);
      if (damagedPages.includes(page)) expect(read).toMatchObject(failure('ERR_IMAGE_CORRUPT'));
      else expect((read as Buffer).equals(guest.all().subarray(page * PAGE, (page + 1) * PAGE))).toBe(true);
    }
    expect(await again.append(meta(3, 2), device(3), guest.ram)).toMatchObject({ changedPages: damagedPages.length });
    expect((await again.verify()).damagedPages).toEqual([]);
    expect((await headOf(again)).equals(guest.all())).toBe(true);
  });
});
