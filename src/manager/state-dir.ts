/**
 * The one directory in which a manager keeps everything. Whoever holds `daemon.lock` owns the rest.
 *
 *     daemon.lock               flock held by the daemon; its text is the pid of the holder
 *     shadowvm.sock             the API
 *     log/manager.log  (.1)     what the manager did, as JSON lines
 *     events.jsonl     (.1)     what happened to VMs and shadows, as JSON lines
 *     history.db (-wal, -shm)   what each VM used, in SQLite, see src/history/store.ts
 *     networks.json             the networks that users declared, see networks.ts
 *     vms/<name>/vm.json        what was declared about a VM and what it left on the host, see `vmRecordSchema`
 *     vms/<name>/console.log    the guest's serial console
 *     vms/<name>/qemu.log       what QEMU said
 *     vms/<name>/disks/         its disks, see disks.ts; heat.json beside it what is used of them, see disk-heat.ts
 *     vms/<name>/shadow/        the shadow image, see docs/shadow-image.md
 *     vms/<name>/base.fold      the snapshot that the VM started from and that its image stands on
 *     vms/<name>/vmlinuz, initrd  what it was booted with
 *     run/                      sockets of QEMUs: QMP, console, heartbeat. Those of dead ones go when the daemon starts
 *     images/                   base images, unless the daemon was told another place
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { readdir, readFile, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { messageOf, ShadowVmError } from '../errors.js';
import { replaceFile } from '../host/durable-file.js';
import { INITRD_FILE, KERNEL_FILE } from '../image/store.js';
import { isNativeFailure, loadAddon } from '../native/index.js';
import type { Kernel } from '../qemu/argv.js';
import { vmNameSchema, vmSpecSchema } from '../vm/spec.js';
import { snapshotViewSchema, vmOriginSchema, vmStateSchema } from '../vm/view.js';
import type { EventLog } from './events.js';

/** `sun_path` has 108 bytes, one of them for the final zero. */
const SOCKET_PATH_BYTES_MAX = 107;
/** Room for the longest name in run/: a VM's name (32), and up to 16 bytes such as `.g12.shadow.qmp`. */
const RUN_NAME_BYTES_MAX = 48;
export const STATE_PATH_BYTES_MAX = SOCKET_PATH_BYTES_MAX - '/run/'.length - RUN_NAME_BYTES_MAX;

const HISTORY_FILE = 'history.db';
const ENTRIES = [
  'daemon.lock',
  'shadowvm.sock',
  'log',
  'events.jsonl',
  'events.jsonl.1',
  'networks.json',
  'vms',
  'run',
  'images',
  HISTORY_FILE,
  `${HISTORY_FILE}-wal`,
  `${HISTORY_FILE}-shm`,
];

/** Where the state is when nobody says: root serves the whole host, everybody else has a manager of their own. */
export function defaultStatePath(env: NodeJS.ProcessEnv = process.env, uid = process.getuid?.()): string {
  if (env.SHADOWVM_STATE) return resolve(env.SHADOWVM_STATE);
  if (uid === 0) return '/var/lib/shadowvm';
  return join(env.XDG_STATE_HOME || join(homedir(), '.local/state'), 'shadowvm');
}

/** The paths of a state directory, for who does not own it: the CLI, the doctor. Touches nothing. */
export interface StateLayout {
  root: string;
  lockPath: string;
  socketPath: string;
  logPath: string;
  eventsPath: string;
  historyPath: string;
  networksPath: string;
  vmsDir: string;
  runDir: string;
  imagesDir: string;
}

export function stateLayout(path: string): StateLayout {
  const root = resolve(path);
  return {
    root,
    lockPath: join(root, 'daemon.lock'),
    socketPath: join(root, 'shadowvm.sock'),
    logPath: join(root, 'log', 'manager.log'),
    eventsPath: join(root, 'events.jsonl'),
    historyPath: join(root, HISTORY_FILE),
    networksPath: join(root, 'networks.json'),
    vmsDir: join(root, 'vms'),
    runDir: join(root, 'run'),
    imagesDir: join(root, 'images'),
  };
}

/**
 * What a VM is and what it may have left on the host: enough for a new manager to find and take away everything of a
 * manager that was killed. `startTicks` (field 22 of /proc/PID/stat) tells a process from a later one with its pid.
 */
const vmRecordSchema = z.object({
  version: z.literal(1),
  spec: vmSpecSchema,
  generation: z.number().int().min(0),
  createdAt: z.string(),
  state: vmStateSchema,
  /** On the tap network; null in the other modes. */
  address: z.string().nullable().default(null),
  accelerator: z.enum(['kvm', 'tcg']).nullable().default(null),
  origin: vmOriginSchema.default('boot'),
  snapshot: snapshotViewSchema.nullable().default(null),
  /** Which of a host's numbered places is its own: its taps and its user are named by it. */
  slot: z.number().int().min(0).nullable().default(null),
  /** The side that the primary is on. */
  side: z.enum(['p', 's']).default('p'),
  process: z.array(
    z.object({
      pid: z.number().int().positive(),
      startTicks: z.number().int(),
      role: z.string(),
      side: z.enum(['p', 's']).default('p'),
      /** What its sockets are named by. */
      tag: z.string().default(''),
    }),
  ),
  taps: z.array(z.string()),
  cgroups: z.array(z.string()),
  bridge: z.string().nullable(),
});
export type VmRecord = z.infer<typeof vmRecordSchema>;

export class StateDir implements StateLayout {
  readonly root: string;
  readonly lockPath: string;
  readonly socketPath: string;
  readonly logPath: string;
  readonly eventsPath: string;
  readonly historyPath: string;
  readonly networksPath: string;
  readonly vmsDir: string;
  readonly runDir: string;
  readonly imagesDir: string;
  #lockFd: number | null;
  /** The newest write of each VM's record. One at a time, or an older record could be renamed over a newer one. */
  readonly #writes = new Map<string, Promise<void>>();
  /** VMs whose note is newer than any save that was begun. */
  readonly #noted = new Set<string>();

  private constructor(layout: StateLayout, lockFd: number) {
    this.root = layout.root;
    this.lockPath = layout.lockPath;
    this.socketPath = layout.socketPath;
    this.logPath = layout.logPath;
    this.eventsPath = layout.eventsPath;
    this.historyPath = layout.historyPath;
    this.networksPath = layout.networksPath;
    this.vmsDir = layout.vmsDir;
    this.runDir = layout.runDir;
    this.imagesDir = layout.imagesDir;
    this.#lockFd = lockFd;
  }

  /**
   * Makes the directory where it is missing, closes it to others and takes the lock. What an earlier run left in run/
   * and its API socket are removed: nobody can be behind them once the lock is ours.
   * @throws STATE_LOCKED, INVALID_ARGUMENT (path too long, not a directory, holds other things), NOT_ROOT, NO_SPACE
   */
  static open(path: string): StateDir {
    const layout = stateLayout(path);
    const lengthBytes = Buffer.byteLength(layout.root);
    if (lengthBytes > STATE_PATH_BYTES_MAX)
      throw new ShadowVmError('INVALID_ARGUMENT', {
        attempted: 'open the state directory',
        subject: layout.root,
        reason: `its path has ${lengthBytes} bytes, and the sockets in it leave room for ${STATE_PATH_BYTES_MAX} (Unix sockets have at most ${SOCKET_PATH_BYTES_MAX})`,
        remedy: 'Choose a shorter one with --state or SHADOWVM_STATE',
      });
    try {
      makeDir(layout.root);
      makePrivate(layout.root);
      const lockFd = takeLock(layout.lockPath);
      try {
        rmSync(layout.socketPath, { force: true });
        for (const dir of [layout.runDir, layout.vmsDir, dirname(layout.logPath)])
          mkdirSync(dir, { recursive: true, mode: 0o700 });
      } catch (error) {
        closeSync(lockFd);
        throw error;
      }
      return new StateDir(layout, lockFd);
    } catch (error) {
      throw fileError(error, 'open the state directory', layout.root);
    }
  }

  /** Lets the next daemon in. The lock's file stays: removing it would let two daemons lock two files of one name. */
  async close(): Promise<void> {
    if (this.#lockFd === null) return;
    await Promise.allSettled(this.#writes.values());
    rmSync(this.runDir, { recursive: true, force: true });
    ftruncateSync(this.#lockFd);
    closeSync(this.#lockFd);
    this.#lockFd = null;
  }

  vmDir(name: string): string {
    // The one place where a name becomes a path, so the one place that must not be given "../..".
    return join(this.vmsDir, vmNameSchema.parse(name));
  }
  recordPath(name: string): string {
    return join(this.vmDir(name), 'vm.json');
  }
  /** Of what a promotion had no time to save. */
  notePath(name: string): string {
    return `${this.recordPath(name)}.next`;
  }
  consoleLogPath(name: string): string {
    return join(this.vmDir(name), 'console.log');
  }
  qemuLogPath(name: string): string {
    return join(this.vmDir(name), 'qemu.log');
  }
  /** The kernel and initramfs that the VM keeps; null when it has none of its own, as one that was imported. */
  pinnedKernel(name: string): Kernel | null {
    const kernelPath = join(this.vmDir(name), KERNEL_FILE);
    const initrdPath = join(this.vmDir(name), INITRD_FILE);
    return existsSync(kernelPath) && existsSync(initrdPath) ? { kernelPath, initrdPath } : null;
  }
  /** Path of a socket in run/; the length that `open` made room for is checked, as bind(2) would cut it silently. */
  runPath(fileName: string): string {
    if (Buffer.byteLength(fileName) > RUN_NAME_BYTES_MAX)
      throw new ShadowVmError('INTERNAL', {
        attempted: 'name a socket',
        subject: fileName,
        reason: `names in run/ have at most ${RUN_NAME_BYTES_MAX} bytes`,
      });
    return join(this.runDir, fileName);
  }

  /** Durable when it resolves. Saves of one VM happen in the order of the calls. @throws NO_SPACE */
  saveVmRecord(record: VmRecord): Promise<void> {
    const name = record.spec.name;
    // Made text at once: the caller goes on changing its record while an earlier save is still being written.
    const text = recordText(record);
    const noted = this.#noted.delete(name);
    return this.#inOrder(name, async () => {
      try {
        mkdirSync(this.vmDir(name), { recursive: true, mode: 0o700 });
      } catch (error) {
        throw fileError(error, 'make the directory of the VM', this.vmDir(name));
      }
      try {
        await writeFileAtomic(this.recordPath(name), text);
      } catch (error) {
        if (noted) this.#noted.add(name);
        throw error;
      }
      if (noted && !this.#noted.has(name)) await rm(this.notePath(name), { force: true });
    });
  }

  /**
   * The next manager finds it, but waits for no disk: after a power loss the record before it counts. That is enough for a
   * promotion, as a power loss ends both QEMUs too; a save has to follow. @throws NO_SPACE
   */
  noteVmRecord(record: VmRecord): void {
    const { name } = record.spec;
    try {
      writeFileSync(this.notePath(name), recordText(record), { mode: 0o600 });
    } catch (error) {
      throw fileError(error, 'write the file', this.notePath(name));
    }
    this.#noted.add(name);
  }

  /** A note that was left by a manager which ended before it could save: one that is not whole was never relied on. */
  async #newerOf(record: VmRecord): Promise<VmRecord> {
    const { name } = record.spec;
    const note = await readJson(this.notePath(name), vmRecordSchema).catch(() => null);
    if (existsSync(this.notePath(name))) this.#noted.add(name);
    return note !== null && note.spec.name === name && note.generation > record.generation ? note : record;
  }

  /** Forgets a VM with its logs. The record goes first: a removal cut short leaves a directory that counts as nothing. */
  removeVmRecord(name: string): Promise<void> {
    return this.#inOrder(name, async () => {
      try {
        await rm(this.recordPath(name), { force: true });
        await rm(this.vmDir(name), { recursive: true, force: true });
      } catch (error) {
        throw fileError(error, 'remove the state of the VM', this.vmDir(name));
      }
    });
  }

  /**
   * Every VM's record, by name. One that can not be read is renamed to vm.json.corrupt and told as an event, and the
   * other VMs go on: one bad file must not take the protection of all. A directory without record is what a creation or
   * a removal that was cut short left, and is removed.
   */
  async loadVmRecords(events: Pick<EventLog, 'append'>): Promise<VmRecord[]> {
    const records: VmRecord[] = [];
    for (const name of (await readdir(this.vmsDir)).sort()) {
      if (!vmNameSchema.safeParse(name).success) continue;
      const path = this.recordPath(name);
      try {
        const record = await readJson(path, vmRecordSchema);
        if (record === null) {
          if (!(await readdir(this.vmDir(name))).some((file) => file.startsWith('vm.json.corrupt')))
            await rm(this.vmDir(name), { recursive: true, force: true });
        } else if (record.spec.name !== name) {
          throw corrupt(path, `it is about a VM with another name, ${record.spec.name}`);
        } else records.push(await this.#newerOf(record));
      } catch (error) {
        if (!(error instanceof ShadowVmError && error.code === 'STATE_CORRUPT')) throw error;
        const movedTo = `${path}.corrupt`;
        await rename(path, movedTo);
        events.append(
          'error',
          'state.corrupt',
          name,
          `the record of the VM ${name} can not be read and was set aside as ${movedTo}; what the VM left on the host is not known any more`,
          { path, movedTo, reason: error.reason },
        );
      }
    }
    return records;
  }

  #inOrder(name: string, write: () => Promise<void>): Promise<void> {
    const before = this.#writes.get(name) ?? Promise.resolve();
    const mine = before.then(write, write);
    this.#writes.set(name, mine);
    const forget = () => {
      if (this.#writes.get(name) === mine) this.#writes.delete(name);
    };
    mine.then(forget, forget);
    return mine;
  }
}

function recordText(record: VmRecord): string {
  return `${JSON.stringify(vmRecordSchema.parse(record), null, 2)}\n`;
}

/** Replaces a file whole or not at all, durably. @throws NO_SPACE, NOT_ROOT, INTERNAL */
export async function writeFileAtomic(path: string, data: string | Uint8Array): Promise<void> {
  try {
    await replaceFile(path, data);
  } catch (error) {
    throw fileError(error, 'write the file', path);
  }
}

/** The file's content as the schema has it; null when there is no such file. @throws STATE_CORRUPT */
export async function readJson<T>(path: string, schema: z.ZodType<T>): Promise<T | null> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw fileError(error, 'read the file', path);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw corrupt(path, `it is not JSON: ${(error as Error).message}`, error);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success)
    throw corrupt(
      path,
      parsed.error.issues.map((issue) => `${issue.path.join('.') || 'it'}: ${issue.message}`).join('; '),
      parsed.error,
    );
  return parsed.data;
}

function corrupt(path: string, reason: string, cause?: unknown): ShadowVmError {
  return new ShadowVmError('STATE_CORRUPT', {
    attempted: 'read the state file',
    subject: path,
    reason,
    remedy: 'Repair the file or move it away, and start the daemon again',
    cause,
  });
}

/** The pid that a daemon wrote into its lock, for messages only: whether it runs is for the lock to say. */
function lockHolderPid(lockPath: string): number | null {
  try {
    const pid = Number.parseInt(readFileSync(lockPath, 'utf8'), 10);
    return Number.isSafeInteger(pid) && pid > 0 ? pid : null;
  } catch {
    return null;
  }
}

/** A lock of the kernel, not a pid file: it ends with its process, however that ends, and is never stale. */
function takeLock(lockPath: string): number {
  let fd: number;
  try {
    fd = loadAddon<{ lockFile(path: string): number }>().lockFile(lockPath);
  } catch (error) {
    if (!isNativeFailure(error) || error.code !== 'EAGAIN') throw error;
    const pid = lockHolderPid(lockPath);
    throw new ShadowVmError('STATE_LOCKED', {
      attempted: 'take the state directory',
      subject: dirname(lockPath),
      reason: `another daemon has it${pid === null ? '' : `, process ${pid}`}`,
      remedy: 'Stop that daemon, or give this one a directory of its own with --state',
      cause: error,
    });
  }
  ftruncateSync(fd);
  writeSync(fd, `${process.pid}\n`, 0);
  return fd;
}

/** Not mkdir's own `recursive`: below /proc, where a parent exists and takes no directory, Node tries that for ever. */
function makeDir(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if (errnoOf(error) === 'EEXIST' && statSync(path).isDirectory()) return;
    if (errnoOf(error) !== 'ENOENT' || existsSync(dirname(path))) throw error;
    makeDir(dirname(path));
    mkdirSync(path, { mode: 0o700 });
  }
}

/** Mode 0700: whoever reaches the API socket commands the VMs. A directory that holds other things is left as it is. */
function makePrivate(root: string): void {
  const foreignBits = statSync(root).mode & 0o077;
  if (foreignBits === 0) return;
  const strange = readdirSync(root).find((entry) => !ENTRIES.includes(entry));
  if (strange !== undefined)
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'use the directory for the state',
      subject: root,
      reason: `it is open to other users and holds other things (${strange}), so it is not closed to them on its own`,
      remedy: 'Give --state a directory of its own, or set the mode of this one to 0700',
    });
  chmodSync(root, 0o700);
}

function errnoOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error ? String(error.code) : undefined;
}

/** Gives a failed file operation the code that tells the user what to do. */
export function fileError(error: unknown, attempted: string, path: string): ShadowVmError {
  if (error instanceof ShadowVmError) return error;
  const reason = messageOf(error);
  const detail = { attempted, subject: path, reason, cause: error };
  switch (errnoOf(error)) {
    case 'ENOSPC':
    case 'EDQUOT':
      return new ShadowVmError('NO_SPACE', { ...detail, remedy: 'Make room on the file system of this path' });
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new ShadowVmError('NOT_ROOT', {
        ...detail,
        remedy: 'Run as a user who may write there, or choose another directory with --state or SHADOWVM_STATE',
      });
    case 'ENOTDIR':
    case 'EEXIST':
    case 'ENAMETOOLONG':
      return new ShadowVmError('INVALID_ARGUMENT', { ...detail, remedy: 'Choose another path' });
    default:
      return new ShadowVmError('INTERNAL', { ...detail, remedy: 'Look at the state of the file system' });
  }
}
