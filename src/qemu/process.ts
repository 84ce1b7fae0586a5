/** One QEMU process: started, spoken to, killed. It is a primary's or a shadow's; the difference is `-incoming`. */

import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../clock.js';
import { ShadowVmError } from '../errors.js';
import { diesOfSigkill } from '../host/process-stat.js';
import { isNativeFailure, NATIVE_BUILD_DIR } from '../native/index.js';
import { adoptFile, createMemoryFile, GuestRam, ProcessHandle, QemuControl } from '../native/memory.js';
import { Pager, type PageSource } from '../native/pager.js';
import { MIB } from '../vm/spec.js';
import { clearPort, GuestAgent } from './agent.js';
import { QEMU_FD, type QemuShape, qemuArgv } from './argv.js';
import { QmpClient } from './qmp.js';

export interface LaunchOptions extends Omit<QemuShape, 'sockets'> {
  qemuPath: string;
  /** Folder for the sockets; their paths must stay below 108 bytes. */
  runDir: string;
  /** Unique among the files of runDir: "web-1-primary". */
  tag: string;
  qemuLogPath: string;
  /** Called with the process number as soon as there is one, to put it into a cgroup. */
  onSpawn?: (pid: number) => void;
  startTimeoutMs?: number;
  /** Aborted: QEMU is killed, and its start fails. No effect once it has started. */
  signal?: AbortSignal;
  /** Only with `incoming`: the RAM is not filled before the guest runs, a Pager fills it on demand. */
  lazy?: boolean;
  /** More descriptors for QEMU, behind those of its disks; closing all of these is the caller's. */
  inheritFds?: number[];
}

export interface AdoptOptions {
  vm: string;
  pid: number;
  /** Those of its launch: there are its sockets. */
  runDir: string;
  tag: string;
  /**
   * Called before QEMU is spoken to. While the fill of a lazy one is not over, QEMU itself may stand at an absent page,
   * and answers only when a Pager serves it.
   */
  onMemory?: (qemu: { pid: number; control: QemuControl; ram: GuestRam }) => void;
  timeoutMs?: number;
}

const START_TIMEOUT_MS = 30_000;
const ADOPT_TIMEOUT_MS = 5000;
/** Major versions whose functions native/shim/pause.c declares as they are. */
const KNOWN_INSIDE = { from: 7, to: 10 };
const MONITOR_NICE = -10;
const DYING_NICE = 19;
const SIGKILL = 9;
const SIGSTOP = 19;

/** Beside a file with what a guest needs until its first sign of life: what it needs until it has answered. */
function laterHotPath(hotPath: string): string {
  return `${hotPath}-later`;
}

export class QemuProcess {
  private constructor(
    readonly vm: string,
    readonly pid: number,
    readonly ram: GuestRam,
    readonly control: QemuControl,
    readonly handle: ProcessHandle,
    readonly qmp: QmpClient,
    readonly agent: GuestAgent,
    readonly consolePath: string,
    /** Resolves with the kernel's word that the process is dying (CLOCK_MONOTONIC ns), long before `exited`. */
    readonly died: Promise<bigint>,
    /** Resolves when the process has ended and was reaped. */
    readonly exited: Promise<void>,
    /** Where its devices are saved; open until dispose(), which comes after the end of its protection. */
    readonly deviceStateFd: number,
    private readonly incoming: Duplex | null,
    private readonly socketPaths: string[],
  ) {
    // Of a QEMU that is given up nobody waits for a pause.
    void qmp.closed.then(() => {
      if (!this.released) control.givePauseUp();
    });
  }

  /** Starts QEMU and waits until it answers. @throws QEMU_MISSING, QEMU_START_FAILED with QEMU's own words, QMP_TIMEOUT */
  static async launch(options: LaunchOptions): Promise<QemuProcess> {
    const attempted = `start QEMU for the ${options.incoming ? 'shadow' : 'VM'}`;
    const launchedAtMs = monotonicMs();
    const { name, ramBytes } = options.spec;
    const sockets = socketsOf(options);
    const socketPaths = Object.values(sockets);
    for (const socketPath of socketPaths) fs.rmSync(socketPath, { force: true });

    const ram = new GuestRam(`shadowvm-${name}`, ramBytes);
    const disks = options.disks ?? [];
    const control = new QemuControl(
      ramBytes,
      disks.map(({ fd }) => fd),
    );
    if (options.lazy) control.makeLazy();
    const { major } = options.version;
    if (major >= KNOWN_INSIDE.from && major <= KNOWN_INSIDE.to) control.allowPauses();
    control.countDiskIo(disks.map(({ extentBytes }) => extentBytes ?? MIB));
    const deviceStateFd = createMemoryFile(`shadowvm-${name}-devices`);
    // Where in its log this start's words begin.
    const logStart = fs.existsSync(options.qemuLogPath) ? fs.statSync(options.qemuLogPath).size : 0;
    const logFd = fs.openSync(options.qemuLogPath, 'a', 0o600);
    const child = spawn(options.qemuPath, qemuArgv({ ...options, sockets }), {
      // To a file and not to us: QEMU must be able to speak, and to live, after a death of the manager.
      stdio: [
        'ignore',
        logFd,
        logFd,
        ram.fd,
        control.fd,
        deviceStateFd,
        options.incoming ? 'pipe' : 'ignore',
        control.lifelineFd,
        'ignore', // QEMU_FD.rescue, which the shim opens
        control.bellFd,
        ...disks.map(({ fd }) => fd),
        ...(options.inheritFds ?? []),
      ],
      env: { ...process.env, LD_PRELOAD: path.join(NATIVE_BUILD_DIR as string, 'track-shim.so') },
      // A group of its own: Ctrl-C in the manager's terminal is the manager's business, not QEMU's.
      detached: true,
    });
    fs.closeSync(logFd);
    const exited = new Promise<void>((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', () => resolve());
    });
    const discard = () => {
      child.kill('SIGKILL');
      incomingOf(child)?.destroy();
      ram.close();
      control.close();
      fs.closeSync(deviceStateFd);
      for (const socketPath of socketPaths) fs.rmSync(socketPath, { force: true });
    };
    const giveUp = () => child.kill('SIGKILL');
    options.signal?.addEventListener('abort', giveUp);
    if (options.signal?.aborted) giveUp();
    let qmp: QmpClient | undefined;
    let ended = false;
    void exited.then(() => {
      ended = true;
    });
    try {
      await spawned(child, options.qemuPath, attempted);
      const pid = child.pid as number;
      options.onSpawn?.(pid);
      const startFailed = exited.then(() => {
        throw new ShadowVmError('QEMU_START_FAILED', {
          attempted,
          subject: name,
          reason: ownWords(options.qemuLogPath, logStart) ?? `it ended at once (${endOf(child)}) and said nothing`,
          remedy: `Its whole output is in ${options.qemuLogPath}`,
        });
      });
      startFailed.catch(() => {}); // raced below; a later, wanted end is nobody's error
      qmp = await Promise.race([
        connectWhenUp(sockets.qmp, name, options.startTimeoutMs ?? START_TIMEOUT_MS, () => ended),
        startFailed,
      ]);
      runMonitorAhead(pid);
      // The shim holds the futex by which a death is noticed at once: without it there is no protection worth the name.
      // (null: it never ran. false: it ran in a wrapper, which has since become QEMU and lost it.)
      if (control.read().alive !== true)
        throw new ShadowVmError('QEMU_START_FAILED', {
          attempted,
          subject: name,
          reason: 'the preloaded shim did not start in it',
          remedy:
            'QEMU must be dynamically linked, with no setuid bit and no wrapper script; rebuild the shim with `npm run setup`',
        });
      if (options.lazy && !control.read().lazy)
        throw new ShadowVmError('TRACKING_UNAVAILABLE', {
          attempted,
          subject: name,
          reason: `its RAM can not be filled on demand: ${control.read().errorCode ?? 'the preloaded shim did not see it'}`,
          remedy:
            'The manager must be root, on a kernel with userfaultfd; otherwise fill the RAM before the guest runs',
        });
      if (options.incoming) {
        await qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
        // The host announces a guest that woke up. QEMU would have the guest do it again, in its first, slow milliseconds.
        await qmp.execute('migrate-set-parameters', { 'announce-rounds': 0 });
      }
      const incoming = options.incoming ? incomingOf(child) : null;
      incoming?.on('error', () => {}); // a QEMU that dies while it is fed: its exit tells
      const qemu = new QemuProcess(
        name,
        pid,
        ram,
        control,
        new ProcessHandle(pid),
        qmp,
        new GuestAgent(sockets.heartbeat, name),
        sockets.console,
        new Promise((resolve) => control.watchDeath(resolve)),
        exited,
        deviceStateFd,
        incoming,
        socketPaths,
      );
      qemu.launchedAtMs = launchedAtMs;
      qemu.signalOfEnd = () => child.signalCode;
      return qemu;
    } catch (error) {
      qmp?.destroy();
      discard();
      await exited; // of a start that failed, not even the process stays behind
      throw error;
    } finally {
      options.signal?.removeEventListener('abort', giveUp);
    }
  }

  /** Killed by somebody else (the OOM killer, an operator), and not by what it did itself. false when that is not known. */
  get killedFromOutside(): boolean {
    // Whoever has been reaped is not in /proc any more, and who has not is no child of ours with an end.
    return this.signalOfEnd() === 'SIGKILL' || diesOfSigkill(this.pid);
  }
  private signalOfEnd: () => NodeJS.Signals | null = () => null;

  /** The futex's word now, which may be there before `died` is heard of: its thread has to get a CPU first. */
  get hasDied(): boolean {
    return this.released || this.control.read().alive === false;
  }

  /**
   * Takes over a QEMU that another manager started and that outlived it; a guest that stood still for an epoch runs again.
   * The caller knows that the process number still belongs to that QEMU as far as a later `alive` can not tell.
   * @throws VM_NOT_RUNNING when there is no such process, QMP_*, NATIVE_ERROR
   */
  static async adopt(options: AdoptOptions): Promise<QemuProcess> {
    const attempted = 'take over the running QEMU of the VM';
    const { vm, pid } = options;
    const sockets = socketsOf(options);
    const timeoutMs = options.timeoutMs ?? ADOPT_TIMEOUT_MS;
    const open: { close(): void }[] = [];
    const keep = <T extends { close(): void }>(each: T): T => {
      open.push(each);
      return each;
    };
    let qmp: QmpClient | undefined;
    try {
      const handle = keep(new ProcessHandle(pid));
      let ended = false;
      const exited = new Promise<void>((resolve) => {
        handle.watchExit(() => {
          ended = true;
          resolve();
        });
      });
      const control = keep(QemuControl.adopt(pid));
      const ram = keep(GuestRam.adopt(pid, QEMU_FD.ram));
      const deviceStateFd = adoptFile(pid, QEMU_FD.deviceState);
      keep({ close: () => fs.closeSync(deviceStateFd) });
      options.onMemory?.({ pid, control, ram });
      qmp = await connectWhenUp(sockets.qmp, vm, timeoutMs, () => ended);
      // All that was opened by number belongs to one process when that one is still there.
      if (control.read().alive !== true || !handle.signal(0))
        throw new ShadowVmError('VM_NOT_RUNNING', { attempted, subject: vm, reason: 'its process has died' });
      if (control.read().pausedForEpoch) {
        await qmp.execute('cont', undefined, { timeoutMs });
        control.setPausedForEpoch(false);
      }
      runMonitorAhead(pid);
      // In one that waits there is no guest that could have spoken, and nothing that would answer.
      const { status } = await qmp.execute('query-status', undefined, { timeoutMs });
      if (status !== 'inmigrate') await clearPort(sockets.heartbeat, timeoutMs);
      return new QemuProcess(
        vm,
        pid,
        ram,
        control,
        handle,
        qmp,
        new GuestAgent(sockets.heartbeat, vm),
        sockets.console,
        new Promise((resolve) => control.watchDeath(resolve)),
        exited,
        deviceStateFd,
        null, // a device state can be loaded only by who started it
        Object.values(sockets),
      );
    } catch (error) {
      qmp?.destroy();
      for (const each of open) each.close();
      if (!isNativeFailure(error)) throw error;
      throw new ShadowVmError(error.code === 'ESRCH' ? 'VM_NOT_RUNNING' : 'NATIVE_ERROR', {
        attempted,
        subject: vm,
        reason: error.message,
        cause: error,
      });
    }
  }

  /** 'write' when the shim could register the RAM for write tracking. */
  get writeTracking(): { usable: boolean; reason: string } {
    const { tracking, errorCode } = this.control.read();
    if (tracking === 'registered') return { usable: true, reason: 'userfaultfd write protection' };
    return { usable: false, reason: errorCode ?? 'the preloaded shim did not see the RAM' };
  }

  /** It can be paused, and let its guest's packets go, without its monitor (see QemuControl). */
  get servesPauses(): boolean {
    return !this.released && this.control.read().servesPauses;
  }

  /** Asks QEMU to save its device state; answers when it is saved. Pipelines behind a `stop`. */
  saveDevices(timeoutMs: number): Promise<object> {
    // A memory file by its number in QEMU: no path on a disk, no permission question, and each open truncates it.
    const filename = `/proc/self/fd/${QEMU_FD.deviceState}`;
    return this.qmp.execute('xen-save-devices-state', { filename, live: false }, { timeoutMs });
  }

  /** The bytes that the last saveDevices wrote. */
  readDevices(): Buffer {
    const state = Buffer.allocUnsafe(fs.fstatSync(this.deviceStateFd).size);
    let read = 0;
    while (read < state.length) {
      const bytes = fs.readSync(this.deviceStateFd, state, read, state.length - read, read);
      if (bytes === 0) break;
      read += bytes;
    }
    return state.subarray(0, read);
  }

  /** Feeds a device state to a waiting QEMU; resolves when it is loaded and the guest may be let go with `cont`. */
  async loadDevices(state: Buffer, timeoutMs: number): Promise<void> {
    if (this.incoming === null) throw new Error('only a QEMU that waits can load a device state');
    const loaded = this.qmp.waitEvent(
      'load the device state',
      ({ event, data }) => event === 'MIGRATION' && (data?.status === 'completed' || data?.status === 'failed'),
      timeoutMs,
    );
    loaded.catch(() => {}); // awaited below; migrate-incoming may fail first
    this.incoming.end(state);
    await this.qmp.execute('migrate-incoming', { uri: `fd:${QEMU_FD.incoming}` }, { timeoutMs });
    const { data } = await loaded;
    if (data?.status === 'failed')
      throw new ShadowVmError('PROMOTION_FAILED', {
        attempted: 'load the device state into the shadow',
        subject: this.vm,
        reason: 'QEMU refused it',
        remedy: 'Its own words are in the qemu log of the VM: shadowvm vm logs --qemu',
      });
  }

  /**
   * Serves the RAM of a lazy QEMU from now on, and fills it behind; the hot pages come first.
   * @throws native failures (ERR_NOT_LAZY, ERR_SIZE)
   */
  fillFrom(source: PageSource, hotPath: string, onTrouble: (page: number, why: string) => void): void {
    const { control, pid, ram } = this;
    this.pager = new Pager({ control, pid, ram, source, onTrouble: ({ page, message }) => onTrouble(page, message) });
    // Its end by the end of this QEMU is no news, and trouble is told by itself.
    this.filled = this.pager.start(hotPath, laterHotPath(hotPath)).then(
      () => true,
      () => false,
    );
  }
  /**
   * After a while, writes what this awakening needed so far into files that the next ones are filled from first, and beside
   * them what it needed in that while. Ends before dispose() does.
   */
  keepHot(paths: string[], afterMs = 0): Promise<void> {
    const { pager } = this;
    if (pager === null || this.released) return Promise.resolve();
    const pages = pager.needed();
    const kept = (async () => {
      await sleep(afterMs);
      if (this.released) return;
      const later = pager.needed(pages);
      for (const each of paths) {
        if (!this.released) await pager.keepHot(each, pages);
        if (!this.released) await pager.keepHot(laterHotPath(each), later);
      }
    })();
    this.keeping = kept.catch(() => {}); // told to who asked for it
    return kept;
  }
  private keeping: Promise<void> = Promise.resolve();
  /** When its start began, CLOCK_MONOTONIC ms; that of its adoption for one that another manager started. */
  launchedAtMs = monotonicMs();
  /** What fills the RAM, or has filled it; null for a QEMU whose RAM was there from the start. */
  pager: Pager | null = null;
  /** Whether the fill got to its end. */
  filled: Promise<boolean> = Promise.resolve(true);

  /** SIGKILL through the pidfd; safe at any time. */
  kill(): void {
    try {
      this.handle.signal(SIGKILL);
      // Taking its memory apart takes tens of ms of CPU time, at the priority of its monitor unless told otherwise.
      os.setPriority(this.pid, DYING_NICE);
    } catch {
      // It was reaped already, or we are not root.
    }
  }

  /** Stops the whole process as a debugger would: the hang of drills and tests. */
  freeze(): void {
    this.handle.signal(SIGSTOP);
  }

  /** Kills the process if it lives, waits for its end and gives back everything that belonged to it. Idempotent. */
  async dispose(): Promise<void> {
    if (this.released) return;
    this.kill();
    this.hangUp();
    // Who watches a process that is no child of ours does not keep the event loop alive; this does.
    const alive = setInterval(() => {}, 1000);
    await this.exited;
    clearInterval(alive);
    if (!this.release()) return;
    await this.keeping;
    for (const socketPath of this.socketPaths) fs.rmSync(socketPath, { force: true });
  }

  /** Lets go of a process that lives on, for the next manager to adopt. Nothing of this object is of use afterwards. */
  leave(): void {
    this.hangUp();
    this.release();
  }

  private hangUp(): void {
    this.qmp.destroy();
    this.agent.close();
    this.incoming?.destroy();
  }

  private release(): boolean {
    if (this.released) return false;
    this.released = true;
    this.pager?.close();
    this.handle.close();
    this.control.close();
    this.ram.close();
    fs.closeSync(this.deviceStateFd);
    return true;
  }
  private released = false;
}

function socketsOf({ runDir, tag }: Pick<LaunchOptions, 'runDir' | 'tag'>) {
  const at = (end: string) => path.join(runDir, `${tag}.${end}`);
  return { qmp: at('qmp'), heartbeat: at('hb'), console: at('con') };
}

function spawned(child: ChildProcess, qemuPath: string, attempted: string): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', (cause) =>
      reject(
        new ShadowVmError('QEMU_MISSING', {
          attempted,
          subject: qemuPath,
          reason: cause.message,
          remedy: 'Install QEMU (Debian: apt-get install qemu-system-x86) or set SHADOWVM_QEMU',
          cause,
        }),
      ),
    );
  });
}

/**
 * QEMU's first thread answers the monitor and saves device states: for an epoch's pause a guest waits for it. Its vCPUs
 * are other threads, which exist already, and keep their place.
 */
function runMonitorAhead(pid: number): void {
  try {
    os.setPriority(pid, MONITOR_NICE);
  } catch {
    // Not root: longer pauses on a busy host, nothing else.
  }
}

/** Our end of the socket pair that the child has as its descriptor QEMU_FD.incoming. */
function incomingOf(child: ChildProcess): Duplex | null {
  return ((child.stdio as unknown[])[QEMU_FD.incoming] ?? null) as Duplex | null;
}

/** @param ended whether there is no use in trying any more */
async function connectWhenUp(
  socketPath: string,
  vm: string,
  timeoutMs: number,
  ended: () => boolean,
): Promise<QmpClient> {
  const until = monotonicMs() + timeoutMs;
  for (;;) {
    try {
      return await QmpClient.connect(socketPath, vm, timeoutMs);
    } catch (error) {
      if (monotonicMs() > until || ended()) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

/** What QEMU said since `from`, without what is known to be harmless; null when nothing. */
function ownWords(logPath: string, from: number): string | null {
  const words = fs
    .readFileSync(logPath)
    .subarray(from, from + 4096)
    .toString()
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.includes('warning:'))
    .join('; ');
  return words === '' ? null : words;
}

function endOf(child: ChildProcess): string {
  return child.signalCode === null ? `exit code ${child.exitCode}` : `signal ${child.signalCode}`;
}
