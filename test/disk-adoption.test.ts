/** A manager is killed while its VM writes to a disk: no write fails, and what is promoted later has all of them. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import { MortalDaemon } from './mortal-daemon.js';

const spec: VmSpecInput = {
  name: 'web',
  ramBytes: 160 * MIB,
  accelerator: 'tcg',
  shadow: { kind: 'always' },
  disks: [{ name: 'data', sizeBytes: 64 * MIB }],
};
/** Keeps a copy of what it has written, in memory. */
const WRITER = `(while [ ! -e /tmp/stop ]; do s=$((RANDOM % 60)); dd if=/dev/urandom of=/tmp/b bs=256k count=1; dd if=/tmp/b of=/dev/disk/data bs=256k seek=$s conv=notrunc,fsync || touch /tmp/failed; cp /tmp/b /tmp/s$s; done; touch /tmp/stopped) > /dev/null 2>&1 &`;
const STOP = 'touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.1; done';
const CHECK = `[ ! -e /tmp/failed ] && echo 3 > /proc/sys/vm/drop_caches && for f in /tmp/s[0-9]*; do dd if=/dev/disk/data bs=256k skip=\${f#/tmp/s} count=1 2>/dev/null | cmp -s - $f || exit 1; done`;

const daemon = new MortalDaemon({ bridge: 'svtdka1', subnet: '10.233.1.0/24' });
afterEach(() => daemon.stop());

async function runWriting(): Promise<void> {
  await daemon.start();
  await daemon.client.runVm(spec);
  await daemon.run(WRITER);
  await daemon.untilProtected();
}

test('at any moment', { timeout: 180_000 }, async () => {
  await runWriting();
  for (let round = 0; round < 5; round++) {
    await daemon.untilProtected();
    await sleep(Math.random() * 1500);
    await daemon.kill();
    await sleep(Math.random() * 600);
    await daemon.start();
  }
  await daemon.failOver(3);
  await daemon.run(STOP);
  await daemon.run(CHECK);
});

test('at any step of a promotion', { timeout: 240_000 }, async () => {
  await runWriting();
  for (const step of [2, 5, 6, 7]) {
    await daemon.kill();
    await daemon.start(`promotion:${step}`);
    await daemon.untilProtected();
    await expect(daemon.client.promoteShadow('web')).rejects.toThrow();
    await daemon.kill();
    await daemon.start();
    await daemon.untilProtected();
  }
  await daemon.failOver(3);
  await daemon.failOver(3);
  await daemon.run(STOP);
  await daemon.run(CHECK);
});
