/** The addon's boundary under attack: what a caller may get wrong, and what a VM may do to it by dying. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { NativeImage } from '../src/native/image.js';
import { isNativeFailure, NATIVE_BUILD_DIR } from '../src/native/index.js';
import {
  createMemoryFile,
  EpochSource,
  GuestRam,
  ProcessHandle,
  QemuControl,
  ThreadWatch,
} from '../src/native/memory.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { BareQemus, openFiles, until } from './bare-qemu.js';
import { failure, rejection, thrownBy } from './failures.js';
import { checksumSource, commit, differences, TestImages } from './test-image.js';

const PAGE = 4096;
const MIB = 1024 * 1024;
const KILLS = 12;

/** Of every type that JavaScript has. */
const STRANGE: unknown[] = [undefined, null, true, 'x', 1n, Symbol('s'), {}, [], () => {}, new Date(), 1.5, -1];

const images = new TestImages();
afterAll(() => images.close());

describe('guest RAM', () => {
  test.each([0, 1, 4095, 4097, -4096, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60, 2 ** 44 + PAGE, 4096.5, -0])(
    'has no size of %d bytes',
    (bytes) => expect(thrownBy(() => new GuestRam('test', bytes))).toMatchObject(failure('ERR_SIZE')),
  );

  test('takes one page, and tells its size and its memory', () => {
    const ram = new GuestRam('test', PAGE);
    expect([ram.bytes, ram.residentBytes()]).toEqual([PAGE, 0]);
    writeSync(ram.fd, Buffer.alloc(10, 1), 0, 10, 0);
    expect(ram.residentBytes()).toBe(PAGE);
    ram.close();
  });

  test('its size is sealed, so that nobody can cut it away under the mapping', () => {
    const ram = new GuestRam('test', 2 * PAGE);
    const path = `/proc/${process.pid}/fd/${ram.fd}`;
    for (const size of ['4096', '12288'])
      expect(spawnSync('truncate', ['-s', size, path], { encoding: 'utf8' }).stderr).toMatch(/not permitted/);
    ram.close();
  });

  test('can be closed twice, and says that it is closed', () => {
    const files = openFiles();
    const ram = new GuestRam('test', PAGE);
    const other = new GuestRam('test', PAGE);
    ram.close();
    ram.close();
    const uses = [() => ram.fd, () => ram.bytes, () => ram.residentBytes(), () => ram.differences(other)];
    uses.push(() => other.differences(ram));
    for (const use of uses) expect(thrownBy(use)).toMatchObject(failure('ERR_CLOSED'));
    other.close();
    expect(openFiles()).toEqual(files);
  });

  test('counts pages that differ; a hole is as good as zeros', () => {
    const [a, b] = [new GuestRam('a', 4 * PAGE), new GuestRam('b', 4 * PAGE)];
    expect(a.differences(b)).toBe(0);
    writeSync(a.fd, Buffer.alloc(PAGE), 0, PAGE, PAGE); // zeros against a hole
    expect([a.differences(b), b.differences(a), a.differences(a)]).toEqual([0, 0, 0]);
    writeSync(a.fd, Buffer.from([1]), 0, 1, 4 * PAGE - 1);
    writeSync(b.fd, Buffer.from([1]), 0, 1, 0);
    expect([a.differences(b), b.differences(a)]).toEqual([2, 2]);
    expect(thrownBy(() => a.differences(new GuestRam('c', PAGE)))).toMatchObject(failure('ERR_SIZE'));
    a.close();
    b.close();
  });

  test('a name that the kernel refuses is an error of the kernel', () =>
    expect(thrownBy(() => new GuestRam('n'.repeat(250), PAGE))).toMatchObject(failure('EINVAL')));
});

describe('arguments of a wrong type are errors with a code, and nothing else', () => {
  const ram = new GuestRam('test', PAGE);
  const control = new QemuControl(PAGE);
  const handle = new ProcessHandle(process.pid);
  const devices = Buffer.from('devices');
  const cut = { generation: 0, cutAtWallMs: 0, cutAtNs: 0n };
  let source: EpochSource;
  let image: NativeImage;
  beforeAll(async () => {
    const created = await images.create(PAGE);
    image = created.native;
    source = checksumSource(ram, created);
  });
  afterAll(() => {
    for (const each of [source, ram, control, handle]) each.close();
  });
  const any = (value: unknown) => value as never;
  const calls: Record<string, (value: unknown) => unknown> = {
    'GuestRam(name)': (v) => (typeof v === 'string' ? fail() : new GuestRam(any(v), PAGE)),
    'GuestRam(bytes)': (v) => new GuestRam('test', any(v)),
    'QemuControl(ramBytes)': (v) => new QemuControl(any(v)),
    'differences(other)': (v) => ram.differences(any(v)),
    'createMemoryFile(name)': (v) => (typeof v === 'string' ? fail() : createMemoryFile(any(v))),
    'ProcessHandle(pid)': (v) => new ProcessHandle(any(v)),
    'signal(number)': (v) => handle.signal(any(v)),
    'watchExit(callback)': (v) => (typeof v === 'function' ? fail() : handle.watchExit(any(v))),
    'watchDeath(callback)': (v) => control.watchDeath(any(v)),
    'EpochSource(options)': (v) => new EpochSource(any(v)),
    'EpochSource(ram)': (v) => new EpochSource({ ram: any(v), control, pid: 1, tracking: 'checksum', image }),
    'EpochSource(control)': (v) => new EpochSource({ ram, control: any(v), pid: 1, tracking: 'checksum', image }),
    'EpochSource(pid)': (v) => new EpochSource({ ram, control, pid: any(v), tracking: 'checksum', image }),
    'EpochSource(tracking)': (v) => new EpochSource({ ram, control, pid: 1, tracking: any(v), image }),
    'EpochSource(image)': (v) => new EpochSource({ ram, control, pid: 1, tracking: 'checksum', image: any(v) }),
    'commit(cut)': (v) => source.commit(any(v), devices, null),
    'commit(cutAtNs)': (v) =>
      typeof v === 'bigint' ? fail() : source.commit({ ...cut, cutAtNs: any(v) }, devices, null),
    'commit(generation)': (v) => source.commit({ ...cut, generation: any(v) }, devices, null),
    'commit(deviceState)': (v) => source.commit(cut, any(v), null),
    'commit(resident)': (v) => source.commit(cut, devices, any(typeof v === 'object' ? (v ?? {}) : { ram: v })),
    'rewind(epoch)': (v) => source.rewind(any(v), null),
    'scrub(first)': (v) => source.scrub(any(v), 1),
    'scrub(count)': (v) => source.scrub(0, any(v)),
    'awaitAnswers(offset)': (v) => source.awaitAnswers(any(v), 0, null, 0),
    'awaitAnswers(wanted)': (v) => source.awaitAnswers(0, any(v), null, 0),
    'awaitAnswers(vcpus)': (v) => (v === null ? fail() : source.awaitAnswers(0, 0, any(v), 0)),
    'awaitAnswers(timeoutMs)': (v) => source.awaitAnswers(0, 0, null, any(v)),
    'ThreadWatch(pid)': (v) => new ThreadWatch(any(v), []),
    'ThreadWatch(tids)': (v) => (Array.isArray(v) ? fail() : new ThreadWatch(process.pid, any(v))),
    'ThreadWatch(tid)': (v) => new ThreadWatch(process.pid, [process.pid, any(v)]),
  };
  function fail(): never {
    throw Object.assign(new Error('left out: this type is right'), { code: 'RIGHT', syscall: '-' });
  }

  test.each(Object.entries(calls))('%s', async (_name, call) => {
    for (const value of STRANGE) {
      const error: unknown = await Promise.resolve()
        .then(() => call(value))
        .then(
          () => new Error(`${String(value)} was taken`),
          (thrown: unknown) => thrown,
        );
      expect(error).toBeInstanceOf(Error);
      expect(error).toMatchObject(failure(/^[A-Z_]+$/));
      expect(isNativeFailure(error)).toBe(true);
    }
  });

  test('objects of another class, and options that throw, are refused', () => {
    expect(thrownBy(() => ram.differences(any(control)))).toMatchObject(failure('ERR_INVALID_ARG_TYPE'));
    expect(thrownBy(() => Reflect.apply(ram.close, control, []))).toBeInstanceOf(TypeError);
    expect(thrownBy(() => Reflect.apply(ram.close, Object.create(GuestRam.prototype), []))).toBeInstanceOf(Error);
    const poisoned = {
      get pid(): number {
        throw new Error('from the getter');
      },
    };
    expect(thrownBy(() => new EpochSource(any(poisoned)))).toMatchObject({ message: 'from the getter' });
  });
});

describe('the pages of a lazily filled memory', () => {
  const PAGES = 3;
  /** What is behind the control page: a byte per page. */
  const setState = (control: QemuControl, page: number, state: number) =>
    writeSync(control.fd, Buffer.from([state]), 0, 1, PAGE + page);
  const [ABSENT, INSTALLING, PRESENT] = [0, 1, 2];

  test('may be read when they are there; all of them, when it is not lazy', () => {
    const control = new QemuControl(PAGES * PAGE);
    setState(control, 0, ABSENT);
    expect(control.mayRead(0)).toBe(true);
    control.makeLazy();
    setState(control, 1, PRESENT);
    setState(control, 2, 77); // no manager wrote that: a QEMU gone bad must not hold us up
    expect([0, 1, 2].map((page) => control.mayRead(page))).toEqual([false, true, true]);
    for (const page of [-1, 1.5, PAGE])
      expect(thrownBy(() => control.mayRead(page))).toMatchObject(failure('ERR_OUT_OF_RANGE'));
    control.close();
    expect(thrownBy(() => control.mayRead(0))).toMatchObject(failure('ERR_CLOSED'));
  });

  test.each([
    [PRESENT, true],
    [ABSENT, false],
  ])('one that is being installed is waited for, until it is %d', (state, readable) => {
    const control = new QemuControl(PAGES * PAGE);
    control.makeLazy();
    setState(control, 1, INSTALLING);
    const path = `/proc/${process.pid}/fd/${control.fd}`;
    const script = `sleep 0.3; printf '\\00${state}' | dd of=${path} bs=1 seek=${PAGE + 1} conv=notrunc 2> /dev/null`;
    spawn('sh', ['-c', script]);
    const startMs = performance.now();
    expect(control.mayRead(1)).toBe(readable);
    expect(performance.now() - startMs).toBeGreaterThan(200);
    control.close();
  });

  test('one that never comes is an error', () => {
    const control = new QemuControl(PAGES * PAGE);
    control.makeLazy();
    setState(control, 1, INSTALLING);
    expect(thrownBy(() => control.mayRead(1))).toMatchObject(failure('ERR_PAGE_STUCK'));
    control.close();
  });
});

describe('a process by its handle', () => {
  test.each([0, -1, 1.5, Number.NaN, 2 ** 31, 2 ** 32 + 1])('there is no process %d', (pid) =>
    expect(thrownBy(() => new ProcessHandle(pid))).toMatchObject(failure('ERR_OUT_OF_RANGE')),
  );

  test('a process that does not exist is ESRCH', () =>
    expect(thrownBy(() => new ProcessHandle(2 ** 22 + 1))).toMatchObject(failure('ESRCH')));

  test('tells of the end once, and signals nobody after it', async () => {
    const child = spawn('sleep', ['60']);
    const handle = new ProcessHandle(child.pid as number);
    const ends: bigint[] = [];
    handle.watchExit((atNs) => ends.push(atNs));
    expect(thrownBy(() => handle.watchExit(() => {}))).toMatchObject(failure('ERR_BUSY'));
    expect(thrownBy(() => handle.signal(65))).toMatchObject(failure('ERR_OUT_OF_RANGE'));
    expect(handle.signal(0)).toBe(true);
    const beforeNs = process.hrtime.bigint();
    expect(handle.signal(9)).toBe(true);
    await once(child, 'exit');
    await until('the news of the end', () => ends.length > 0);
    await until('ESRCH', () => !handle.signal(9));
    expect(ends).toHaveLength(1);
    expect(ends[0]! >= beforeNs && ends[0]! <= process.hrtime.bigint()).toBe(true);
    handle.close();
    handle.close();
    expect(thrownBy(() => handle.signal(9))).toMatchObject(failure('ERR_CLOSED'));
    expect(thrownBy(() => handle.watchExit(() => {}))).toMatchObject(failure('ERR_CLOSED'));
  });

  test('once closed it does not call back: not of an end to come, and not of one that has come already', async () => {
    for (const closeFirst of [true, false]) {
      const child = spawn('sleep', ['60']);
      const handle = new ProcessHandle(child.pid as number);
      let calls = 0;
      handle.watchExit(() => calls++);
      if (closeFirst) handle.close();
      child.kill('SIGKILL');
      // The event loop does not turn here: the watch's thread has told of the end, and nobody has heard it yet.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
      handle.close();
      await once(child, 'exit');
      await sleep(50);
      expect(calls).toBe(0);
    }
  });
});

describe('a counter in the memory of a guest', () => {
  const AT = 2 * PAGE - 2;
  let ram: GuestRam;
  let source: EpochSource;
  const count = (value: number) => writeSync(ram.fd, Buffer.from([value & 0xff, value >> 8]), 0, 2, AT);
  beforeAll(async () => {
    ram = new GuestRam('counted', 2 * PAGE);
    source = checksumSource(ram, await images.create(2 * PAGE));
  });
  afterAll(() => {
    source.close();
    ram.close();
  });

  test.each([
    [0, 1, 1],
    [5, 9, 12],
    [0xfffe, 2, 2],
    [0xffff, 0, 40],
    [0x1234, 0x1233, 0x1234],
  ])('of %d is awaited until it is %d or, having gone round, more: %d', async (from, wanted, to) => {
    count(from);
    const early = await source.awaitAnswers(AT, wanted, null, 3);
    expect(early).toBe(from === to);
    const awaited = source.awaitAnswers(AT, wanted, null, 1000);
    count(to);
    expect(await awaited).toBe(true);
  });

  test('is not enough while one of the threads is at work; one that has ended sleeps', async () => {
    const threads = ['while :; do :; done', 'read line'].map((script) => spawn('sh', ['-c', script]));
    const ended = Promise.all(threads.map((thread) => once(thread, 'exit')));
    const [busy, idle] = threads.map(({ pid }) => new ThreadWatch(pid as number, [pid as number])) as [
      ThreadWatch,
      ThreadWatch,
    ];
    try {
      count(7);
      await expect.poll(() => idle.allSleep()).toBe(true);
      expect(await source.awaitAnswers(AT, 7, idle, 1000)).toBe(true);
      expect(await source.awaitAnswers(AT, 8, idle, 3)).toBe(false);
      expect([busy.allSleep(), await source.awaitAnswers(AT, 7, busy, 20)]).toEqual([false, false]);
      const awaited = source.awaitAnswers(AT, 7, busy, 1000);
      threads[0]!.kill('SIGKILL');
      expect(await awaited).toBe(true);
      const none = new ThreadWatch(process.pid, []);
      expect(none.allSleep()).toBe(true);
      for (const each of [none, busy]) each.close();
      expect(await rejection(source.awaitAnswers(AT, 7, busy, 0))).toMatchObject(failure('ERR_INVALID_ARG_TYPE'));
    } finally {
      for (const each of threads) each.kill('SIGKILL');
      for (const each of [busy, idle]) each.close();
    }
    await ended;
    const gone = threads[0]!.pid as number;
    expect(thrownBy(() => new ThreadWatch(gone, [gone]))).toMatchObject(failure('ESRCH'));
  });

  test('takes no memory to look at, and is nowhere but in the memory', async () => {
    const empty = new GuestRam('empty', 2 * PAGE);
    const other = checksumSource(empty, await images.create(2 * PAGE));
    expect([await other.awaitAnswers(AT, 1, null, 2), empty.residentBytes()]).toEqual([false, 0]);
    for (const offset of [AT + 1, 2 * PAGE, 2 ** 50])
      expect(await rejection(other.awaitAnswers(offset, 1, null, 0))).toMatchObject(failure('ERR_OUT_OF_RANGE'));
    const awaited = other.awaitAnswers(AT, 1, null, 500);
    expect(await rejection(other.awaitAnswers(AT, 1, null, 0))).toMatchObject(failure('ERR_BUSY'));
    expect(await awaited).toBe(false);
    other.close();
    empty.close();
  });
});

describe('a QEMU', () => {
  let qemus: BareQemus;
  beforeAll(async () => {
    qemus = await BareQemus.open();
  });
  afterAll(() => qemus.close());

  test('without the shim is not tracked, and its death can not be watched', async () => {
    const [ram, control] = [new GuestRam('a', PAGE), new QemuControl(PAGE)];
    const { native: image } = await images.create(PAGE);
    const source = (tracking: 'write' | 'checksum') =>
      new EpochSource({ ram, control, pid: process.pid, tracking, image });
    expect(control.read()).toMatchObject({
      alive: null,
      tracking: 'unseen',
      errorCode: null,
      ramBytes: 0,
      lazy: false,
    });
    expect(thrownBy(() => source('write'))).toMatchObject(failure('ERR_NOT_TRACKED'));
    expect(thrownBy(() => control.watchDeath(() => {}))).toMatchObject(failure('ERR_NO_SHIM'));
    control.close();
    control.close();
    for (const use of [() => control.fd, () => control.read(), () => control.watchDeath(() => {})])
      expect(thrownBy(use)).toMatchObject(failure('ERR_CLOSED'));
    expect(thrownBy(() => source('checksum'))).toMatchObject(failure('ERR_CLOSED'));
    ram.close();
  });

  test('is tracked under its own number and size only', async () => {
    const qemu = await qemus.launch();
    const { ram, control, pid } = qemu;
    expect(control.read()).toEqual({
      alive: true,
      tracking: 'registered',
      errorCode: null,
      ramBytes: ram.bytes,
      lazy: false,
      filled: false,
      pausedForEpoch: false,
      servesPauses: true,
      marked: null,
    });
    const small = new GuestRam('small', PAGE);
    const image = await images.create(ram.bytes);
    const { native: smallImage } = await images.create(PAGE);
    const write = (options: object) =>
      new EpochSource({ ram, control, pid, tracking: 'write', image: image.native, ...options });
    expect(thrownBy(() => write({ ram: small }))).toMatchObject(failure('ERR_SIZE'));
    expect(thrownBy(() => write({ image: smallImage }))).toMatchObject(failure('ERR_SIZE'));
    expect(thrownBy(() => write({ pid: 2 ** 22 + 1 }))).toMatchObject(failure('ENOENT'));
    const source = write({});
    await source.sync();
    const residentBytes = ram.residentBytes();
    for (let i = 0; i < 3; i++) {
      await source.collect();
      await commit(source);
    }
    expect(await differences(ram, image)).toBe(0);
    expect(ram.residentBytes()).toBe(residentBytes); // reading never makes memory
    for (const each of [source, small]) each.close();
    await qemu.dispose();
  });

  test('that dies is told of once, also to who begins to watch afterwards', async () => {
    const qemu = await qemus.launch();
    // Launching has begun to watch; the page can be watched once.
    expect(thrownBy(() => qemu.control.watchDeath(() => {}))).toMatchObject(failure('ERR_BUSY'));
    const beforeNs = process.hrtime.bigint();
    qemu.kill();
    const diedNs = await qemu.died;
    expect(diedNs >= beforeNs).toBe(true);
    expect(qemu.control.read().alive).toBe(false);
    expect(thrownBy(() => qemu.control.watchDeath(() => {}))).toMatchObject(failure('ERR_BUSY'));
    await qemu.dispose();
  });

  test('whose watch is closed calls nobody, also if it has died before', async () => {
    for (const closeFirst of [true, false]) {
      const { child, control } = await startWithShim();
      let calls = 0;
      control.watchDeath(() => calls++);
      if (closeFirst) control.close();
      child.kill('SIGKILL');
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
      control.close();
      await sleep(50);
      expect(calls).toBe(0);
    }
  });

  test('that died before it was watched is told of at once', async () => {
    const { child, control } = await startWithShim();
    child.kill('SIGKILL');
    await until('the death', () => control.read().alive === false);
    await new Promise((resolve) => control.watchDeath(resolve));
    control.close();
  });

  test.each(['write', 'checksum'] as const)(
    'may be killed at any moment of a copy or a pass (%s)',
    { timeout: 120_000 },
    async (tracking) => {
      const codes = new Map<string, number>();
      for (let i = 0; i < KILLS; i++) {
        // The larger RAM is scanned by two threads.
        const spec = { name: 'bare', ramBytes: (i % 3 === 0 ? 640 : 64) * MIB, vcpus: 1 };
        const qemu = await qemus.launch({ spec });
        const { ram, control, pid } = qemu;
        writeSync(ram.fd, Buffer.alloc(16 * MIB, i + 1), 0, 16 * MIB, 0);
        const { native: image } = await images.create(ram.bytes);
        const source = new EpochSource({ ram, control, pid, tracking, image });
        const timer = setTimeout(() => qemu.kill(), Math.random() * (i % 2 === 0 ? 12 : 40));
        const error = (await rejection(passesUntilFailure(source, qemu))) as { code: string };
        expect(error).toMatchObject(failure('ERR_VM_DEAD'));
        codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
        // Dead or not, what was whole stays usable, and everything can be given back.
        await source.abort();
        clearTimeout(timer);
        source.close();
        await qemu.dispose();
      }
      expect([...codes]).toEqual([['ERR_VM_DEAD', KILLS]]);
    },
  );

  test('that has died leaves its last epoch, but not one that held what it had sent', async () => {
    const qemu = await qemus.launch();
    const { ram, control, pid } = qemu;
    const { native: image } = await images.create(ram.bytes);
    const source = new EpochSource({ ram, control, pid, tracking: 'write', image });
    const when = { generation: 0, cutAtWallMs: 0, cutAtNs: 0n };
    await source.sync();
    expect(await source.commit({ ...when, holdsOutput: true }, Buffer.from('alive'), null)).toMatchObject({ epoch: 1 });
    writeSync(ram.fd, Buffer.alloc(MIB, 7), 0, MIB, 0);
    await source.collect({ urgent: true });
    qemu.kill();
    await until('its death', () => control.read().alive === false);
    const held = await rejection(source.commit({ ...when, holdsOutput: true }, Buffer.from('held'), null));
    expect(held).toMatchObject(failure('ERR_VM_DEAD'));
    expect(image.describe().headEpoch).toBe(1);
    expect(await source.commit(when, Buffer.from('async'), null)).toMatchObject({ epoch: 2 });
    source.close();
    await qemu.dispose();
  });

  /** Ends by the failure of a pass. */
  async function passesUntilFailure(source: EpochSource, qemu: QemuProcess): Promise<never> {
    await source.sync();
    for (const deadline = performance.now() + 20_000; performance.now() < deadline; ) {
      writeSync(qemu.ram.fd, Buffer.alloc(MIB, Math.floor(Math.random() * 256)), 0, MIB, 0);
      await source.collect({ urgent: true });
      await commit(source);
    }
    throw new Error('the VM did not die');
  }

  /** Any program with the shim in it is a QEMU to the control page. */
  async function startWithShim() {
    const ram = new GuestRam('a', PAGE);
    const control = new QemuControl(PAGE);
    const child = spawn('sleep', ['60'], {
      stdio: ['ignore', 'ignore', 'ignore', ram.fd, control.fd],
      env: { ...process.env, LD_PRELOAD: `${NATIVE_BUILD_DIR}track-shim.so` },
    });
    await until('the shim', () => control.read().alive === true);
    ram.close();
    return { child, control };
  }
});

test('a process may end in the middle of an operation, with watches and sources open', { timeout: 60_000 }, () => {
  const script = `
    const { GuestRam, QemuControl, EpochSource, ProcessHandle, ShadowImage } = require(${JSON.stringify(`${NATIVE_BUILD_DIR}shadowvm.node`)});
    const bytes = 16 * 1024 * 1024;
    const ram = new GuestRam('a', bytes), image = new ShadowImage();
    require('fs').writeSync(ram.fd, Buffer.alloc(bytes, 3));
    new ProcessHandle(process.ppid).watchExit(() => {});
    image.create(process.argv[2], { vm: 'test', ramBytes: bytes }).then(() => {
      const source = new EpochSource({ ram, control: new QemuControl(bytes), pid: 1, tracking: 'checksum', image });
      source.sync().then(() => source.collect(), () => {});
    });
    setTimeout(() => process.exit(7), Number(process.argv[1]));
  `;
  for (const delayMs of [0, 1, 3, 6, 9, 12, 20, 200]) {
    const { status, signal, stderr } = spawnSync(
      process.execPath,
      ['-e', script, `${delayMs}`, join(images.folder, `ends-${delayMs}`)],
      { encoding: 'utf8' },
    );
    expect({ status, signal, stderr }).toEqual({ status: 7, signal: null, stderr: '' });
  }
});
