/** A bare VM for benchmarks: QEMU and the guest's memory, without manager, tap and limits. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sleep } from '../harness/daemon.js';
import { readImage } from '../harness/image.js';
import { onInterrupt } from '../harness/interrupt.js';
import { findQemu, hostTscKhz } from '../src/qemu/probe.js';
import { type LaunchOptions, QemuProcess } from '../src/qemu/process.js';
import { MIB } from '../src/vm/spec.js';

/** The load of all memory benchmarks: a quarter of the RAM, rewritten at 40 MiB/s. */
const LOAD_MIB_PER_SECOND = 40;
export const loadCommand = (ramMiB: number) => `shadowvm-guest memwriter ${ramMiB / 4} ${LOAD_MIB_PER_SECOND} &`;
/** The load has touched all of its memory by then. */
export const LOAD_SETTLE_MS = 4000;
const BOOT_TIMEOUT_MS = 60_000;

export class BenchGuests {
  private launches = 0;
  private readonly launched = new Set<QemuProcess>();
  readonly dir = mkdtempSync(join(tmpdir(), 'shadowvm-bench-'));

  private constructor(private readonly base: Omit<LaunchOptions, 'spec' | 'incoming' | 'tag'>) {}

  static async open(): Promise<BenchGuests> {
    const qemu = await findQemu();
    const image = await readImage();
    const guests = new BenchGuests({
      qemuPath: qemu.path,
      dataDirs: qemu.dataDirs,
      version: qemu.version,
      accelerator: 'tcg',
      kernel: image,
      tscKhz: hostTscKhz(),
      network: { mode: 'none' },
      uid: null,
      runDir: '',
      consoleLogPath: '',
      qemuLogPath: '',
    });
    guests.base.runDir = guests.dir;
    guests.base.consoleLogPath = join(guests.dir, 'console.log');
    guests.base.qemuLogPath = join(guests.dir, 'qemu.log');
    onInterrupt(() => guests.close());
    return guests;
  }

  async launch(ramMiB: number, incoming: boolean, inheritFds: number[] = [], lazy = false): Promise<QemuProcess> {
    const vm = await QemuProcess.launch({
      ...this.base,
      spec: { name: 'bench', ramBytes: ramMiB * MIB, vcpus: 1 },
      tag: `bench${++this.launches}`,
      incoming,
      lazy,
      inheritFds,
    });
    this.launched.add(vm);
    void vm.exited.then(() => this.launched.delete(vm));
    return vm;
  }

  /** Boots a guest that writes memory. */
  async bootLoaded(ramMiB: number, inheritFds: number[] = []): Promise<QemuProcess> {
    const vm = await this.launch(ramMiB, false, inheritFds);
    await firstBeat(vm);
    if ((await vm.agent.exec(loadCommand(ramMiB))) !== 0) throw new Error('the load did not start');
    await sleep(LOAD_SETTLE_MS);
    return vm;
  }

  async close(): Promise<void> {
    await Promise.all([...this.launched].map((vm) => vm.dispose()));
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Resolves with the moment of the first heartbeat, CLOCK_MONOTONIC ms. */
export async function firstBeat(vm: QemuProcess): Promise<number> {
  const until = performance.now() + BOOT_TIMEOUT_MS;
  while (vm.agent.firstSignAtNs === null) {
    if (performance.now() > until) throw new Error('the guest gave no heartbeat');
    await sleep(1);
  }
  return Number(vm.agent.firstSignAtNs) / 1e6;
}
