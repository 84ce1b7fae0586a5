/** QEMU as a process: how it starts, what it may do, how it ends, and that nothing stays behind. */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findQemu } from '../src/qemu/probe.js';
import { QemuProcess } from '../src/qemu/process.js';
import { BareQemus, isAlive, openFiles, statusField, until } from './bare-qemu.js';

const UID = 1_900_000_777;
const MIB = 1024 * 1024;

let qemus: BareQemus;
beforeAll(async () => {
  qemus = await BareQemus.open();
  // What Node opens by the way (its thread pool, the first child) is open from here on.
  await (await qemus.launch()).dispose();
});
afterAll(async () => {
  const { dir } = qemus;
  await qemus.close();
  expect(existsSync(dir)).toBe(false);
});

const sockets = () => readdirSync(qemus.dir).filter((file) => !file.endsWith('.log'));

describe('a QEMU that waits', () => {
  test('answers, has nobody’s rights and a filter on its system calls, and its RAM is tracked', async () => {
    const before = { files: openFiles(), sockets: sockets() };
    const qemu = await qemus.launch({ uid: UID });
    expect((await qemu.qmp.execute('query-status')).running).toBe(false);
    for (const field of ['Uid', 'Gid']) expect(statusField(qemu.pid, field)).toEqual(new Array(4).fill(`${UID}`));
    expect(statusField(qemu.pid, 'Groups').filter((group) => group !== '' && group !== `${UID}`)).toEqual([]);
    expect(statusField(qemu.pid, 'CapEff')).toEqual(['0000000000000000']);
    expect(statusField(qemu.pid, 'Seccomp')).toEqual(['2']);
    expect(qemu.writeTracking).toEqual({ usable: true, reason: 'userfaultfd write protection' });
    // Neither what the manager has open nor the shim's preloading goes on to it.
    expect(readFileSync(`/proc/${qemu.pid}/maps`, 'utf8')).toContain('track-shim.so');
    expect(sockets().sort()).toEqual(
      [...before.sockets, ...['con', 'hb', 'qmp'].map((end) => expect.stringMatching(`\\.${end}$`))].sort(),
    );

    await Promise.all([qemu.dispose(), qemu.dispose()]);
    await qemu.dispose();
    qemu.kill();
    expect([isAlive(qemu.pid), sockets(), openFiles()]).toEqual([false, before.sockets, before.files]);
    await expect(qemu.qmp.execute('stop')).rejects.toMatchObject({ code: 'QMP_CLOSED' });
    expect(() => qemu.ram.fd).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }));
    expect(() => qemu.freeze()).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }));
  });

  test('keeps the user where there is no other', async () => {
    const qemu = await qemus.launch({ uid: null });
    expect(statusField(qemu.pid, 'Uid')).toEqual(new Array(4).fill('0'));
    expect(statusField(qemu.pid, 'Seccomp')).toEqual(['2']);
    await qemu.dispose();
  });

  test('frozen, ends all the same', async () => {
    const qemu = await qemus.launch();
    qemu.freeze();
    await until('the stop', () => statusField(qemu.pid, 'State')[0] === 'T');
    await expect(qemu.qmp.execute('query-status', undefined, { timeoutMs: 100 })).rejects.toMatchObject({
      code: 'QMP_TIMEOUT',
    });
    await qemu.dispose();
    expect(isAlive(qemu.pid)).toBe(false);
  });

  test('killed by somebody else, tells of its death first and then of its end', async () => {
    const qemu = await qemus.launch();
    const exitedAtNs = qemu.exited.then(() => process.hrtime.bigint());
    const { closed } = qemu.qmp;
    const killedAtNs = process.hrtime.bigint();
    process.kill(qemu.pid, 'SIGKILL');
    // By the kernel's clock: which of the two a busy event loop hears of first is nobody's promise.
    const diedAtNs = await qemu.died;
    expect(diedAtNs).toBeGreaterThan(killedAtNs);
    expect(diedAtNs).toBeLessThan(await exitedAtNs);
    expect((await closed).code).toBe('QMP_CLOSED');
    await qemu.dispose();
  });

  test('refuses a device state that is none, in words', async () => {
    const qemu = await qemus.launch();
    await expect(qemu.loadDevices(Buffer.from('garbage'.repeat(100)), 5000)).rejects.toMatchObject({
      code: expect.stringMatching(/^(PROMOTION_FAILED|QMP_CLOSED|QMP_ERROR)$/),
    });
    await qemu.dispose();
  });

  test('that dies while it is fed is an end like any other', async () => {
    const qemu = await qemus.launch();
    const loading = qemu.loadDevices(Buffer.alloc(32 * MIB), 5000).catch((error: unknown) => error);
    qemu.kill();
    expect(await loading).toMatchObject({ code: expect.stringMatching(/^(PROMOTION_FAILED|QMP_CLOSED)$/) });
    await qemu.dispose();
  });
});

describe('a start that fails', () => {
  /** The failure, with the promise that nothing of the start is left when it is told. */
  async function failureOf(options: Parameters<BareQemus['launch']>[0]): Promise<unknown> {
    const before = { files: openFiles(), sockets: sockets() };
    let pid = 0;
    const error: unknown = await qemus
      .launch({
        ...options,
        onSpawn: (number) => {
          pid = number;
          options?.onSpawn?.(number);
        },
      })
      .then(
        () => new Error('it started'),
        (thrown: unknown) => thrown,
      );
    expect([pid === 0 ? false : isAlive(pid), sockets()]).toEqual([false, before.sockets]);
    await until('the closing of files', () => openFiles().length === before.files.length, 2000).catch(() => {});
    expect(openFiles()).toEqual(before.files);
    return error;
  }

  test('has QEMU’s own words: a kernel that is not there', async () => {
    expect(
      await failureOf({ incoming: false, kernel: { kernelPath: '/nowhere/vmlinuz', initrdPath: '/nowhere/initrd' } }),
    ).toMatchObject({
      code: 'QEMU_START_FAILED',
      attempted: 'start QEMU for the VM',
      subject: 'bare',
      reason: expect.stringContaining('/nowhere/vmlinuz'),
      remedy: expect.stringContaining('qemu.log'),
    });
  });

  test('has the words of this start, and not of an earlier one', async () => {
    await failureOf({ incoming: false, kernel: { kernelPath: '/nowhere/first', initrdPath: '/nowhere/initrd' } });
    const second = (await failureOf({
      incoming: false,
      kernel: { kernelPath: '/nowhere/second', initrdPath: '/nowhere/initrd' },
    })) as { reason: string };
    expect(second.reason).toContain('/nowhere/second');
    expect(second.reason).not.toContain('/nowhere/first');
    expect(qemus.qemuLog).toContain('/nowhere/first');
  });

  test('a QEMU that is not there is missing; one that says nothing is told by its end', async () => {
    expect(await failureOf({ qemuPath: '/nowhere/qemu' })).toMatchObject({
      code: 'QEMU_MISSING',
      subject: '/nowhere/qemu',
      remedy: expect.stringContaining('apt-get install'),
    });
    expect(await failureOf({ qemuPath: qemus.dir })).toMatchObject({ code: 'QEMU_MISSING' });
    expect(await failureOf({ qemuPath: '/bin/false' })).toMatchObject({
      code: 'QEMU_START_FAILED',
      reason: expect.stringContaining('exit code 1'),
    });
  });

  test('something that is no QEMU and never answers is given up', async () => {
    const script = join(qemus.dir, 'silent.log');
    writeFileSync(script, '#!/bin/sh\nexec sleep 60\n', { mode: 0o700 });
    expect(await failureOf({ qemuPath: script, startTimeoutMs: 300 })).toMatchObject({ code: 'QMP_CLOSED' });
    rmSync(script);
  });

  test('so is a QEMU into which the shim can not be loaded', async () => {
    // The shell gets the shim, and QEMU after it does not.
    const wrapper = join(qemus.dir, 'wrapper.log');
    writeFileSync(wrapper, `#!/bin/sh\nexec ${(await findQemu()).path} "$@"\n`, { mode: 0o700 });
    expect(await failureOf({ qemuPath: wrapper })).toMatchObject({
      code: 'QEMU_START_FAILED',
      reason: expect.stringMatching(/shim did not start/),
    });
    rmSync(wrapper);
  });

  test('in what the caller does with the process is the caller’s failure', async () => {
    const error = await failureOf({
      onSpawn: () => {
        throw new Error('no cgroup');
      },
    });
    expect(error).toMatchObject({ message: 'no cgroup' });
  });

  test('by a caller that gives up, at any moment', async () => {
    for (const delayMs of [0, 1, 5, 20, 40]) {
      const giveUp = new AbortController();
      const timer = setTimeout(() => giveUp.abort(), delayMs);
      if (delayMs === 0) giveUp.abort();
      const before = openFiles();
      const outcome = await qemus.launch({ signal: giveUp.signal }).catch((error: unknown) => error);
      clearTimeout(timer);
      if (outcome instanceof QemuProcess) await outcome.dispose();
      else expect(outcome).toMatchObject({ code: expect.stringMatching(/^(QEMU_START_FAILED|QMP_CLOSED)$/) });
      await until('the closing of files', () => openFiles().length === before.length, 2000).catch(() => {});
      expect([openFiles(), sockets()]).toEqual([before, []]);
    }
  });
});
