/** The pass of a pause over two threads, and what a quiet VM is spared; on a guest large enough for a second thread. */
import { readdirSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ShadowImage } from '../src/native/image.js';
import type { EpochSource } from '../src/native/memory.js';
import { cutEpoch } from '../src/protect/epoch.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { MIB } from '../src/vm/spec.js';
import { BareQemus } from './bare-qemu.js';
import { commit, differences, TestImages, trackedEpochs } from './test-image.js';

const RAM_BYTES = 640 * MIB;
const BURST_PAGES = 32 * 256;
/** src/protect/epoch.ts */
const SURPRISE_PAGES_MAX = 1024;

let qemus: BareQemus;
let primary: QemuProcess;
let source: EpochSource;
let image: ShadowImage;
const images = new TestImages();
beforeAll(async () => {
  qemus = await BareQemus.open();
  primary = await qemus.boot(RAM_BYTES);
  ({ image, source } = await trackedEpochs(primary, images));
});
afterAll(async () => {
  source.close();
  await qemus.close();
  await images.close();
});

const scanThreads = () =>
  readdirSync('/proc/self/task').filter(
    (tid) => readFileSync(`/proc/self/task/${tid}/comm`, 'utf8').trim() === 'shadowvm-scan',
  ).length;

/** The guest writes 32 MiB. */
async function burst(): Promise<void> {
  expect(await primary.agent.exec('shadowvm-guest memwriter 32 0 & sleep 1; kill $!')).toBe(0);
}

async function differencesAfter(cut: () => Promise<unknown>): Promise<number> {
  await cut();
  await commit(source);
  return differences(primary.ram, image);
}

test('two threads find what one would: after each epoch the image is what the guest was', async () => {
  expect(scanThreads()).toBe(1);
  expect(await primary.agent.exec('shadowvm-guest memwriter 96 40 & echo $! > /tmp/writer')).toBe(0);
  for (let i = 0; i < 12; i++) {
    expect(await differencesAfter(() => cutEpoch(primary, source, true))).toBe(0);
    await primary.qmp.execute('cont');
  }
  // Without a pre-copy, so that the threads have much to find.
  await burst();
  await primary.qmp.execute('stop');
  expect(await differencesAfter(() => source.collect({ urgent: true }))).toBe(0);
  await primary.qmp.execute('cont');
  expect(await primary.agent.exec('kill $(cat /tmp/writer)')).toBe(0);
});

test('a pass with a limit ends at it, and the next one finds the rest', async () => {
  for (const urgent of [false, true]) {
    await burst();
    await primary.qmp.execute('stop');
    const pagesMax = 1000;
    const first = await source.collect({ urgent, pagesMax });
    expect(first.complete).toBe(false);
    expect(first.copiedPages).toBeGreaterThanOrEqual(pagesMax);
    expect(first.copiedPages).toBeLessThanOrEqual(pagesMax * (urgent ? 2 : 1));
    const rest = await source.collect({ urgent });
    expect(rest.complete).toBe(true);
    expect(first.copiedPages + rest.copiedPages).toBeGreaterThanOrEqual(BURST_PAGES);
    expect(await differencesAfter(async () => {})).toBe(0);
    // Nothing is left, so that the smallest limit is not reached.
    expect(await source.collect({ urgent, pagesMax: 1 })).toMatchObject({ complete: true, copiedPages: 0 });
    await primary.qmp.execute('cont');
  }
});

test.each([0, -1, 1.5, '7'])('a limit of %s pages is refused', async (pagesMax) => {
  await expect(source.collect({ pagesMax: pagesMax as number })).rejects.toMatchObject({ syscall: 'collect' });
});

test('a quiet VM is spared the pre-copy; one that no longer is runs on instead of waiting for a long copy', async () => {
  const pauses: boolean[] = [];
  const cut = (quiet: boolean) => cutEpoch(primary, source, false, { onPause: (paused) => pauses.push(paused), quiet });
  let quiet = false;
  for (let i = 0; i < 20 && !quiet; i++) {
    ({ quiet } = await cut(false));
    await commit(source);
  }
  expect(quiet).toBe(true);
  pauses.length = 0;
  ({ quiet } = await cut(true));
  expect([pauses, quiet]).toEqual([[true, false], true]);
  await commit(source);

  await burst();
  pauses.length = 0;
  const surprised = await cut(true);
  expect([pauses, surprised.quiet]).toEqual([[true, false, true, false], false]);
  expect(surprised.copiedPages).toBeGreaterThan(SURPRISE_PAGES_MAX);
  await commit(source);
  expect(await differencesAfter(() => cutEpoch(primary, source, true, { quiet: true }))).toBe(0);
  await primary.qmp.execute('cont');
});

test('the second thread ends with its source', () => {
  source.close();
  expect(scanThreads()).toBe(0);
});
