/** Pauses that QEMU is told of without its monitor: what they do, and that no end of either side leaves a guest standing. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, readSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CHECKOUT } from '../harness/checkout.js';
import type { DoomedTask } from '../harness/doomed-manager.js';
import type { ShadowImage } from '../src/native/image.js';
import type { EpochSource } from '../src/native/memory.js';
import { cutEpoch, endsProtection, needsResync } from '../src/protect/epoch.js';
import { QEMU_FD } from '../src/qemu/argv.js';
import { QemuProcess } from '../src/qemu/process.js';
import { MIB } from '../src/vm/spec.js';
import { BareQemus, until } from './bare-qemu.js';
import { qemuVersions } from './qemu10.js';
import { commit, differences, TestImages, trackedEpochs } from './test-image.js';

const RAM_BYTES = 128 * MIB;
const TIMEOUT_MS = 2000;
/** Of a guest whose manager was killed, to run again: native/shim/pause.c looks each 10 ms. */
const LET_GO_MS_MAX = 500;

describe.each(qemuVersions)('QEMU %s', (_version, use) => {
  const images = new TestImages();
  let leave: () => void;
  let qemus: BareQemus;
  let primary: QemuProcess;
  let image: ShadowImage;
  let source: EpochSource;
  beforeAll(async () => {
    leave = use();
    qemus = await BareQemus.open();
    primary = await qemus.boot(RAM_BYTES);
    ({ image, source } = await trackedEpochs(primary, images));
  });
  afterAll(async () => {
    source.close();
    await qemus.close();
    await images.close();
    leave();
  });

  const runs = async () => (await primary.qmp.execute('query-status')).running;
  async function expectGuestRuns(): Promise<void> {
    const { beats } = primary.agent;
    await until('heartbeats', () => primary.agent.beats > beats + 1);
    expect(await runs()).toBe(true);
  }
  /** Cuts an epoch that leaves the guest stopped, and compares the image with it. */
  async function expectImageFollows(): Promise<void> {
    const cut = await cutEpoch(primary, source, true);
    await commit(source, cut.deviceState);
    expect(await differences(primary.ram, image)).toBe(0);
    await primary.qmp.execute('cont');
    await expectGuestRuns();
  }

  test('saves the devices and collects the pages of one moment; the guest runs on', async () => {
    expect(primary.servesPauses).toBe(true);
    const states = new Set<string>();
    let changedPages = 0;
    for (let i = 0; i < 20; i++) {
      const beforeNs = process.hrtime.bigint();
      const cut = await cutEpoch(primary, source);
      expect(cut.cutAtNs).toBeGreaterThan(beforeNs);
      expect(cut.cutAtNs).toBeLessThan(process.hrtime.bigint());
      expect(Math.abs(Date.now() - cut.cutAtMs)).toBeLessThan(TIMEOUT_MS);
      expect(cut.pauseMs).toBeLessThan(TIMEOUT_MS);
      expect(cut.deviceState.length).toBeGreaterThan(1000);
      states.add(cut.deviceState.toString('latin1'));
      changedPages += (await commit(source, cut.deviceState)).changedPages;
      await sleep(20);
    }
    expect(states.size).toBe(20); // each is of its own moment
    expect(changedPages).toBeGreaterThan(0);
    await expectImageFollows();
  });

  test('an epoch is committed behind its pause, without the event loop', async () => {
    for (let i = 0; i < 10; i++) {
      const commitBehind = () => source.commitBehind({ generation: 1 }, primary.deviceStateFd, null);
      const { committing, deviceState } = await cutEpoch(primary, source, false, { quiet: i % 2 === 0, commitBehind });
      const { epoch } = (await committing) ?? expect.fail('it was not committed');
      expect(epoch).toBe(image.describe().headEpoch);
      expect(deviceState.equals(await image.deviceState(epoch))).toBe(true);
      await sleep(20);
    }
    await expectImageFollows();
  });

  test('what a pause has not cut is not committed behind it', async () => {
    const before = image.describe().headEpoch;
    const outcomes = async (options: { hold?: number; pagesMax?: number; countOffset?: number }) => {
      const pausing = source.collectPaused({ timeoutMs: TIMEOUT_MS, ...options }).catch((error: unknown) => error);
      const order = () => source.commitBehind({ generation: 1 }, primary.deviceStateFd, null);
      const [committing, third] = [order(), order().catch((error: unknown) => error)];
      expect(await third).toMatchObject({ code: 'ERR_BUSY' });
      return [await pausing, await committing];
    };
    expect(await outcomes({ hold: 3 })).toMatchObject([{ holdFailed: true }, null]);
    expect(await outcomes({ countOffset: RAM_BYTES - 1 })).toMatchObject([{ code: 'ERR_OUT_OF_RANGE' }, null]);
    await sleep(100); // an idle guest writes more than this
    expect(await outcomes({ pagesMax: 1 })).toMatchObject([{ complete: false }, null]);
    expect(await source.commitBehind({ generation: 1 }, primary.deviceStateFd, null)).toBe(null);
    await expect(source.commitBehind({ generation: 1 }, 1_000_000, null)).rejects.toMatchObject({ code: 'EBADF' });
    expect(image.describe().headEpoch).toBe(before);
    await expectImageFollows();
  });

  test('a counter is read while the guest stands', async () => {
    let offset = 32 * MIB;
    while (wordAt(offset) === 0) offset += 2;
    const { count } = await source.collectPaused({ timeoutMs: TIMEOUT_MS, countOffset: offset });
    expect(count).toBe(wordAt(offset));
    await expect(source.collectPaused({ timeoutMs: TIMEOUT_MS, countOffset: RAM_BYTES - 1 })).rejects.toMatchObject({
      code: 'ERR_OUT_OF_RANGE',
    });
    await source.abort();
    await expectGuestRuns(); // though that failed while it stood
  });

  function wordAt(offset: number): number {
    const word = Buffer.alloc(2);
    readSync(primary.ram.fd, word, 0, 2, offset);
    return word.readUInt16LE();
  }

  test('a hold that there is not is told of, and costs no epoch', async () => {
    const pause = await source.collectPaused({ timeoutMs: TIMEOUT_MS, hold: 3 });
    expect(pause).toMatchObject({ complete: true, holdFailed: true });
    expect(await source.collectPaused({ timeoutMs: TIMEOUT_MS })).toMatchObject({ holdFailed: false });
    primary.control.releaseHolds(0b1001); // nor are these
    await until('an answer', () => primary.control.releaseHolds(0));
    await expectImageFollows();
  });

  test('what it was to let go and has not begun to is known, whenever it ends', async () => {
    primary.freeze();
    await until('its stop', () => /^State:\tT/m.test(readFileSync(`/proc/${primary.pid}/status`, 'utf8')));
    primary.control.releaseHolds(0b1001);
    expect(primary.control.unreleasedHolds()).toBe(0b1001);
    primary.handle.signal(18); // SIGCONT
    await until('an answer', () => primary.control.releaseHolds(0));
    expect(primary.control.unreleasedHolds()).toBe(0);
    await expectGuestRuns();
  });

  test.each([
    [{}, 'timeoutMs'],
    [{ timeoutMs: 0 }, 'timeoutMs'],
    [{ timeoutMs: TIMEOUT_MS, pagesMax: 0 }, 'pagesMax'],
    [{ timeoutMs: TIMEOUT_MS, hold: 8 }, 'hold'],
    [{ timeoutMs: TIMEOUT_MS, hold: -1 }, 'hold'],
    [{ timeoutMs: TIMEOUT_MS, countOffset: 0.5 }, 'countOffset'],
  ])('%j is refused', async (options, what) => {
    await expect(source.collectPaused(options as { timeoutMs: number })).rejects.toMatchObject({
      syscall: 'collectPaused',
      message: expect.stringContaining(what),
    });
    expect(() => primary.control.releaseHolds(256)).toThrow(RangeError);
  });

  test('a QEMU that does not answer costs the epoch; when it goes on, its guest runs, and the next epoch catches up', async () => {
    primary.freeze();
    const error: unknown = await cutEpoch(primary, source).catch((thrown: unknown) => thrown);
    primary.handle.signal(18); // SIGCONT
    expect(error).toMatchObject({ code: 'EPOCH_FAILED', reason: expect.stringContaining('did not stop in time') });
    expect([endsProtection(error), needsResync(error)]).toEqual([false, false]);
    await expectGuestRuns();
    await expectImageFollows();
  });

  test('one whose monitor is cut off is waited for no longer, nor is one that dies', async () => {
    for (const end of ['cut off', 'killed']) {
      const other = await qemus.launch();
      const { source: its } = await trackedEpochs(other, images);
      other.freeze();
      const cutting = cutEpoch(other, its).catch((thrown: unknown) => thrown);
      await sleep(20);
      const endedMs = performance.now();
      if (end === 'killed') other.kill();
      else other.qmp.destroy();
      expect(endsProtection(await cutting)).toBe(true);
      expect(performance.now() - endedMs).toBeLessThan(LET_GO_MS_MAX);
      its.close();
      await other.dispose();
    }
  });

  describe('a manager', () => {
    let launch: ReturnType<BareQemus['launchOptions']>;
    let pid: number;
    beforeAll(async () => {
      launch = qemus.launchOptions({ incoming: false, spec: { name: 'bare', ramBytes: RAM_BYTES, vcpus: 1 } });
      const qemu = qemus.own(await QemuProcess.launch(launch));
      await until('the first heartbeat', () => qemu.agent.beats > 0, 90_000);
      ({ pid } = qemu);
      qemu.leave();
    });
    // Nobody's any more, after each of its managers.
    afterAll(() => void process.kill(pid, 'SIGKILL'));

    const adopt = async () => {
      const { runDir, tag } = launch;
      return qemus.own(await QemuProcess.adopt({ vm: 'bare', pid, runDir, tag }));
    };

    async function startManager(fault: string): Promise<ChildProcess> {
      const { runDir, tag } = launch;
      const imagePath = join(images.folder, 'doomed');
      rmSync(imagePath, { recursive: true, force: true });
      const task: DoomedTask = { kind: 'collect', adopt: { vm: 'bare', pid, runDir, tag }, imagePath };
      const manager = spawn(
        process.execPath,
        [join(CHECKOUT, 'dist/harness/doomed-manager.js'), JSON.stringify(task)],
        {
          stdio: ['ignore', 'pipe', 'inherit'],
          env: { ...process.env, SHADOWVM_FAULT: fault },
        },
      );
      await once(manager.stdout as NodeJS.EventEmitter, 'data');
      return manager;
    }

    test.each(['pause:1:20', 'pause:2:20'])(
      'that dies in the middle (%s): the guest runs on without it',
      async (fault) => {
        const manager = await startManager(fault);
        if (manager.signalCode === null) await once(manager, 'exit');
        expect(manager.signalCode).toBe('SIGKILL');
        await sleep(LET_GO_MS_MAX);
        const next = await adopt();
        expect((await next.qmp.execute('query-status')).running).toBe(true);
        const { beats } = next.agent;
        await until('heartbeats', () => next.agent.beats > beats + 1);
        next.leave();
      },
    );

    test('that dies in the middle, and another one that comes at once', async () => {
      const manager = await startManager('pause:1:20');
      if (manager.signalCode === null) await once(manager, 'exit');
      const next = await adopt();
      const { beats } = next.agent;
      await until('heartbeats', () => next.agent.beats > beats + 1, LET_GO_MS_MAX + 2000);
      next.leave();
    });

    test('that does not get on: the guest is let go, and the pages are of no one moment', async () => {
      const manager = await startManager('pause:1:20:stop');
      await until('its stop', () => /^State:\tT/m.test(readFileSync(`/proc/${manager.pid}/status`, 'utf8')));
      await sleep(TIMEOUT_MS + LET_GO_MS_MAX);
      const before = hashOfRam();
      await sleep(LET_GO_MS_MAX);
      expect(hashOfRam()).not.toBe(before);
      const said = once(manager.stdout as NodeJS.EventEmitter, 'data');
      manager.kill('SIGCONT');
      expect(String(await said)).toBe('ERR_PAUSE\n');
      const ended = once(manager, 'exit');
      manager.kill('SIGKILL');
      await ended;
    });

    const hashOfRam = () =>
      createHash('sha1')
        .update(readFileSync(`/proc/${pid}/fd/${QEMU_FD.ram}`))
        .digest('hex');
  });
});
