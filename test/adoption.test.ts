/** A manager is killed in the middle of its work: the guest goes on, and the next manager takes its QEMU over. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CHECKOUT } from '../harness/checkout.js';
import type { DoomedTask } from '../harness/doomed-manager.js';
import { adoptFile, GuestRam, QemuControl } from '../src/native/memory.js';
import { Pager, type PagerTrouble, RamPageSource } from '../src/native/pager.js';
import { type AdoptOptions, type LaunchOptions, QemuProcess } from '../src/qemu/process.js';
import { QmpClient } from '../src/qemu/qmp.js';
import { MIB } from '../src/vm/spec.js';
import { BareQemus, isAlive, openFiles, until } from './bare-qemu.js';
import { qemuVersions } from './qemu10.js';

const RAM_BYTES = 192 * MIB;
const UID = 1_900_000_779;
/** Several times what the shim takes at the longest. */
const RESCUE_MS_MAX = 2000;
const spec = { name: 'bare', ramBytes: RAM_BYTES, vcpus: 1 };

let qemus: BareQemus;

/** How far memcheck is, and what it found wrong. */
function memcheck(qemu: QemuProcess): { writes: number; bad: number } {
  const [, writes, bad] = /^memcheck i=(\d+) rounds=\d+ bad=(\d+)$/.exec(qemu.agent.last?.app ?? '') ?? [];
  return { writes: Number(writes), bad: Number(bad) };
}

async function expectMemcheckGoesOn(qemu: QemuProcess): Promise<void> {
  await until('a heartbeat', () => qemu.agent.beats > 0);
  const at = memcheck(qemu).writes;
  await until('a round of memcheck', () => memcheck(qemu).writes > at + 16 * 256);
  expect(memcheck(qemu).bad).toBe(0);
}

async function bootMemcheck(): Promise<{ qemu: QemuProcess; launch: LaunchOptions }> {
  const launch = qemus.launchOptions({ incoming: false, spec, uid: UID });
  const qemu = qemus.own(await QemuProcess.launch(launch));
  await until('the first heartbeat', () => qemu.agent.beats > 0, 90_000);
  expect(await qemu.agent.exec('shadowvm-guest memcheck 16 8000 &')).toBe(0);
  await until('memcheck', () => memcheck(qemu).writes > 16 * 256);
  return { qemu, launch };
}

/** A manager that works, in a process of its own. */
async function startDoomed(task: DoomedTask): Promise<{ manager: ChildProcess; pid: number }> {
  const manager = spawn(process.execPath, [join(CHECKOUT, 'dist/harness/doomed-manager.js'), JSON.stringify(task)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await Promise.race([
    once(manager.stdout as NodeJS.EventEmitter, 'data'),
    once(manager, 'exit').then(() => Promise.reject(new Error('the doomed manager ended by itself'))),
  ])) as [Buffer];
  return { manager, pid: (JSON.parse(line.toString()) as { pid: number }).pid };
}

async function kill(manager: ChildProcess): Promise<void> {
  const ended = once(manager, 'exit');
  manager.kill('SIGKILL');
  expect(await ended).toEqual([null, 'SIGKILL']);
}

const adoptionOf = ({ runDir, tag }: LaunchOptions, pid: number) => ({ vm: 'bare', pid, runDir, tag });

describe.each(qemuVersions)('QEMU %s', (_version, use) => {
  let leave: () => void;
  beforeAll(async () => {
    leave = use();
    qemus = await BareQemus.open();
  });
  afterAll(async () => {
    await qemus.close();
    leave();
  });

  test('a manager that leaves takes nothing with it, and the next one has everything', async () => {
    const before = openFiles();
    const { qemu, launch } = await bootMemcheck();
    qemu.leave();
    qemu.leave();
    expect(openFiles()).toEqual(before);
    expect(isAlive(qemu.pid)).toBe(true);
    const adopted = await QemuProcess.adopt(adoptionOf(launch, qemu.pid));
    expect(adopted.control.read()).toMatchObject({ alive: true, tracking: 'registered', ramBytes: RAM_BYTES });
    expect(adopted.ram.bytes).toBe(RAM_BYTES);
    expect(adopted.writeTracking.usable).toBe(true);
    expect((await adopted.qmp.execute('query-status')).running).toBe(true);
    await expectMemcheckGoesOn(adopted);
    await adopted.qmp.execute('stop');
    await adopted.saveDevices(5000);
    expect(adopted.readDevices().length).toBeGreaterThan(1000);
    const order: string[] = [];
    void adopted.died.then(() => order.push('died'));
    void adopted.exited.then(() => order.push('exited'));
    process.kill(adopted.pid, 'SIGKILL');
    await until('its end', () => order.length === 2);
    expect(order).toEqual(['died', 'exited']);
    await adopted.dispose();
    await adopted.dispose();
    expect(openFiles()).toEqual(before);
    await expect(QemuProcess.adopt(adoptionOf(launch, 2 ** 22 + 1))).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await expect(QemuProcess.adopt(adoptionOf(launch, process.pid))).rejects.toMatchObject({ code: 'NATIVE_ERROR' });
    expect(openFiles()).toEqual(before);
  });

  test('killed in a pause, at any moment of it: the guest goes on before there is another manager', async () => {
    const { qemu, launch } = await bootMemcheck();
    const { pid } = qemu;
    qemu.leave();
    for (let round = 0; round < 6; round++) {
      const { manager } = await startDoomed({ kind: 'pause', adopt: adoptionOf(launch, pid) });
      await sleep(round * 1.3);
      await kill(manager);
      const killedMs = performance.now();
      const qmp = await QmpClient.connect(join(launch.runDir, `${launch.tag}.qmp`), 'bare');
      let running = false;
      while (!running && performance.now() < killedMs + RESCUE_MS_MAX) {
        running = (await qmp.execute('query-status')).running;
        if (!running) await sleep(2);
      }
      qmp.destroy();
      expect(running).toBe(true);
    }
    const adopted = qemus.own(await QemuProcess.adopt(adoptionOf(launch, pid)));
    expect(adopted.control.read().pausedForEpoch).toBe(false);
    await expectMemcheckGoesOn(adopted);
    await adopted.dispose();
  });

  test('gone while the guest stands for another reason: it stands, also for the next manager', async () => {
    const { qemu, launch } = await bootMemcheck();
    await qemu.qmp.execute('stop');
    qemu.leave();
    await sleep(400);
    const adopted = qemus.own(await QemuProcess.adopt(adoptionOf(launch, qemu.pid)));
    expect((await adopted.qmp.execute('query-status')).running).toBe(false);
    await adopted.dispose();
  });

  test('killed in the middle of a fill: the next one finishes it; then no manager is needed for what is missing', async () => {
    const { qemu: golden } = await bootMemcheck();
    await golden.qmp.execute('stop');
    await golden.saveDevices(5000);
    golden.kill();
    const deviceStatePath = join(qemus.dir, 'golden.state.log');
    writeFileSync(deviceStatePath, golden.readDevices());
    const delaysMs = [0, 30, 100];
    for (const delayMs of delaysMs) {
      const launch = qemus.launchOptions({ spec, uid: UID, lazy: true });
      const source = { pid: process.pid, fd: golden.ram.fd };
      const fillBytesPerSecond = 10 * MIB;
      const task = { kind: 'fill', launch, source, deviceStatePath, fillBytesPerSecond } as const;
      const { manager, pid } = await startDoomed(task);
      await sleep(delayMs);
      await kill(manager);
      let pager: Pager | undefined;
      let filled: Promise<unknown> | undefined;
      const onMemory: AdoptOptions['onMemory'] = (memory) => {
        expect(memory.control.read()).toMatchObject({ alive: true, lazy: true, filled: false });
        const onTrouble = (trouble: PagerTrouble) => expect(trouble).toBeUndefined();
        pager = new Pager({ ...memory, source: new RamPageSource(golden.ram), onTrouble });
        filled = pager.start();
      };
      const adopted = qemus.own(await QemuProcess.adopt({ ...adoptionOf(launch, pid), onMemory }));
      const { control, ram } = adopted;
      await filled;
      expect(control.read().filled).toBe(true);
      pager?.close();
      await expectMemcheckGoesOn(adopted);
      if (delayMs !== delaysMs.at(-1)) {
        await adopted.dispose();
        continue;
      }

      // Pages that were never used, and others that are given back, with no pager and then with no manager either.
      const resident = ram.residentBytes();
      expect(await adopted.agent.exec('dd if=/dev/zero of=/dev/shm/x bs=1M count=40 && rm /dev/shm/x')).toBe(0);
      expect(ram.residentBytes()).toBeGreaterThan(resident);
      await adopted.agent.exec(
        '(sleep 0.5; while :; do dd if=/dev/zero of=/dev/shm/x bs=1M count=48; rm /dev/shm/x; done) &',
      );
      adopted.leave();
      await sleep(1500);
      const again = qemus.own(await QemuProcess.adopt(adoptionOf(launch, pid)));
      await expectMemcheckGoesOn(again);
      await again.dispose();
    }
  });
});

describe('adoption refuses', () => {
  test.each([undefined, null, 'x', {}, -1, 1.5, 2 ** 31])('numbers that are none: %s', (value) => {
    const pid = value as number;
    for (const act of [
      () => QemuControl.adopt(pid),
      () => GuestRam.adopt(pid, 3),
      () => GuestRam.adopt(process.pid, pid),
      () => adoptFile(pid, 3),
      () => adoptFile(process.pid, pid),
    ])
      expect(act).toThrow(
        expect.objectContaining({ code: expect.stringMatching(/^ERR_(INVALID_ARG_TYPE|OUT_OF_RANGE)$/) }),
      );
  });

  test('what is no QEMU of ours', () => {
    const before = openFiles();
    const failure = (code: string) => expect.objectContaining({ code });
    expect(() => GuestRam.adopt(process.pid, 1)).toThrow(failure('ERR_NOT_SEALED'));
    expect(() => adoptFile(process.pid, 1_000_000)).toThrow(failure('EBADF'));
    expect(() => adoptFile(2 ** 22 + 1, 1)).toThrow(failure('ESRCH'));
    expect(openFiles()).toEqual(before);
  });
});
