/**
 * CPU and memory limits of VMs and shadows, by whichever cgroup version has both controllers here. One cgroup per QEMU
 * process, all below one parent per manager:
 *
 *   v2   <mount>/<parent>/<name>/{cpu.max,cpu.weight,memory.max}
 *   v1   <cpu mount>/<parent>/<name>/{cpu.cfs_quota_us,cpu.shares}, <memory mount>/<parent>/<name>/memory.limit_in_bytes
 *
 * Raising a limit is part of a failover, so it is synchronous: a write of some microseconds per limit.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf, ShadowVmError } from '../errors.js';
import { type CgroupMount, folderOf, parseCgroupMounts, parseOwnCgroup } from './cgroup-mounts.js';

interface CgroupLimits {
  /** Percent of one core: 250 is two and a half. At least 1; null: unlimited; left out: as it is. */
  cpuPercent?: number | null | undefined;
  /** At least 1 MiB; null: unlimited; left out: as it is. */
  memoryBytes?: number | null | undefined;
  /** Share among competitors, 1–10000; 100 is everybody's default. Left out: as it is. */
  cpuWeight?: number | undefined;
}

export interface CgroupUsage {
  /** CPU time of all processes that ever were in it. (Exact for 104 days of CPU, within 2 ns for 104 more.) */
  cpuNs: number;
  /** Time that its threads were ready but held back by the CPU limit. */
  throttledNs: number;
  /** Memory charged to it now. Pages that another process touched first are charged to that one's cgroup. */
  memoryBytes: number;
}

export interface CgroupDriver {
  readonly version: 1 | 2;
  /** Makes a cgroup without limits; one that is left over under this name is reset. @throws CGROUP_FAILED */
  create(name: string): void;
  /** Moves a whole process. Memory it has already touched stays charged to where it was. @throws CGROUP_FAILED */
  addProcess(name: string, pid: number): void;
  /**
   * A few microseconds per limit, with one exception: when the only limited cgroup of the whole host becomes unlimited
   * (null), or the first one limited, the kernel rewrites its own code on all CPUs, which takes up to milliseconds. In a
   * failover, raise `cpuPercent` to something high instead.
   * @throws CGROUP_FAILED, also when a memory limit is below what is in use and can not be reclaimed (cgroup v2 alone
   * would kill a process of the group), INVALID_ARGUMENT
   */
  setLimits(name: string, limits: CgroupLimits): void;
  /**
   * From now on its processes get CPU only when nobody else wants it, and give it up at once. For good: it is for those
   * that end. @throws CGROUP_FAILED
   */
  makeIdle(name: string): void;
  /** Share of all cgroups of this driver together, 1–10000. @throws CGROUP_FAILED */
  weighAll(cpuWeight: number): void;
  /** @throws CGROUP_FAILED */
  usage(name: string): CgroupUsage;
  /** Its processes must have ended; waits up to a second for the kernel to notice. @throws CGROUP_FAILED */
  remove(name: string): Promise<void>;
  /** Removes every cgroup whose name begins with `prefix`; those in which processes live are told and left. */
  sweep(prefix: string): Promise<{ removed: string[]; busy: string[] }>;
  /** Removes the parent, if nothing is left in it. */
  close(): void;
}

/** Without a driver, VMs run unlimited; the reason is for a warning. */
export type Cgroups = { driver: CgroupDriver; reason: null } | { driver: null; reason: string };

/** Where to look; the tests put a tree of plain files here. */
export interface CgroupSources {
  mountinfo: string;
  ownCgroup: string;
}

const CPU_PERIOD_US = 100_000;
/** The kernel's own minimum of a quota: 1 % at our period. */
const CPU_PERCENT_MIN = 1;
const CPU_PERCENT_MAX = 100 * 4096;
const MEMORY_BYTES_MIN = 1024 * 1024;
/**
 * The VMs of a manager compete with everything else on the host as one group. At everybody's weight of 100 all of them
 * together would get as much of a busy host as one single shell script.
 */
const ALL_VMS_CPU_WEIGHT = 1000;
const REMOVE_TIMEOUT_MS = 1000;
const REMOVE_RETRY_MS = 10;

/** @param parentName unique to this manager on the host, such as "shadowvm-3fa2" */
export function openCgroups(parentName: string, sources?: CgroupSources): Cgroups {
  requireName(parentName);
  let where: CgroupSources;
  try {
    where = sources ?? {
      mountinfo: readFileSync('/proc/self/mountinfo', 'utf8'),
      ownCgroup: readFileSync('/proc/self/cgroup', 'utf8'),
    };
  } catch (error) {
    return { driver: null, reason: `the mounts of this process can not be read: ${messageOf(error)}` };
  }
  const mounts = parseCgroupMounts(where.mountinfo);
  const reasons: string[] = [];
  for (const open of [openV2, openV1]) {
    const result = open(parentName, mounts, where.ownCgroup);
    if (result.driver !== null) {
      result.driver.weighAll(ALL_VMS_CPU_WEIGHT);
      return result;
    }
    reasons.push(result.reason);
  }
  return { driver: null, reason: reasons.join('; ') };
}

/** Tries each candidate for a parent in turn; the first that works wins, else the last one's words are the reason. */
function firstThatWorks<T>(candidates: (string | null)[], attempt: (folder: string) => T): T | string {
  let reason = 'its folder is not visible here';
  for (const candidate of new Set(candidates)) {
    if (candidate === null) continue;
    try {
      return attempt(candidate);
    } catch (error) {
      reason = messageOf(error);
    }
  }
  return reason;
}

// ---- v2 ----

function openV2(parentName: string, mounts: CgroupMount[], ownCgroup: string): Cgroups {
  const mount = mounts.find((m) => m.version === 2);
  if (mount === undefined) return { driver: null, reason: 'cgroup v2 is not mounted' };
  const ownPath = parseOwnCgroup(ownCgroup, null);
  const own = ownPath === null ? null : folderOf(mount, ownPath);
  // The root first: below it, the limits of a service or session that the manager was started in do not reach the VMs.
  const parent = firstThatWorks([mount.mountPoint, own], (base) => {
    const available = read(join(base, 'cgroup.controllers')).trim().split(/\s+/);
    for (const controller of ['cpu', 'memory'])
      if (!available.includes(controller)) throw new Error(`${base} has no ${controller} controller`);
    if (base === own && base !== mount.mountPoint) leaveCgroup(base);
    enableControllers(base);
    const folder = join(base, parentName);
    makeFolder(folder);
    enableControllers(folder);
    return { folder };
  });
  if (typeof parent === 'string') return { driver: null, reason: `cgroup v2: ${parent}` };
  return { driver: new TreeDriver(2, { all: [parent.folder], v2: parent.folder }), reason: null };
}

function enableControllers(folder: string): void {
  const file = join(folder, 'cgroup.subtree_control');
  const enabled = existsSync(file) ? read(file).trim().split(/\s+/) : [];
  if (!['cpu', 'memory'].every((controller) => enabled.includes(controller))) write(file, '+cpu +memory');
}

/**
 * A v2 cgroup with processes in it can not hand controllers to its children. Of a cgroup delegated to the manager
 * (systemd's Delegate=yes) the manager is the process: it steps into a leaf. Others are not ours to move; then enabling
 * the controllers fails, and that is the reason told.
 */
function leaveCgroup(folder: string): void {
  const pids = read(join(folder, 'cgroup.procs')).trim().split('\n');
  if (!pids.includes(`${process.pid}`)) return;
  makeFolder(join(folder, 'manager'));
  write(join(folder, 'manager', 'cgroup.procs'), `${process.pid}`);
}

// ---- v1 ----

const V1_CONTROLLERS = ['cpu', 'cpuacct', 'memory'] as const;
type V1Folders = Record<(typeof V1_CONTROLLERS)[number], string>;

function openV1(parentName: string, mounts: CgroupMount[], ownCgroup: string): Cgroups {
  const mountOf = (controller: string) => mounts.find((m) => m.version === 1 && m.controllers.includes(controller));
  // Before anything is made in one hierarchy, all must be there.
  const missing = V1_CONTROLLERS.find((controller) => mountOf(controller) === undefined);
  if (missing !== undefined) return { driver: null, reason: `cgroup v1: the ${missing} controller is not mounted` };
  const folders: Partial<V1Folders> = {};
  for (const controller of V1_CONTROLLERS) {
    const mount = mountOf(controller)!;
    const ownPath = parseOwnCgroup(ownCgroup, controller);
    const parent = firstThatWorks(
      [mount.mountPoint, ownPath === null ? null : folderOf(mount, ownPath)],
      (base): { folder: string } => {
        const folder = join(base, parentName);
        makeFolder(folder);
        if (controller === 'cpu' && !existsSync(join(folder, 'cpu.cfs_quota_us')))
          throw new Error('this kernel has no CPU quotas (CONFIG_CFS_BANDWIDTH)');
        return { folder };
      },
    );
    if (typeof parent === 'string') return { driver: null, reason: `cgroup v1, ${controller}: ${parent}` };
    folders[controller] = parent.folder;
  }
  const v1 = folders as V1Folders;
  // cpu and cpuacct are often one mount: each folder once.
  return { driver: new TreeDriver(1, { all: [...new Set(Object.values(v1))], v1 }), reason: null };
}

// ---- The driver: the same tree of folders in each hierarchy, other file names in them. ----

type Tree = { all: string[]; v1: V1Folders; v2?: never } | { all: string[]; v2: string; v1?: never };

class TreeDriver implements CgroupDriver {
  constructor(
    readonly version: 1 | 2,
    private readonly tree: Tree,
  ) {}

  create(name: string): void {
    requireName(name);
    attempt('make a cgroup', name, () => {
      for (const parent of this.tree.all) makeFolder(join(parent, name));
      if (this.tree.v1 !== undefined) write(join(this.tree.v1.cpu, name, 'cpu.cfs_period_us'), `${CPU_PERIOD_US}`);
      this.#write(name, { cpuPercent: null, memoryBytes: null, cpuWeight: 100 });
    });
  }

  addProcess(name: string, pid: number): void {
    requireName(name);
    // 0 would mean the writer itself, that is, the manager.
    requireRange('pid', pid, 1, 2 ** 22, 'a process number');
    attempt('put a process into its cgroup', `${name}, process ${pid}`, () => {
      for (const parent of this.tree.all) write(join(parent, name, 'cgroup.procs'), `${pid}`);
    });
  }

  setLimits(name: string, limits: CgroupLimits): void {
    requireName(name);
    const { cpuPercent, memoryBytes, cpuWeight } = limits;
    if (typeof cpuPercent === 'number') requireRange('cpuPercent', cpuPercent, CPU_PERCENT_MIN, CPU_PERCENT_MAX);
    if (typeof memoryBytes === 'number')
      requireRange('memoryBytes', memoryBytes, MEMORY_BYTES_MIN, Number.MAX_SAFE_INTEGER);
    if (cpuWeight !== undefined) requireRange('cpuWeight', cpuWeight, 1, 10_000);
    attempt('set the limits of a cgroup', name, () => this.#write(name, limits));
  }

  makeIdle(name: string): void {
    requireName(name);
    const { v1, v2 } = this.tree;
    attempt('make a cgroup idle', name, () => {
      try {
        write(join(v1 === undefined ? v2 : v1.cpu, name, 'cpu.idle'), '1');
      } catch (error) {
        // Kernels before 5.15. Not for writeFile to make: it is no file of a disk.
        if (!['ENOENT', 'EACCES', 'EPERM'].includes(codeOf(error) ?? '')) throw error;
        this.#write(name, { cpuWeight: 1 });
      }
    });
  }

  weighAll(cpuWeight: number): void {
    requireRange('cpuWeight', cpuWeight, 1, 10_000);
    attempt('weigh the cgroup of all VMs', 'parent', () => this.#write('.', { cpuWeight }));
  }

  #write(name: string, { cpuPercent, memoryBytes, cpuWeight }: CgroupLimits): void {
    const { v1, v2 } = this.tree;
    const quotaUs = typeof cpuPercent === 'number' ? Math.round((cpuPercent * CPU_PERIOD_US) / 100) : null;
    const bytes = typeof memoryBytes === 'number' ? Math.floor(memoryBytes) : null;
    if (v1 !== undefined) {
      if (cpuPercent !== undefined) write(join(v1.cpu, name, 'cpu.cfs_quota_us'), `${quotaUs ?? -1}`);
      // Shares have 1024 where weights have 100; the kernel takes 2 to 262144.
      if (cpuWeight !== undefined)
        write(join(v1.cpu, name, 'cpu.shares'), `${Math.min(262_144, Math.max(2, Math.round(cpuWeight * 10.24)))}`);
      if (memoryBytes !== undefined) write(join(v1.memory, name, 'memory.limit_in_bytes'), `${bytes ?? -1}`);
      return;
    }
    if (cpuPercent !== undefined) write(join(v2, name, 'cpu.max'), `${quotaUs ?? 'max'} ${CPU_PERIOD_US}`);
    if (cpuWeight !== undefined) write(join(v2, name, 'cpu.weight'), `${Math.round(cpuWeight)}`);
    if (memoryBytes !== undefined) {
      if (bytes !== null) this.#requireReclaimable(join(v2, name), bytes);
      write(join(v2, name, 'memory.max'), `${bytes ?? 'max'}`);
    }
  }

  /** v1 refuses a limit that it can not bring the usage under (EBUSY); v2 would take it and kill QEMU instead. */
  #requireReclaimable(folder: string, limitBytes: number): void {
    const usedBytes = Number(read(join(folder, 'memory.current')));
    if (usedBytes <= limitBytes) return;
    const stat = readPairs(join(folder, 'memory.stat'));
    // Page cache can be dropped; guest RAM is shared memory, which `file` counts but only swap could take.
    const reclaimableBytes = (stat.get('file') ?? 0) - (stat.get('shmem') ?? 0);
    if (usedBytes - reclaimableBytes > limitBytes)
      // The code that v1's kernel gives for the same.
      throw Object.assign(new Error(`${usedBytes - reclaimableBytes} bytes are in use that can not be reclaimed`), {
        code: 'EBUSY',
      });
  }

  usage(name: string): CgroupUsage {
    requireName(name);
    const { v1, v2 } = this.tree;
    return attempt('read the usage of a cgroup', name, () => {
      if (v1 !== undefined)
        return {
          cpuNs: Number(read(join(v1.cpuacct, name, 'cpuacct.usage'))),
          throttledNs: readPairs(join(v1.cpu, name, 'cpu.stat')).get('throttled_time') ?? 0,
          memoryBytes: Number(read(join(v1.memory, name, 'memory.usage_in_bytes'))),
        };
      const stat = readPairs(join(v2, name, 'cpu.stat'));
      return {
        cpuNs: (stat.get('usage_usec') ?? 0) * 1000,
        throttledNs: (stat.get('throttled_usec') ?? 0) * 1000,
        memoryBytes: Number(read(join(v2, name, 'memory.current'))),
      };
    });
  }

  async remove(name: string): Promise<void> {
    requireName(name);
    for (const parent of this.tree.all) {
      // A process that was killed leaves its cgroup only when it is reaped.
      const deadlineMs = performance.now() + REMOVE_TIMEOUT_MS;
      for (;;) {
        try {
          rmdirSync(join(parent, name));
          break;
        } catch (error) {
          const code = codeOf(error);
          if (code === 'ENOENT') break;
          if (code !== 'EBUSY' || performance.now() > deadlineMs) throw cgroupError('remove a cgroup', name, error);
        }
        await sleep(REMOVE_RETRY_MS);
      }
    }
  }

  async sweep(prefix: string): Promise<{ removed: string[]; busy: string[] }> {
    const names = attempt('look for leftover cgroups', prefix, () => {
      const found = this.tree.all.flatMap((parent) => readdirSync(parent, { withFileTypes: true }));
      return new Set(found.filter((e) => e.isDirectory() && e.name.startsWith(prefix)).map((e) => e.name));
    });
    const removed: string[] = [];
    const busy: string[] = [];
    for (const name of [...names].sort()) {
      // Not remove(): what is busy here has a living process, for which there is no use in waiting.
      const left = this.tree.all.filter((parent) => !removeFolder(join(parent, name)));
      (left.length === 0 ? removed : busy).push(name);
    }
    return { removed, busy };
  }

  close(): void {
    for (const parent of this.tree.all) removeFolder(parent);
  }
}

// ---- Files ----

function read(path: string): string {
  return readFileSync(path, 'utf8');
}

function write(path: string, value: string): void {
  writeFileSync(path, value);
}

/** "name value" per line, as in cpu.stat and memory.stat. */
function readPairs(path: string): Map<string, number> {
  const lines = read(path).trim().split('\n');
  return new Map(lines.map((line) => [line.slice(0, line.indexOf(' ')), Number(line.slice(line.indexOf(' ') + 1))]));
}

function makeFolder(path: string): void {
  try {
    mkdirSync(path);
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw error;
  }
}

/** @returns whether it is gone */
function removeFolder(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (error) {
    return codeOf(error) === 'ENOENT';
  }
}

// ---- Errors ----

function requireName(name: string): void {
  // A slash or ".." would lead out of our tree, and a dot is how the kernel's own files are told from cgroups.
  if (/^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$/.test(name)) return;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: 'name a cgroup',
    subject: name,
    reason: 'a name has 1 to 100 letters, digits, "_" and "-", beginning with a letter or digit',
  });
}

function requireRange(what: string, value: number, min: number, max: number, noun = 'a number'): void {
  if (value >= min && value <= max) return;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: 'limit a cgroup',
    subject: `${what} ${value}`,
    reason: `it must be ${noun} of ${min} to ${max}`,
  });
}

function attempt<T>(attempted: string, subject: string, step: () => T): T {
  try {
    return step();
  } catch (error) {
    throw cgroupError(attempted, subject, error);
  }
}

const REMEDIES: Record<string, string> = {
  EACCES: 'Start the manager as root, or in a cgroup that is delegated to it (systemd: Delegate=yes)',
  EPERM: 'Start the manager as root, or in a cgroup that is delegated to it (systemd: Delegate=yes)',
  EROFS: 'The cgroup tree is read-only here; in a container, run it privileged',
  EBUSY: 'Wait until its processes have ended, or choose a limit above what is in use',
  ESRCH: 'The process has ended; see the log of the VM',
  ENOENT: 'The cgroup is gone; restart the VM to have it made anew',
  ENODEV: 'The cgroup is gone; restart the VM to have it made anew',
};

function cgroupError(attempted: string, subject: string, error: unknown): ShadowVmError {
  return new ShadowVmError('CGROUP_FAILED', {
    attempted,
    subject,
    reason: messageOf(error),
    remedy: REMEDIES[codeOf(error) ?? ''] ?? 'See `shadowvm doctor` for what this host offers',
    cause: error,
  });
}

function codeOf(error: unknown): string | null {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : null;
}
