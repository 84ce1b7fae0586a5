/**
 * What this host offers and what is missing. Each examination tries the thing itself, with the code that the manager
 * uses; none of them throws, and all together take as long as the longest: KVM's deadline of two seconds.
 */
import { closeSync } from 'node:fs';
import { readdir, readFile, statfs } from 'node:fs/promises';
import { release } from 'node:os';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { openCgroups } from '../allocate/cgroup.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { createMemoryFile } from '../native/memory.js';
import { tapsPermitted } from '../network/network.js';
import { nftSupport } from '../network/nft.js';
import { findQemu, formatQemuVersion, hostTscKhz, probeKvm, probeTracking, type Qemu } from '../qemu/probe.js';

/** fail: VMs can not run. warn: they run, with less protection, speed or comfort than they could. */
type FindingStatus = 'ok' | 'warn' | 'fail';

export interface Finding {
  /** Stable: "node", "root", "qemu", "kvm", "tracking", "cgroups", "network", "firewall", "memory", "disk", "images", ... */
  name: string;
  status: FindingStatus;
  /** What was found, in a clause for people. */
  found: string;
  /** What to do about it; null where there is nothing to do. */
  remedy: string | null;
}

export interface ExamineOptions {
  imagesDir: string;
  stateDir: string;
}

const NODE_VERSION_MIN = [20, 20] as const;
const KERNEL_VERSION_TRACKING = [6, 7] as const;
const GIB = 1024 ** 3;
const MIB = 1024 ** 2;
/** A VM of the default size with its shadow, and the manager beside it. */
const RAM_BYTES_WANTED = GIB;
/** The smallest VM with its shadow. */
const RAM_BYTES_MIN = 256 * MIB;
/** An image, and logs for a while. */
const DISK_BYTES_WANTED = GIB;
const DISK_BYTES_MIN = 100 * MIB;

type Examination = () => Omit<Finding, 'name'> | Promise<Omit<Finding, 'name'>>;

/** In the order in which one would put things right. Never throws. */
export async function examineHost({ imagesDir, stateDir }: ExamineOptions): Promise<Finding[]> {
  const qemu = findQemu();
  // Two examinations wait for it; each of them reports its failure.
  qemu.catch(() => undefined);
  const examinations: Record<string, Examination> = {
    node: examineNode,
    root: examineRoot,
    kernel: examineKernel,
    qemu: () => examineQemu(qemu),
    kvm: () => examineKvm(qemu),
    tsc: examineTsc,
    tracking: examineTracking,
    memory: examineMemory,
    cgroups: examineCgroups,
    network: examineNetwork,
    firewall: examineFirewall,
    disk: () => examineDisk(stateDir),
    images: () => examineImages(imagesDir),
  };
  return await Promise.all(
    Object.entries(examinations).map(async ([name, examine]): Promise<Finding> => {
      try {
        return { name, ...(await examine()) };
      } catch (error) {
        const reason = error instanceof ShadowVmError ? error.reason : messageOf(error);
        const remedy = error instanceof ShadowVmError ? (error.remedy ?? null) : null;
        return { name, status: 'fail', found: reason, remedy };
      }
    }),
  );
}

function ok(found: string): Omit<Finding, 'name'> {
  return { status: 'ok', found, remedy: null };
}

function warn(found: string, remedy: string): Omit<Finding, 'name'> {
  return { status: 'warn', found, remedy };
}

function fail(found: string, remedy: string): Omit<Finding, 'name'> {
  return { status: 'fail', found, remedy };
}

/** Whether "6.18.3-cloud" is at least [6, 7]. */
export function isAtLeast(version: string, [wantedMajor, wantedMinor]: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = version.split('.').map((part) => Number.parseInt(part, 10));
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}

function examineNode() {
  const found = `Node.js ${process.versions.node}`;
  const wanted = NODE_VERSION_MIN.join('.');
  return isAtLeast(process.versions.node, NODE_VERSION_MIN) ? ok(found) : fail(found, `Install ${wanted} or newer`);
}

function examineRoot() {
  if (process.getuid?.() === 0) return ok('running as root');
  return warn(
    `running as user ${process.getuid?.() ?? 'unknown'}: no taps, and limits only in a delegated cgroup`,
    'Start the manager as root; QEMU itself drops its rights',
  );
}

function examineKernel() {
  const found = `Linux ${release()}`;
  if (isAtLeast(release(), KERNEL_VERSION_TRACKING)) return ok(found);
  return warn(
    `${found}: no write tracking, epochs compare all memory by checksum`,
    `Linux ${KERNEL_VERSION_TRACKING.join('.')} or newer finds changed pages at a fraction of the cost`,
  );
}

async function examineQemu(qemu: Promise<Qemu>) {
  const { path, version } = await qemu;
  return ok(`QEMU ${formatQemuVersion(version)} at ${path}`);
}

async function examineKvm(qemu: Promise<Qemu>) {
  const found = await qemu.catch(() => null);
  if (found === null) return warn('not examined, since QEMU is missing', 'Install QEMU first');
  const { usable, reason } = await probeKvm({ qemu: found });
  if (usable) return ok(`KVM runs guests: ${reason}`);
  return warn(
    `VMs will be emulated (TCG), several times slower: ${reason}`,
    'Enable virtualization in the firmware, or nested virtualization in the hypervisor above this host',
  );
}

function examineTsc() {
  return ok(`time stamp counter at ${(hostTscKhz() / 1000).toFixed(1)} MHz`);
}

function examineTracking() {
  const { usable, reason } = probeTracking();
  if (usable) return ok('writes to guest memory are tracked by the kernel');
  return warn(
    `changed pages are found by checksum alone, at more CPU: ${reason}`,
    'Use Linux 6.7 or newer, and allow userfaultfd to the manager and QEMU',
  );
}

async function examineMemory() {
  closeSync(createMemoryFile('shadowvm-doctor'));
  const meminfo = await readFile('/proc/meminfo', 'utf8');
  const kiB = Number(/^MemAvailable:\s+(\d+) kB$/m.exec(meminfo)?.[1] ?? Number.NaN);
  const bytes = kiB * 1024;
  const found = `${Math.floor(bytes / MIB)} MiB of memory available, memory files work`;
  if (bytes < RAM_BYTES_MIN) return fail(found, 'Free memory: a small VM and its shadow need 256 MiB');
  if (bytes < RAM_BYTES_WANTED) return warn(found, 'A VM of the default size and its shadow need 1 GiB');
  return ok(found);
}

function examineCgroups() {
  const cgroups = openCgroups(`shadowvm-doctor-${process.pid}`);
  if (cgroups.driver === null)
    return warn(
      `VMs and shadows run without CPU and memory limits: ${cgroups.reason}`,
      'Start the manager as root, or in a cgroup that is delegated to it (systemd: Delegate=yes)',
    );
  const { version } = cgroups.driver;
  cgroups.driver.close();
  return ok(`CPU and memory limits by cgroup v${version}`);
}

function examineNetwork() {
  const permitted = tapsPermitted();
  if (permitted.ok) return ok('taps and bridges can be made');
  return warn(
    `VMs get QEMU's user-mode network, without an address of their own: ${permitted.reason}`,
    'Start the manager as root with the kernel modules tun and bridge',
  );
}

async function examineFirewall() {
  const { guard, translate } = await nftSupport();
  const missing = [
    ...(guard === null ? [] : [`guests can speak for other addresses and have no bandwidth limit: ${guard.reason}`]),
    ...(translate === null ? [] : [`networks have no NAT and taps no published ports: ${translate.reason}`]),
  ];
  if (missing.length === 0) return ok('nftables guards taps, translates addresses and publishes ports');
  const remedy = [guard, translate].find((error) => error?.code === 'PACKAGE_MISSING')?.remedy;
  return warn(
    missing.join('; '),
    remedy ?? 'Start the manager as root, on a kernel with nf_tables, nft_nat, nft_fib_inet and netdev ingress hooks',
  );
}

async function examineDisk(stateDir: string) {
  const existing = await nearestExisting(stateDir);
  const { bavail, bsize } = await statfs(existing);
  const bytes = bavail * bsize;
  const found = `${(bytes / GIB).toFixed(1)} GiB free for ${stateDir}`;
  const remedy = 'Free some space, or choose another state directory';
  if (bytes < DISK_BYTES_MIN) return fail(found, remedy);
  return bytes < DISK_BYTES_WANTED ? warn(found, remedy) : ok(found);
}

/** The state directory may not be there before the first start; its space is that of where it will be. */
async function nearestExisting(path: string): Promise<string> {
  for (let at = path; ; at = dirname(at)) {
    try {
      await statfs(at);
      return at;
    } catch (error) {
      if (dirname(at) === at) throw error;
    }
  }
}

const manifestSchema = z.object({ imageMiB: z.number() });

async function examineImages(imagesDir: string) {
  const remedy = 'Build one with `shadowvm image build`';
  let names: string[];
  try {
    names = (await readdir(imagesDir)).filter((name) => !name.startsWith('.')).sort();
  } catch {
    return warn(`no images: ${imagesDir} does not exist`, remedy);
  }
  const images: string[] = [];
  const broken: string[] = [];
  for (const name of names) {
    try {
      const text = await readFile(join(imagesDir, name, 'manifest.json'), 'utf8');
      images.push(`${name} (${Math.round(manifestSchema.parse(JSON.parse(text)).imageMiB)} MiB)`);
    } catch {
      broken.push(name);
    }
  }
  if (broken.length > 0) return warn(`without a readable manifest: ${broken.join(', ')}`, remedy);
  return images.length === 0 ? warn(`no images in ${imagesDir}`, remedy) : ok(images.join(', '));
}
