/** The addon's boundary under attack: what a caller may get wrong, and what a VM may do to it by dying. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isNativeFailure, NATIVE_BUILD_DIR } from '../src/native/index.js';
import { createMemoryFile, EpochSource, GuestRam, ProcessHandle, QemuControl } from '../src/native/memory.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { BareQemus, openFiles, until } from './bare-qemu.js';

const PAGE = 4096;
const MIB = 1024 * 1024;
const KILLS = 12;

/** Every failure of the addon carries both. */
const failure = (code: string | RegExp) => ({
  code: typeof code === 'string' ? code : expect.stringMatching(code),
  syscall: expect.stringMatching(/./),
});

function thrownBy(act: () => unknown): unknown {
  try {
    act();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}

const rejection = (promise: Promise<unknown>) =>
  promise.then(
    () => {
      throw new Error('it did not reject');
    },
    (error: unknown) => error,
  );

/** Of every type that JavaScript has. */
const STRANGE: unknown[] = [undefined, null, true, 'x', 1n, Symbol('s'), {}, [], () => {}, new Date(), 1.5, -1];

// A control page that no process has: enough to find changes by checksums.
function checksumSource(ram: GuestRam): EpochSource {
  return new EpochSource({ ram, control: new QemuControl(), pid: process.pid, tracking: 'checksum' });
}

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
  const control = new QemuControl();
  const source = checksumSource(ram);
  const handle = new ProcessHandle(process.pid);
  afterAll(() => {
    for (const each of [source, ram, control, handle]) each.close();
  });
  const any = (value: unknown) => value as never;
  const calls: Record<string, (value: unknown) => unknown> = {
    'GuestRam(name)': (v) => (typeof v === 'string' ? fail() : new GuestRam(any(v), PAGE)),
    'GuestRam(bytes)': (v) => new GuestRam('test', any(v)),
    'differences(other)': (v) => ram.differences(any(v)),
    'createMemoryFile(name)': (v) => (typeof v === 'string' ? fail() : createMemoryFile(any(v))),
    'ProcessHandle(pid)': (v) => new ProcessHandle(any(v)),
    'signal(number)': (v) => handle.signal(any(v)),
    'watchExit(callback)': (v) => (typeof v === 'function' ? fail() : handle.watchExit(any(v))),
    'watchDeath(callback)': (v) => control.watchDeath(any(v)),
    'EpochSource(options)': (v) => new EpochSource(any(v)),
    'EpochSource(ram)': (v) => new EpochSource({ ram: any(v), control, pid: 1, tracking: 'checksum' }),
    'EpochSource(control)': (v) => new EpochSource({ ram, control: any(v), pid: 1, tracking: 'checksum' }),
    'EpochSource(pid)': (v) => new EpochSource({ ram, control, pid: any(v), tracking: 'checksum' }),
    'EpochSource(tracking)': (v) => new EpochSource({ ram, control, pid: 1, tracking: any(v) }),
    'sync(target)': (v) => source.sync(any(v)),
    'commit(target)': (v) => source.commit(any(v), 0),
    'commit(undoEpochs)': (v) => source.commit(ram, any(v)),
    'rewind(target)': (v) => source.rewind(any(v), 0),
    'rewind(epochs)': (v) => source.rewind(ram, any(v)),
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

  test.each([-1, 1025, 1.5, Number.NaN, Number.POSITIVE_INFINITY])('%d epochs can not be kept', async (count) => {
    expect(await rejection(source.commit(ram, count))).toMatchObject(failure('ERR_SIZE'));
    expect(await rejection(source.rewind(ram, count))).toMatchObject(failure('ERR_SIZE'));
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

describe('epochs of a plain memory', () => {
  test('take turns', async () => {
    const ram = new GuestRam('a', 32 * MIB);
    writeSync(ram.fd, Buffer.alloc(32 * MIB, 7), 0, 32 * MIB, 0);
    const target = new GuestRam('b', 32 * MIB);
    const source = checksumSource(ram);
    const first = source.sync(target);
    for (const second of [
      source.sync(target),
      source.collect(),
      source.commit(target, 0),
      source.rewind(target, 0),
      source.abort(),
    ])
      expect(await rejection(second)).toMatchObject(failure('ERR_BUSY'));
    expect(thrownBy(() => source.close())).toMatchObject(failure('ERR_BUSY'));
    // Under an operation that goes on, both memories may be closed.
    ram.close();
    target.close();
    expect(await first).toMatchObject({ changedPages: (32 * MIB) / PAGE });
    source.close();
    source.close();
    for (const late of [
      source.sync(target),
      source.collect(),
      source.commit(target, 0),
      source.rewind(target, 0),
      source.abort(),
    ])
      expect(await rejection(late)).toMatchObject(failure('ERR_CLOSED'));
  });

  test('need a first copy, and a target of the same size', async () => {
    const [ram, target] = [new GuestRam('a', 2 * PAGE), new GuestRam('b', 2 * PAGE)];
    const source = checksumSource(ram);
    expect(await rejection(source.collect())).toMatchObject(failure('ERR_NOT_SYNCED'));
    expect(await rejection(source.commit(target, 0))).toMatchObject(failure('ERR_NOT_SYNCED'));
    expect(await rejection(source.rewind(target, 1))).toMatchObject(failure('ERR_NO_UNDO'));
    await source.abort();
    for (const pages of [1, 3]) {
      const other = new GuestRam('c', pages * PAGE);
      expect(await rejection(source.sync(other))).toMatchObject(failure('ERR_SIZE'));
      expect(await rejection(source.commit(other, 0))).toMatchObject(failure('ERR_SIZE'));
      expect(await rejection(source.rewind(other, 0))).toMatchObject(failure('ERR_SIZE'));
    }
    target.close();
    for (const use of [source.sync(target), source.commit(target, 0), source.rewind(target, 0)])
      expect(await rejection(use)).toMatchObject(failure('ERR_CLOSED'));
    source.close();
    ram.close();
  });

  test('a memory too large to keep books of is an error, not an end of the process', () => {
    const ram = new GuestRam('huge', 2 ** 44);
    try {
      checksumSource(ram).close(); // a host that overcommits without bound takes it
    } catch (error) {
      expect(error).toMatchObject(failure('ENOMEM'));
    }
    ram.close();
  });

  test('a hole that opens in the primary opens in the shadow', async () => {
    const [ram, target] = [new GuestRam('a', 8 * PAGE), new GuestRam('b', 8 * PAGE)];
    writeSync(ram.fd, Buffer.alloc(8 * PAGE, 5), 0, 8 * PAGE, 0);
    const source = checksumSource(ram);
    await source.sync(target);
    const path = `/proc/${process.pid}/fd/${ram.fd}`;
    execFileSync('fallocate', ['--punch-hole', '--offset', `${2 * PAGE}`, '--length', `${3 * PAGE}`, path]);
    await source.collect();
    expect(await source.commit(target, 1)).toMatchObject({ changedPages: 3, zeroPages: 3, droppedPages: 0 });
    expect([ram.differences(target), ram.residentBytes(), target.residentBytes()]).toEqual([0, 5 * PAGE, 5 * PAGE]);
    await source.rewind(target, 1);
    expect([ram.differences(target), target.residentBytes()]).toEqual([3, 8 * PAGE]);
    // What was rewound is found again.
    await source.collect();
    await source.commit(target, 0);
    expect(ram.differences(target)).toBe(0);
    // A first copy over a target that holds other things clears them.
    writeSync(target.fd, Buffer.alloc(8 * PAGE, 9), 0, 8 * PAGE, 0);
    await source.sync(target);
    expect([ram.differences(target), target.residentBytes()]).toEqual([0, 5 * PAGE]);
    for (const each of [source, ram, target]) each.close();
  });

  test('do in any order what a plain model does', { timeout: 120_000 }, async () => {
    const PAGES = 6;
    const operation = fc.oneof(
      {
        weight: 6,
        arbitrary: fc.record({ op: fc.constant('write' as const), page: fc.nat(PAGES - 1), byte: fc.nat(3) }),
      },
      { weight: 4, arbitrary: fc.record({ op: fc.constant('collect' as const) }) },
      { weight: 4, arbitrary: fc.record({ op: fc.constant('commit' as const), undo: fc.nat(3) }) },
      { weight: 2, arbitrary: fc.record({ op: fc.constant('rewind' as const), epochs: fc.nat(3) }) },
      { weight: 1, arbitrary: fc.record({ op: fc.constant('abort' as const) }) },
      { weight: 1, arbitrary: fc.record({ op: fc.constant('sync' as const) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 40 }), async (operations) => {
        const [ram, target] = [new GuestRam('a', PAGES * PAGE), new GuestRam('b', PAGES * PAGE)];
        const source = checksumSource(ram);
        // Each page is one byte repeated: 0 stands for zeros and holes alike.
        const model = { source: new Array(PAGES).fill(0), target: new Array(PAGES).fill(0) };
        let staged = new Map<number, number>();
        let undo: number[][] = [];
        let clean = true; // nothing was written or rewound since the last collect
        await source.sync(target);
        try {
          for (const step of operations) {
            switch (step.op) {
              case 'write':
                writeSync(ram.fd, Buffer.alloc(PAGE, step.byte), 0, PAGE, step.page * PAGE);
                model.source[step.page] = step.byte;
                clean = false;
                continue;
              case 'collect': {
                model.source.forEach((byte, page) => {
                  if (byte !== (staged.get(page) ?? model.target[page])) staged.set(page, byte);
                });
                clean = true;
                expect((await source.collect()).stagedPages).toBe(staged.size);
                continue;
              }
              case 'commit': {
                const before = [...model.target];
                for (const [page, byte] of staged) model.target[page] = byte;
                const changed = model.target.filter((byte, page) => byte !== before[page]).length;
                while (undo.length >= Math.max(step.undo, 1)) undo.shift();
                if (step.undo > 0) undo.push(before);
                const result = await source.commit(target, step.undo);
                expect(result).toMatchObject({ changedPages: changed, droppedPages: staged.size - changed });
                staged = new Map();
                if (clean) expect(ram.differences(target)).toBe(0);
                break;
              }
              case 'rewind':
                if (step.epochs > undo.length) {
                  expect(await rejection(source.rewind(target, step.epochs))).toMatchObject(failure('ERR_NO_UNDO'));
                } else {
                  await source.rewind(target, step.epochs);
                  for (let i = 0; i < step.epochs; i++) model.target = undo.pop() as number[];
                  if (step.epochs > 0) clean = false;
                }
                break;
              case 'abort':
                await source.abort();
                staged = new Map();
                clean = false;
                break;
              case 'sync':
                await source.sync(target);
                model.target = [...model.source];
                staged = new Map();
                undo = [];
                clean = true;
            }
            const bytes = Buffer.alloc(PAGES * PAGE);
            readSync(target.fd, bytes, 0, bytes.length, 0);
            const expected = Buffer.concat(model.target.map((byte: number) => Buffer.alloc(PAGE, byte)));
            expect(bytes.equals(expected)).toBe(true);
          }
        } finally {
          for (const each of [source, ram, target]) each.close();
        }
      }),
      { numRuns: 150 },
    );
  });
});

describe('a QEMU', () => {
  let qemus: BareQemus;
  beforeAll(async () => {
    qemus = await BareQemus.open();
  });
  afterAll(() => qemus.close());

  test('without the shim is not tracked, and its death can not be watched', () => {
    const [ram, control] = [new GuestRam('a', PAGE), new QemuControl()];
    expect(control.read()).toEqual({ alive: null, tracking: 'unseen', errorCode: null, ramBytes: 0 });
    expect(thrownBy(() => new EpochSource({ ram, control, pid: process.pid, tracking: 'write' }))).toMatchObject(
      failure('ERR_NOT_TRACKED'),
    );
    expect(thrownBy(() => control.watchDeath(() => {}))).toMatchObject(failure('ERR_NO_SHIM'));
    control.close();
    control.close();
    for (const use of [() => control.fd, () => control.read(), () => control.watchDeath(() => {})])
      expect(thrownBy(use)).toMatchObject(failure('ERR_CLOSED'));
    expect(thrownBy(() => new EpochSource({ ram, control, pid: process.pid, tracking: 'checksum' }))).toMatchObject(
      failure('ERR_CLOSED'),
    );
    ram.close();
  });

  test('is tracked under its own number and size only', async () => {
    const qemu = await qemus.launch();
    const { ram, control, pid } = qemu;
    expect(control.read()).toEqual({ alive: true, tracking: 'registered', errorCode: null, ramBytes: ram.bytes });
    const small = new GuestRam('small', PAGE);
    const write = (options: object) => new EpochSource({ ram, control, pid, tracking: 'write', ...options });
    expect(thrownBy(() => write({ ram: small }))).toMatchObject(failure('ERR_SIZE'));
    expect(thrownBy(() => write({ pid: 2 ** 22 + 1 }))).toMatchObject(failure('ENOENT'));
    const target = new GuestRam('target', ram.bytes);
    const source = write({});
    await source.sync(target);
    const residentBytes = ram.residentBytes();
    for (let i = 0; i < 3; i++) {
      await source.collect();
      await source.commit(target, 0);
    }
    expect(ram.differences(target)).toBe(0);
    expect(ram.residentBytes()).toBe(residentBytes); // reading never makes memory
    for (const each of [source, small, target]) each.close();
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
        const target = new GuestRam('target', ram.bytes);
        const source = new EpochSource({ ram, control, pid, tracking });
        const timer = setTimeout(() => qemu.kill(), Math.random() * (i % 2 === 0 ? 12 : 40));
        const error = (await rejection(passesUntilFailure(source, target, qemu))) as { code: string };
        expect(error).toMatchObject(failure('ERR_VM_DEAD'));
        codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
        // Dead or not, what was whole stays usable, and everything can be given back.
        await source.abort();
        clearTimeout(timer);
        source.close();
        target.close();
        await qemu.dispose();
      }
      expect([...codes]).toEqual([['ERR_VM_DEAD', KILLS]]);
    },
  );

  /** Ends by the failure of a pass. */
  async function passesUntilFailure(source: EpochSource, target: GuestRam, qemu: QemuProcess): Promise<never> {
    await source.sync(target);
    for (const deadline = performance.now() + 20_000; performance.now() < deadline; ) {
      writeSync(qemu.ram.fd, Buffer.alloc(MIB, Math.floor(Math.random() * 256)), 0, MIB, 0);
      await source.collect({ urgent: true });
      await source.commit(target, 2);
    }
    throw new Error('the VM did not die');
  }

  /** Any program with the shim in it is a QEMU to the control page. */
  async function startWithShim() {
    const ram = new GuestRam('a', PAGE);
    const control = new QemuControl();
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
    const { GuestRam, QemuControl, EpochSource, ProcessHandle } = require(${JSON.stringify(`${NATIVE_BUILD_DIR}shadowvm.node`)});
    const bytes = 16 * 1024 * 1024;
    const ram = new GuestRam('a', bytes), target = new GuestRam('b', bytes);
    require('fs').writeSync(ram.fd, Buffer.alloc(bytes, 3));
    const source = new EpochSource({ ram, control: new QemuControl(), pid: 1, tracking: 'checksum' });
    new ProcessHandle(process.ppid).watchExit(() => {});
    source.sync(target).then(() => source.collect(), () => {});
    setTimeout(() => process.exit(7), Number(process.argv[1]));
  `;
  for (const delayMs of [0, 1, 3, 6, 9, 12, 20, 200]) {
    const { status, signal, stderr } = spawnSync(process.execPath, ['-e', script, `${delayMs}`], { encoding: 'utf8' });
    expect({ status, signal, stderr }).toEqual({ status: 7, signal: null, stderr: '' });
  }
});
