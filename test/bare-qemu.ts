/** QEMUs as the manager starts them, without a manager: for tests of what lies below it. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readImage } from '../harness/image.js';
import { findQemu, hostTscKhz } from '../src/qemu/probe.js';
import { type LaunchOptions, QemuProcess } from '../src/qemu/process.js';
import { MIB } from '../src/vm/spec.js';

const BOOT_TIMEOUT_MS = 90_000;

export class BareQemus {
  readonly dir = mkdtempSync(join(tmpdir(), 'shadowvm-bare-'));
  private launches = 0;
  private readonly started: QemuProcess[] = [];

  private constructor(private readonly base: Omit<LaunchOptions, 'tag'>) {}

  static async open(): Promise<BareQemus> {
    const qemu = await findQemu();
    const image = await readImage();
    const qemus = new BareQemus({
      qemuPath: qemu.path,
      dataDirs: qemu.dataDirs,
      version: qemu.version,
      accelerator: 'tcg',
      kernel: image,
      tscKhz: hostTscKhz(),
      network: { mode: 'none' },
      uid: null,
      spec: { name: 'bare', ramBytes: 64 * MIB, vcpus: 1 },
      incoming: true,
      runDir: '',
      consoleLogPath: '',
      qemuLogPath: '',
    });
    qemus.base.runDir = qemus.dir;
    qemus.base.consoleLogPath = join(qemus.dir, 'console.log');
    qemus.base.qemuLogPath = join(qemus.dir, 'qemu.log');
    return qemus;
  }

  /** A QEMU that waits, with 64 MiB, unless told otherwise. */
  async launch(options: Partial<LaunchOptions> = {}): Promise<QemuProcess> {
    return this.own(await QemuProcess.launch(this.launchOptions(options)));
  }

  launchOptions(options: Partial<LaunchOptions> = {}): LaunchOptions {
    return { ...this.base, tag: `bare${++this.launches}`, ...options };
  }

  /** Disposes of it at the end. */
  own(qemu: QemuProcess): QemuProcess {
    this.started.push(qemu);
    return qemu;
  }

  /** A guest that beats. */
  async boot(ramBytes: number, options: Partial<LaunchOptions> = {}): Promise<QemuProcess> {
    const vm = await this.launch({ incoming: false, spec: { name: 'bare', ramBytes, vcpus: 1 }, ...options });
    await until('the first heartbeat', () => vm.agent.beats > 0, BOOT_TIMEOUT_MS);
    return vm;
  }

  get qemuLog(): string {
    return existsSync(this.base.qemuLogPath) ? readFileSync(this.base.qemuLogPath, 'utf8') : '';
  }

  async close(): Promise<void> {
    await Promise.all(this.started.map((qemu) => qemu.dispose()));
    rmSync(this.dir, { recursive: true, force: true });
  }
}

export async function until(what: string, holds: () => boolean, timeoutMs = 20_000): Promise<void> {
  for (const deadline = performance.now() + timeoutMs; !holds(); await sleep(5))
    if (performance.now() > deadline) throw new Error(`${what} did not come within ${timeoutMs} ms`);
}

/** What this process has open, without what Node's own machinery opens by the way. */
export function openFiles(): string[] {
  const files: string[] = [];
  for (const fd of readdirSync('/proc/self/fd'))
    try {
      files.push(readlinkSync(`/proc/self/fd/${fd}`).replace(/\[\d+\]/, ''));
    } catch {
      // the descriptor of the listing itself
    }
  return files.filter((file) => !file.startsWith('/proc/')).sort();
}

/** Whether a process exists that is not a zombie. */
export function isAlive(pid: number): boolean {
  try {
    return !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** A field of /proc/PID/status. */
export function statusField(pid: number, field: string): string[] {
  const line = readFileSync(`/proc/${pid}/status`, 'utf8')
    .split('\n')
    .find((each) => each.startsWith(`${field}:`));
  return line?.split(/\s+/).slice(1) ?? [];
}
