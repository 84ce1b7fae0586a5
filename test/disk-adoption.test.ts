/** A manager is killed while its VM writes to a disk: no write fails, and what is promoted later has all of them. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import { Daemon } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import type { VmView } from '../src/vm/view.js';

const network = { bridge: 'svtdka1', subnet: '10.233.1.0/24' };
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

let daemon: Daemon | undefined;
afterEach(async () => {
  const { stateDir } = daemon as Daemon;
  await daemon?.stop();
  expect(leftovers(stateDir)).toEqual([]);
});

async function start(stateDir?: string, fault = ''): Promise<Daemon> {
  const env = { ...process.env, SHADOWVM_FAULT: fault };
  daemon = await Daemon.start({ ...network, env, ...(stateDir === undefined ? {} : { stateDir }) });
  return daemon;
}

async function until(what: string, holds: (vm: VmView) => boolean): Promise<VmView> {
  const { client } = daemon as Daemon;
  for (const deadline = performance.now() + 30_000; performance.now() < deadline; await sleep(20)) {
    const vm = await client.showVm('web');
    if (holds(vm)) return vm;
  }
  throw new Error(`${what} did not come: ${JSON.stringify(await client.listEvents({ limit: 8 }))}`);
}
const protectedNow = (vm: VmView) => vm.state === 'running' && vm.shadow?.state === 'ready';

async function run(command: string): Promise<void> {
  const result = await (daemon as Daemon).client.guestExec('web', command);
  expect({ command, ...result }).toEqual({ command, exitCode: 0 });
}

async function runWriting(): Promise<string> {
  const { client, stateDir } = await start();
  await client.runVm(spec);
  await run(WRITER);
  await until('a shadow', protectedNow);
  return stateDir;
}

async function promoteByKill(): Promise<void> {
  const { generation, shadow } = await until('its protection', protectedNow);
  await until('some epochs', (vm) => (vm.shadow?.epoch ?? 0) > (shadow?.epoch ?? 0) + 3);
  await (daemon as Daemon).client.injectFault('web', 'kill');
  await until('the promotion', (vm) => vm.generation > generation && vm.state === 'running');
}

test('at any moment', { timeout: 180_000 }, async () => {
  const stateDir = await runWriting();
  for (let round = 0; round < 5; round++) {
    await until('its protection', protectedNow);
    await sleep(Math.random() * 1500);
    await (daemon as Daemon).kill();
    await sleep(Math.random() * 600);
    await start(stateDir);
  }
  await promoteByKill();
  await run(STOP);
  await run(CHECK);
});

test('at any step of a promotion', { timeout: 240_000 }, async () => {
  const stateDir = await runWriting();
  for (const step of [2, 5, 6, 7]) {
    await (daemon as Daemon).kill();
    const faulty = await start(stateDir, `promotion:${step}`);
    await until('its protection', protectedNow);
    await expect(faulty.client.promoteShadow('web')).rejects.toThrow();
    await faulty.kill();
    await start(stateDir);
    await until('its protection', protectedNow);
  }
  await promoteByKill();
  await promoteByKill();
  await run(STOP);
  await run(CHECK);
});
