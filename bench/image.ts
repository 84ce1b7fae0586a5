/** What a shadow image costs and gives: memory, CPU, bytes on disk, and how fast a guest wakes up from it. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { nowMs, sleep } from '../harness/daemon.js';
import { InProcessManager } from '../harness/in-process.js';
import { onInterrupt } from '../harness/interrupt.js';
import { Writer } from '../harness/writer.js';
import { cpuSeconds } from '../src/host/process-stat.js';
import { ShadowImage } from '../src/native/image.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import { type BenchGuests, firstBeat, LOAD_SETTLE_MS, loadCommand } from './guest.js';
import { measureRestore } from './migrate.js';
import { p50, p99, round } from './statistics.js';

export interface ImageCost {
  /** Index, epoch buffers, page cache of the log and RAM of the waiting QEMU; median of several looks. */
  idleMiB: number;
  idlePercentOfRam: number;
  loadedMiB: number;
  loadedPercentOfRam: number;
  /** Of the waiting QEMU itself, whatever the size of the VM; none in `image` standby. */
  waitingQemuMiB: number;
  /** Of one core: what the manager and the waiting QEMU use more for an idle VM than without a shadow; medians. */
  idleCpuPercent: number;
  idleLagMsP50: number;
  /** Kill → first heartbeat, `process` standby: the guest runs while its RAM is filled. */
  switchoverMsP50: number;
  switchoverMsP99: number;
  /** The same image without a manager: RAM filled on demand, and all of it filled before the guest runs. */
  lazyMsP50: number;
  eagerMsP50: number;
}

export interface ImageResult {
  /** Keyed by RAM in MiB. */
  cost: Record<string, ImageCost>;
  /** Switchover at the largest RAM ÷ at the smallest. */
  switchoverGrowth: number;
  /** Of a changed page of 4 KiB under a Redis load, tables and device states included. */
  storedPercentOfPage: number;
  /** Changed pages of a guest with Redis, on one core. */
  appendMiBPerS: number;
  goldenStartMsP50: number;
  coldBootMsP50: number;
  timesFasterThanBoot: number;
  /** 1 GiB: start of QEMU → first heartbeat, from our snapshot and from a file of `migrate`. */
  snapshotRestoreMsP50: number;
  migrateRestoreMsP50: number;
}

const RAM_MIB = [256, 1024, 4096] as const;
const RESTORE_RAM_MIB = 1024;
const LOOKS = 10;
const LOOK_EVERY_MS = 400;
const CPU_WINDOW_MS = 8000;
/** A window in which the host had something else to do is not what a shadow costs. */
const CPU_WINDOWS = 3;
const SETTLE_MS = 1200;
const REDIS_LOAD_MS = 6000;
const REDIS_PORT = 6379;
const APPEND_ROUNDS = 5;
/** An eager fill of 4 GiB takes seconds and hardly varies. */
const SLOW_ROUNDS_MAX = 5;

export async function benchImage(guests: BenchGuests, rounds: number): Promise<ImageResult> {
  const manager = await InProcessManager.open();
  const forget = onInterrupt(() => manager.close());
  try {
    const cost: Record<string, ImageCost> = {};
    for (const ramMiB of RAM_MIB) {
      process.stderr.write(`bench: image, ${ramMiB} MiB\n`);
      await manager.runVm({ name: 'bench', ramBytes: ramMiB * MIB });
      const memory = await measureCost(manager, ramMiB);
      const switchover = await measureSwitchover(manager, rounds);
      await manager.port.removeVm('bench', { force: true });
      cost[ramMiB] = { ...memory, ...switchover, ...(await measureFill(guests, ramMiB, rounds)) };
    }
    process.stderr.write('bench: image, bytes stored\n');
    const stored = await measureStored(manager, guests);
    process.stderr.write('bench: image, starts\n');
    const golden = await measureStarts(manager, rounds, { name: 'bench' });
    const boot = await measureStarts(manager, Math.min(rounds, SLOW_ROUNDS_MAX), { name: 'bench', start: 'boot' });
    const [smallest, largest] = [cost[RAM_MIB[0]], cost[RAM_MIB[2]]] as [ImageCost, ImageCost];
    return {
      cost,
      switchoverGrowth: round(largest.switchoverMsP50 / smallest.switchoverMsP50),
      ...stored,
      goldenStartMsP50: p50(golden),
      coldBootMsP50: p50(boot),
      timesFasterThanBoot: round(p50(boot) / p50(golden)),
      snapshotRestoreMsP50: p50(await measureSnapshotRestore(manager, rounds)),
      migrateRestoreMsP50: p50(await measureRestore(guests, RESTORE_RAM_MIB, Math.min(rounds, SLOW_ROUNDS_MAX))),
    };
  } finally {
    forget();
    await manager.close();
  }
}

// ---- What it costs ----

async function measureCost(manager: InProcessManager, ramMiB: number) {
  await sleep(SETTLE_MS);
  const withoutMs = p50(await cpuMs(null));
  await manager.port.createShadow('bench', () => {});
  const waiting = await waitingQemu(manager);
  await sleep(SETTLE_MS);
  const withMs = p50(await cpuMs(waiting.pid));
  const idle = await looks(manager);
  const idleLagMsP50 = manager.port.showVm('bench').shadow?.lagMsAtCommit.p50 ?? Number.NaN;
  await manager.port.guestExec('bench', loadCommand(ramMiB));
  await sleep(LOAD_SETTLE_MS);
  const loaded = await looks(manager);
  const percent = (bytes: number) => round((bytes / MIB / ramMiB) * 100);
  return {
    idleMiB: round(p50(idle) / MIB),
    idlePercentOfRam: percent(p50(idle)),
    loadedMiB: round(p50(loaded) / MIB),
    loadedPercentOfRam: percent(p50(loaded)),
    waitingQemuMiB: round((ownBytes(waiting.pid) - waiting.ram.residentBytes()) / MIB),
    idleCpuPercent: round(((withMs - withoutMs) / CPU_WINDOW_MS) * 100),
    idleLagMsP50: round(idleLagMsP50),
  };
}

async function waitingQemu(manager: InProcessManager): Promise<QemuProcess> {
  await manager.until('a waiting QEMU', () => manager.processes('bench').shadow !== null);
  return manager.processes('bench').shadow as QemuProcess;
}

/** CPU time of this process, which the manager is in, and of another one, in each of several windows. */
async function cpuMs(pid: number | null): Promise<number[]> {
  const used = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000 + (pid === null ? 0 : (cpuSeconds(pid) ?? 0) * 1000);
  };
  const windows: number[] = [];
  for (let i = 0; i < CPU_WINDOWS; i++) {
    const fromMs = used();
    await sleep(CPU_WINDOW_MS);
    windows.push(used() - fromMs);
  }
  return windows;
}

async function looks(manager: InProcessManager): Promise<number[]> {
  const bytes: number[] = [];
  for (let i = 0; i < LOOKS; i++) {
    await sleep(LOOK_EVERY_MS);
    bytes.push((await manager.port.vmForTest('bench').shadow?.memoryBytes()) ?? Number.NaN);
  }
  return bytes;
}

/** Memory that only this process has, and its part of what it shares with others. */
function ownBytes(pid: number): number {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Pss: +(\d+) kB/m.exec(rollup)?.[1] ?? Number.NaN) * 1024;
}

// ---- How fast it wakes up ----

async function measureSwitchover(manager: InProcessManager, rounds: number) {
  const times: number[] = [];
  for (let i = 0; i < rounds; i++) {
    await manager.shadowReady('bench');
    await waitingQemu(manager);
    await sleep(SETTLE_MS + Math.random() * 200);
    const { primary } = manager.processes('bench');
    const promotion = manager.nextPromotion('bench');
    const killedMs = nowMs();
    primary.kill();
    await promotion;
    times.push((await firstBeat(manager.processes('bench').primary)) - killedMs);
  }
  return { switchoverMsP50: p50(times), switchoverMsP99: p99(times) };
}

/** A waiting QEMU gets the state of one image: its RAM on demand, or all of it first. */
async function measureFill(guests: BenchGuests, ramMiB: number, rounds: number) {
  const folder = join(guests.dir, `fill-${ramMiB}`);
  const source = await guests.bootLoaded(ramMiB);
  await source.qmp.execute('stop');
  await source.saveDevices(10_000);
  const deviceState = source.readDevices();
  const image = await ShadowImage.create(folder, { vm: 'bench', ramBytes: ramMiB * MIB });
  try {
    const cut = { cutAtWallMs: Date.now(), cutAtMonotonicNs: process.hrtime.bigint() };
    await image.append({ epoch: 1, parent: 0, generation: 0, ...cut }, deviceState, source.ram);
    await source.dispose();
    const wake = async (fill: (qemu: QemuProcess) => unknown, lazy: boolean) => {
      const qemu = await guests.launch(ramMiB, true, [], lazy);
      const startMs = nowMs();
      await fill(qemu);
      await qemu.loadDevices(deviceState, 60_000);
      await qemu.qmp.execute('cont');
      qemu.agent.ping();
      const ms = (await firstBeat(qemu)) - startMs;
      await qemu.dispose();
      return ms;
    };
    const [lazy, eager]: [number[], number[]] = [[], []];
    for (let i = 0; i < Math.min(rounds, SLOW_ROUNDS_MAX); i++) {
      lazy.push(await wake((qemu) => qemu.fillFrom(image.native, '', () => {}), true));
      eager.push(await wake((qemu) => image.fill(qemu.ram), false));
    }
    return { lazyMsP50: p50(lazy), eagerMsP50: p50(eager) };
  } finally {
    await image.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measureStarts(manager: InProcessManager, rounds: number, spec: VmSpecInput): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i <= rounds; i++) {
    await manager.runVm(spec);
    // The first one may have to take the golden snapshot, and finds out what its guests need first.
    if (i > 0) times.push(await sinceLaunch(manager));
    await manager.port.removeVm('bench', { force: true });
  }
  return times;
}

/** Start of QEMU → first heartbeat. */
async function sinceLaunch(manager: InProcessManager): Promise<number> {
  const { primary } = manager.processes('bench');
  return (await firstBeat(primary)) - primary.launchedAtMs;
}

async function measureSnapshotRestore(manager: InProcessManager, rounds: number): Promise<number[]> {
  const times: number[] = [];
  await manager.runVm({ name: 'bench', ramBytes: RESTORE_RAM_MIB * MIB });
  await manager.port.guestExec('bench', loadCommand(RESTORE_RAM_MIB));
  await sleep(LOAD_SETTLE_MS);
  for (let i = 0; i < rounds; i++) {
    await manager.port.stopVm('bench', { timeoutMs: 10_000, how: 'suspend', snapshot: true }, () => {});
    await manager.port.startVm('bench', { boot: false }, () => {});
    times.push(await sinceLaunch(manager));
  }
  await manager.port.removeVm('bench', { force: true });
  return times;
}

// ---- What it stores ----

async function measureStored(manager: InProcessManager, guests: BenchGuests) {
  const vm = await manager.runVm({ name: 'bench' });
  await manager.port.createShadow('bench', () => {});
  const writer = new Writer({
    host: vm.address as string,
    port: REDIS_PORT,
    command: (number) => ['SET', `key:${number}`, `value-${number}-of-a-session-that-somebody-keeps`],
    onAcknowledged: () => {},
  });
  await sleep(SETTLE_MS);
  const before = manager.port.showVm('bench').shadow;
  writer.start();
  await sleep(REDIS_LOAD_MS);
  const after = manager.port.showVm('bench').shadow;
  await writer.stop();
  if (before == null || after == null) throw new Error('the shadow of the benchmark is gone');
  const pages = after.pagesChanged - before.pagesChanged;
  const bytes = after.bytesStored - before.bytesStored;
  const appendMiBPerS = await measureAppend(manager.processes('bench').primary, guests);
  await manager.port.removeVm('bench', { force: true });
  return { storedPercentOfPage: round((bytes / (pages * 4096)) * 100), appendMiBPerS };
}

/** All of a guest's RAM as one epoch of a new image: checksums, compression and writing, on one thread. */
async function measureAppend(vm: QemuProcess, guests: BenchGuests): Promise<number> {
  await vm.qmp.execute('stop');
  const rates: number[] = [];
  for (let i = 0; i < APPEND_ROUNDS; i++) {
    const folder = join(guests.dir, `append-${i}`);
    const image = await ShadowImage.create(folder, { vm: 'bench', ramBytes: vm.ram.bytes });
    const cut = { cutAtWallMs: Date.now(), cutAtMonotonicNs: process.hrtime.bigint() };
    const startMs = nowMs();
    const { changedPages } = await image.append(
      { epoch: 1, parent: 0, generation: 0, ...cut },
      Buffer.alloc(1),
      vm.ram,
    );
    rates.push((changedPages * 4096) / MIB / ((nowMs() - startMs) / 1000));
    await image.close();
    rmSync(folder, { recursive: true, force: true });
  }
  return p50(rates);
}
