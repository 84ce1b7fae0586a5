/** A guest that goes on in a QEMU whose memory is empty: its pages come when it touches them, and the rest behind. */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { EpochSource, GuestRam } from '../src/native/memory.js';
import { Pager, type PagerTrouble, RamPageSource } from '../src/native/pager.js';
import { cutEpoch } from '../src/protect/epoch.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { MIB } from '../src/vm/spec.js';
import { BareQemus, until } from './bare-qemu.js';
import { qemuVersions } from './qemu10.js';
import { commit, differences, TestImages } from './test-image.js';

const PAGE = 4096;
const RAM_BYTES = 192 * MIB;
const UID = 1_900_000_778;

const images = new TestImages();
afterAll(() => images.close());
let qemus: BareQemus;
/** What a guest was when it stood still; its process is gone. */
let golden: { ram: GuestRam; deviceState: Buffer; writes: number };
const pagers: Pager[] = [];

/** How far memcheck is, and what it found wrong. */
function memcheck(qemu: QemuProcess): { writes: number; bad: number } {
  const [, writes, bad] = /^memcheck i=(\d+) rounds=\d+ bad=(\d+)$/.exec(qemu.agent.last?.app ?? '') ?? [];
  return { writes: Number(writes), bad: Number(bad) };
}

async function open(): Promise<void> {
  qemus = await BareQemus.open();
  const primary = await qemus.boot(RAM_BYTES);
  expect(await primary.agent.exec('shadowvm-guest memcheck 16 8000 &')).toBe(0);
  await until('memcheck', () => memcheck(primary).writes > 16 * 256);
  await primary.qmp.execute('stop');
  await primary.saveDevices(5000);
  primary.kill();
  golden = { ram: primary.ram, deviceState: primary.readDevices(), writes: memcheck(primary).writes };
}

const launchLazy = (options = {}) =>
  qemus.launch({ spec: { name: 'bare', ramBytes: RAM_BYTES, vcpus: 1 }, lazy: true, ...options });

function pagerOf(qemu: QemuProcess, onTrouble = (trouble: PagerTrouble) => expect(trouble).toBeUndefined()): Pager {
  const { control, pid, ram } = qemu;
  const pager = new Pager({ control, pid, ram, source: new RamPageSource(golden.ram), onTrouble });
  pagers.push(pager);
  return pager;
}

/** Of QEMU's own mapping of the RAM: pages that are there, and how many of them are write-protected. */
function mapped(qemu: QemuProcess): { present: number; protected: number } {
  const line = readFileSync(`/proc/${qemu.pid}/maps`, 'utf8')
    .split('\n')
    .find((each) => each.includes('memfd:shadowvm-bare ('));
  const from = Number.parseInt(line?.split('-')[0] as string, 16) / PAGE;
  const entries = Buffer.alloc((RAM_BYTES / PAGE) * 8);
  const fd = openSync(`/proc/${qemu.pid}/pagemap`, 'r');
  expect(readSync(fd, entries, 0, entries.length, from * 8)).toBe(entries.length);
  closeSync(fd);
  const count = { present: 0, protected: 0 };
  // Documentation/admin-guide/mm/pagemap.rst: bit 63 is "present", bit 57 "write-protected by userfaultfd".
  for (let at = 0; at < entries.length; at += 8) {
    const bits = entries.readUInt32LE(at + 4);
    if (bits >>> 31 === 0) continue;
    count.present++;
    if ((bits >>> 25) & 1) count.protected++;
  }
  return count;
}

describe.each(qemuVersions)('QEMU %s', (_version, use) => {
  let leave: () => void;
  beforeAll(async () => {
    leave = use();
    await open();
  });
  afterEach(() => {
    for (const pager of pagers.splice(0)) pager.close();
  });
  afterAll(async () => {
    await qemus.close();
    leave();
  });

  test('its memory is empty, and after a fill what the source is: write-protected, with no memory for zeros', async () => {
    const shadow = await launchLazy({ uid: UID });
    expect(shadow.control.read()).toMatchObject({ lazy: true, tracking: 'registered' });
    expect(shadow.ram.residentBytes()).toBe(0);
    const pager = pagerOf(shadow);
    const filled = await pager.start();
    expect(shadow.ram.differences(golden.ram)).toBe(0);
    expect(shadow.ram.residentBytes()).toBe(filled.pages * PAGE);
    expect(filled.pages * PAGE).toBeLessThanOrEqual(golden.ram.residentBytes());
    expect(mapped(shadow)).toEqual({ present: filled.pages, protected: filled.pages });
    expect(pager.stats()).toMatchObject({ filledPages: filled.pages, filling: false });
    await shadow.dispose();
  });

  test('a guest goes on at once, and is protected again from what it was promoted from', async () => {
    const shadow = await launchLazy({ uid: UID });
    const pager = pagerOf(shadow);
    const filling = pager.start();
    await shadow.loadDevices(golden.deviceState, 10_000);
    await shadow.qmp.execute('cont');
    await until('the first heartbeat', () => shadow.agent.beats > 0);
    const filled = await filling;
    expect(memcheck(shadow).writes).toBeGreaterThanOrEqual(golden.writes);
    expect(filled.faults).toBeGreaterThan(0);
    const at = memcheck(shadow).writes;
    await until('two rounds of memcheck', () => memcheck(shadow).writes > at + 2 * 16 * 256);
    expect(memcheck(shadow).bad).toBe(0);
    const { present, protected: clean } = mapped(shadow);
    expect(clean).toBeLessThan(present);
    expect(clean).toBeGreaterThan(present / 2);

    // Tracking sees what is written from now on, through the same registration.
    const { ram, control, pid } = shadow;
    const image = await images.create(RAM_BYTES);
    const epochs = new EpochSource({ ram, control, pid, tracking: 'write', image: image.native });
    await epochs.sync();
    const cut = await cutEpoch(shadow, epochs, true);
    await commit(epochs);
    expect(await differences(shadow.ram, image)).toBe(0);
    expect(cut.copiedPages).toBeGreaterThan(0);
    expect(cut.copiedPages).toBeLessThan(present / 2);
    epochs.close();
    await shadow.dispose();
  });

  test('what one awakening waited for comes first in the next; the file is believed only where the source agrees', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'shadowvm-hot-'));
    const hotPath = join(folder, 'hot');
    /** Wakes the guest up while nothing is filled behind it, but what is in the file. */
    const wake = async (path: string) => {
      const shadow = await launchLazy();
      const pager = pagerOf(shadow);
      pager.throttle(1);
      const hot = path === '' ? 0 : readFileSync(path).readUInt32LE(8);
      const ended = expect(pager.start(path)).rejects.toMatchObject({ code: 'ERR_VM_DEAD' });
      await until('the hot pages', () => pager.stats().filledPages === hot);
      await shadow.loadDevices(golden.deviceState, 10_000);
      await shadow.qmp.execute('cont');
      await until('pages that the guest waits for', () => pager.stats().faults >= 100);
      await shadow.qmp.execute('stop');
      return { shadow, pager, ended, faults: pager.stats().faults };
    };
    try {
      const first = await wake('');
      const needed = first.pager.needed();
      expect(needed.length).toBeGreaterThan(50);
      await first.pager.keepHot(hotPath, needed);
      await expect(first.pager.keepHot(join(folder, 'no', 'hot'), needed)).rejects.toMatchObject({ code: 'ENOENT' });
      await first.shadow.dispose();
      await first.ended;

      // What it needs depends on how far memcheck comes; it waits for none of those that the first waited for.
      const second = await wake(hotPath);
      const neededNow = second.pager.needed();
      expect([...neededNow.slice(0, needed.length)]).toEqual([...needed]);
      const waitedAgain = second.faults - (neededNow.length - needed.length);
      expect(waitedAgain).toBeLessThan(needed.length / 10);
      await second.shadow.dispose();
      await second.ended;

      // The file of another guest, one that is cut short, one with other bytes: the RAM is what the source says.
      const whole = readFileSync(hotPath);
      const numbers = 12 + 4 * needed.length;
      const others = Buffer.from(whole);
      for (let i = 0; i < needed.length; i++) others.writeUInt32LE(needed.at(-1 - i) as number, 12 + 4 * i);
      const flipped = Buffer.from(whole);
      for (let i = numbers; i < flipped.length; i += 997) flipped[i]! ^= 0x5a;
      const huge = Buffer.from(whole);
      huge.writeUInt32LE(0xffff_ffff, 8);
      for (const bytes of [others, flipped, huge, whole.subarray(0, numbers + 9), Buffer.alloc(0), Buffer.from('no')]) {
        writeFileSync(hotPath, bytes);
        const shadow = await launchLazy();
        await pagerOf(shadow).start(hotPath);
        expect(shadow.ram.differences(golden.ram)).toBe(0);
        await shadow.dispose();
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test('what an awakening waited for after a moment is kept apart, and comes behind what was waited for before', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'shadowvm-hot-'));
    const [hotPath, laterPath] = [join(folder, 'hot'), join(folder, 'later')];
    try {
      const first = await launchLazy();
      const pager = pagerOf(first);
      pager.throttle(1);
      const ended = expect(pager.start()).rejects.toMatchObject({ code: 'ERR_VM_DEAD' });
      await first.loadDevices(golden.deviceState, 10_000);
      await first.qmp.execute('cont');
      await until('the moment', () => pager.stats().faults >= 100);
      const needed = pager.needed();
      await until('more pages that the guest waits for', () => pager.stats().faults >= 200);
      const later = pager.needed(needed);
      expect(later.length).toBeGreaterThan(50);
      expect(new Set([...needed, ...later]).size).toBe(needed.length + later.length);
      await pager.keepHot(hotPath, needed);
      await pager.keepHot(laterPath, later);
      await first.dispose();
      await ended;

      const second = await launchLazy();
      const next = pagerOf(second);
      next.throttle(1);
      const endedToo = expect(next.start(hotPath, laterPath)).rejects.toMatchObject({ code: 'ERR_VM_DEAD' });
      await until('both', () => next.stats().filledPages === needed.length + later.length);
      expect(next.needed()).toEqual(needed);
      expect(next.needed(needed)).toEqual(later);
      await second.dispose();
      await endedToo;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test('a page that the guest touches comes before the rest; a fill can be slow without the guest’s noticing', async () => {
    const shadow = await launchLazy();
    const pager = pagerOf(shadow);
    pager.throttle(MIB);
    const filling = pager.start();
    filling.catch(() => {}); // closed below
    await shadow.loadDevices(golden.deviceState, 10_000);
    await shadow.qmp.execute('cont');
    await until('heartbeats', () => shadow.agent.beats > 3);
    const at = memcheck(shadow).writes;
    await until('a round of memcheck', () => memcheck(shadow).writes > at + 16 * 256);
    expect(memcheck(shadow).bad).toBe(0);
    const { filledPages, faults, filling: still } = pager.stats();
    expect(still).toBe(true);
    expect(filledPages).toBeLessThan(faults);
    // Without a pager it stands at the first page that is absent; the next pager wakes it.
    pager.close();
    pager.close();
    await expect(filling).rejects.toMatchObject({ code: 'ERR_CLOSED' });
    const next = pagerOf(shadow);
    await next.start();
    const { beats } = shadow.agent;
    await until('more heartbeats', () => shadow.agent.beats > beats + 3);
    expect(memcheck(shadow).bad).toBe(0);
    await shadow.dispose();
  });

  test('a pager is for a lazy QEMU of the same size, and is started once', async () => {
    const [lazy, eager] = [await launchLazy(), await qemus.launch()];
    const small = new GuestRam('small', PAGE);
    const source = new RamPageSource(golden.ram);
    expect(source.pages).toBe(RAM_BYTES / PAGE);
    const onTrouble = () => {};
    const make = (options: object) => () =>
      new Pager({ control: lazy.control, pid: lazy.pid, ram: lazy.ram, source, onTrouble, ...options });
    const refusals = [
      [make({ control: eager.control, pid: eager.pid, ram: eager.ram }), 'ERR_NOT_LAZY'],
      [make({ ram: small }), 'ERR_SIZE'],
      [make({ source: new RamPageSource(small) }), 'ERR_SIZE'],
      [make({ source: golden.ram }), 'ERR_INVALID_ARG_TYPE'],
      [make({ source: null }), 'ERR_INVALID_ARG_TYPE'],
      [make({ onTrouble: 1 }), 'ERR_INVALID_ARG_TYPE'],
      [make({ faultThreads: 0 }), 'ERR_OUT_OF_RANGE'],
      [make({ pid: 2 ** 22 + 1 }), 'ESRCH'],
      [() => new RamPageSource(lazy.control as never), 'ERR_INVALID_ARG_TYPE'],
    ] as const;
    for (const [refused, code] of refusals) expect(refused).toThrow(expect.objectContaining({ code }));
    const pager = pagerOf(lazy);
    for (const limit of [-1, 1.5, Number.NaN])
      expect(() => pager.throttle(limit)).toThrow(expect.objectContaining({ code: 'ERR_OUT_OF_RANGE' }));
    pager.throttle(MIB);
    const filling = pager.start();
    expect(() => pager.start()).toThrow(expect.objectContaining({ code: 'ERR_BUSY' }));
    lazy.kill();
    await expect(filling).rejects.toMatchObject({ code: 'ERR_VM_DEAD' });
    pager.close();
    for (const late of [() => pager.start(), () => pager.stats(), () => pager.throttle(0)])
      expect(late).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }));
    small.close();
    await Promise.all([lazy.dispose(), eager.dispose()]);
  });

  test('what was given back is zeros, and never its old bytes', async () => {
    const shadow = await launchLazy();
    const pager = pagerOf(shadow);
    pager.throttle(MIB);
    const filling = pager.start();
    // Read by QEMU through its own mapping, as its devices do.
    const read = (page: number) =>
      shadow.qmp.execute('human-monitor-command', { 'command-line': `xp /4xb ${page * PAGE}` });
    const content = Buffer.alloc(4);
    let page = 1;
    do readSync(golden.ram.fd, content, 0, 4, ++page * PAGE);
    while (content.includes(0));
    const bytes = [...content].map((byte) => `0x${byte.toString(16).padStart(2, '0')}`).join(' ');
    expect(await read(page)).toContain(bytes);
    const path = `/proc/${process.pid}/fd/${shadow.ram.fd}`;
    const giveBack = () =>
      execFileSync('fallocate', ['--punch-hole', '--offset', `${page * PAGE}`, '--length', `${PAGE}`, path]);
    giveBack();
    const { faults } = pager.stats();
    expect(await read(page)).toContain('0x00 0x00 0x00 0x00');
    expect(pager.stats()).toMatchObject({ faults: faults + 1, filling: true });
    pager.throttle(0);
    await filling;
    // From here on it is the shim who answers, without a pager.
    pager.close();
    giveBack();
    expect(await read(page)).toContain('0x00 0x00 0x00 0x00');
    expect(shadow.ram.differences(golden.ram)).toBe(1);
    await shadow.dispose();
  });

  test('a guest gives memory back, and takes it again', async () => {
    const shadow = await launchLazy();
    const pager = pagerOf(shadow);
    const filling = pager.start();
    await shadow.loadDevices(golden.deviceState, 10_000);
    await shadow.qmp.execute('cont');
    await until('heartbeats', () => shadow.agent.beats > 1);
    await filling;
    const useAndFree = 'dd if=/dev/zero of=/dev/shm/x bs=1M count=40 && rm /dev/shm/x';
    expect(await shadow.agent.exec(useAndFree)).toBe(0);
    const before = shadow.ram.residentBytes();
    await shadow.qmp.execute('balloon', { value: 152 * MIB });
    await until('memory given back', () => shadow.ram.residentBytes() < before - 4 * MIB);
    await shadow.qmp.execute('balloon', { value: RAM_BYTES });
    const after = shadow.ram.residentBytes();
    for (let i = 0; i < 20 && shadow.ram.residentBytes() < after + MIB; i++) await shadow.agent.exec(useAndFree);
    expect(shadow.ram.residentBytes()).toBeGreaterThanOrEqual(after + MIB);
    const at = memcheck(shadow).writes;
    await until('two rounds of memcheck', () => memcheck(shadow).writes > at + 2 * 16 * 256);
    expect(memcheck(shadow).bad).toBe(0);
    await shadow.dispose();
  });
});
