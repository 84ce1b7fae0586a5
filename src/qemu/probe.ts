/** What this host offers to QEMU, found out by trying it: the binary, KVM, the time stamp counter, write tracking. */
import { execFile, spawn } from 'node:child_process';
import { constants } from 'node:fs';
import { access, mkdtemp, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { release, tmpdir } from 'node:os';
import { delimiter, join, resolve as resolvePath } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { messageOf, ShadowVmError } from '../errors.js';
import { loadAddon } from '../native/index.js';
import type { QemuVersion } from './argv.js';

export const QEMU_BINARY = 'qemu-system-x86_64';
/** Bookworm's. Older ones lack what the device state and the disk deltas are taken with. */
const QEMU_VERSION_MIN = { major: 7, minor: 2 } as const;

// ---- QEMU ----

export interface Qemu {
  /** Absolute path of the binary. */
  path: string;
  version: QemuVersion;
  /** Folders for `-L`, of a QEMU that is not installed in its own place; usually empty. */
  dataDirs: string[];
}

export interface FindQemuOptions {
  /** Default: the environment of this process. SHADOWVM_QEMU, SHADOWVM_QEMU_DATA (separated by colons) and PATH count. */
  env?: Readonly<Record<string, string | undefined>>;
}

/** @throws QEMU_MISSING, QEMU_TOO_OLD */
export async function findQemu(options: FindQemuOptions = {}): Promise<Qemu> {
  const env = options.env ?? process.env;
  const path = await locateQemu(env);
  const version = await readQemuVersion(path);
  if (
    version.major < QEMU_VERSION_MIN.major ||
    (version.major === QEMU_VERSION_MIN.major && version.minor < QEMU_VERSION_MIN.minor)
  )
    throw new ShadowVmError('QEMU_TOO_OLD', {
      attempted: 'use QEMU',
      subject: path,
      reason: `it is version ${formatQemuVersion(version)}; ${QEMU_VERSION_MIN.major}.${QEMU_VERSION_MIN.minor} or newer is needed`,
      remedy: 'Install a newer one, or point SHADOWVM_QEMU at it',
    });
  const dataDirs = (env.SHADOWVM_QEMU_DATA ?? '').split(delimiter).filter((dir) => dir !== '');
  return { path, version, dataDirs };
}

async function locateQemu(env: Readonly<Record<string, string | undefined>>): Promise<string> {
  const wish = env.SHADOWVM_QEMU ?? '';
  const name = wish === '' ? QEMU_BINARY : wish;
  // As a shell does: a name with a slash is a path, any other is looked for.
  const candidates = name.includes('/')
    ? [resolvePath(name)]
    : (env.PATH ?? '')
        .split(delimiter)
        .filter((dir) => dir !== '')
        .map((dir) => join(dir, name));
  for (const candidate of candidates) if (await isExecutableFile(candidate)) return candidate;
  throw new ShadowVmError('QEMU_MISSING', {
    attempted: 'find QEMU',
    subject: name,
    reason: name.includes('/') ? 'SHADOWVM_QEMU names no executable file' : 'no folder of PATH has it',
    remedy: 'Install it with `apt-get install qemu-system-x86`, or point SHADOWVM_QEMU at the binary',
  });
}

async function isExecutableFile(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK);
    return (await stat(path)).isFile();
  } catch {
    return false;
  }
}

const VERSION_TIMEOUT_MS = 5000;

async function readQemuVersion(path: string): Promise<QemuVersion> {
  const fail = (reason: string, cause?: unknown) =>
    new ShadowVmError('QEMU_MISSING', {
      attempted: 'ask QEMU for its version',
      subject: path,
      reason,
      remedy: `Check that \`${path} --version\` works; the package is qemu-system-x86`,
      cause,
    });
  let output: string;
  try {
    const options = { timeout: VERSION_TIMEOUT_MS, killSignal: 'SIGKILL', maxBuffer: 64 * 1024 } as const;
    output = (await promisify(execFile)(path, ['--version'], options)).stdout;
  } catch (error) {
    throw fail(error instanceof Error ? error.message.trim() : String(error), error);
  }
  return parseQemuVersion(output) ?? throwError(fail(`it answered ${JSON.stringify(output.slice(0, 80))}`));
}

function throwError(error: Error): never {
  throw error;
}

/** "QEMU emulator version 7.2.22 (Debian ...)"; null when it is not that. */
export function parseQemuVersion(text: string): QemuVersion | null {
  const match = /^QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?/.exec(text);
  return match === null ? null : { major: Number(match[1]), minor: Number(match[2]), micro: Number(match[3] ?? 0) };
}

export function formatQemuVersion({ major, minor, micro }: QemuVersion): string {
  return `${major}.${minor}.${micro}`;
}

// ---- KVM ----

export interface KvmProbe {
  usable: boolean;
  /** One clause for people: why not, or how it was shown. */
  reason: string;
}

export interface ProbeKvmOptions {
  qemu: Qemu;
  /** Default 2000. A host whose KVM works needs below 100. */
  deadlineMs?: number;
  /** The answer is kept here between runs of the manager; the file's folder must exist. */
  cacheFile?: string | undefined;
}

/**
 * Whether KVM really runs guests. That /dev/kvm opens tells little: there are nested, paravirtual KVMs that run only
 * guests with a kernel of their own kind. They do execute our guest's code, but by interpreting it, some hundred times
 * slower than TCG, so that a stock kernel's boot looks like a hang. Hence the tiny guest has to go the way of a kernel,
 * from real mode to 64-bit mode with paging, and then do an amount of work that only real hardware does in time.
 * Never throws: every doubt is a "not usable" with its reason, and TCG is the way out.
 */
export async function probeKvm(options: ProbeKvmOptions): Promise<KvmProbe> {
  // Always asked anew: modules get loaded and permissions changed.
  try {
    await (await open('/dev/kvm', 'r+')).close();
  } catch (error) {
    return { usable: false, reason: `/dev/kvm can not be opened: ${messageOf(error)}` };
  }
  // The boot is part of the key, since a host can be given nested virtualization without a change of its kernel.
  const bootId = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => '');
  const key = [release(), bootId.trim(), options.qemu.path, formatQemuVersion(options.qemu.version)].join(' ');
  const known = kvmAnswers.get(key) ?? (await readKvmCache(options.cacheFile, key));
  if (known !== null) {
    kvmAnswers.set(key, known);
    return known;
  }
  const run = await runProbeGuest(options.qemu, 'kvm', 'host', options.deadlineMs ?? 2000);
  const answer = { usable: run.ok, reason: run.reason };
  kvmAnswers.set(key, answer);
  await writeKvmCache(options.cacheFile, key, answer);
  return answer;
}

const kvmAnswers = new Map<string, KvmProbe>();

/** A "no" may have come of a moment's overload; it is doubted after a day. */
const KVM_NO_LASTS_MS = 24 * 3600 * 1000;

const kvmCacheSchema = z.object({ key: z.string(), usable: z.boolean(), reason: z.string(), atMs: z.number() });

async function readKvmCache(file: string | undefined, key: string): Promise<KvmProbe | null> {
  if (file === undefined) return null;
  try {
    const cached = kvmCacheSchema.parse(JSON.parse(await readFile(file, 'utf8')));
    const ageMs = Date.now() - cached.atMs;
    // Negative: the clock was set back, so the age is not known.
    const fresh = cached.usable || (ageMs >= 0 && ageMs < KVM_NO_LASTS_MS);
    return cached.key === key && fresh ? { usable: cached.usable, reason: cached.reason } : null;
  } catch {
    // Missing or damaged: the probe just runs again.
    return null;
  }
}

async function writeKvmCache(file: string | undefined, key: string, answer: KvmProbe): Promise<void> {
  if (file === undefined) return;
  try {
    const draft = `${file}.${process.pid}`;
    await writeFile(draft, JSON.stringify({ key, ...answer, atMs: Date.now() }));
    await rename(draft, file);
  } catch {
    // Only the next start's speed depends on it.
  }
}

export interface ProbeRun {
  ok: boolean;
  reason: string;
  elapsedMs: number;
}

const STDERR_BYTES_MAX = 4096;
/** isa-debug-exit turns a guest's outb(v) into the exit code (v << 1) | 1. */
const PROBE_EXIT_VALUE = 0x10;

/** Runs the tiny guest. Exported for the tests, which show with TCG that it can succeed. */
export async function runProbeGuest(
  qemu: Qemu,
  accelerator: 'kvm' | 'tcg',
  cpu: string,
  deadlineMs: number,
): Promise<ProbeRun> {
  const startedAt = performance.now();
  const elapsed = (): number => performance.now() - startedAt;
  let dir: string | undefined;
  try {
    dir = await mkdtemp(join(tmpdir(), 'shadowvm-probe-'));
    const bios = join(dir, 'bios.bin');
    await writeFile(bios, probeBios());
    const argv = [
      ...qemu.dataDirs.flatMap((dataDir) => ['-L', dataDir]),
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
      ...['-machine', 'microvm', '-accel', accelerator, '-cpu', cpu, '-m', '16', '-bios', bios],
      ...['-serial', 'stdio', '-device', 'isa-debug-exit,iobase=0xf4,iosize=4'],
    ];
    const result = await runWithDeadline(qemu.path, argv, deadlineMs);
    return { ...judge(result, deadlineMs), elapsedMs: elapsed() };
  } catch (error) {
    return { ok: false, reason: `the probe could not run: ${messageOf(error)}`, elapsedMs: elapsed() };
  } finally {
    if (dir !== undefined) await rm(dir, { recursive: true, force: true }).catch(() => undefined);
  }
}

interface RunResult {
  stdout: string;
  stderr: string;
  /** null: it was killed at the deadline, or by a signal of its own. */
  exitCode: number | null;
  signal: string | null;
  timedOut: boolean;
}

function judge(result: RunResult, deadlineMs: number): { ok: boolean; reason: string } {
  const marks = result.stdout;
  if (result.exitCode === ((PROBE_EXIT_VALUE << 1) | 1) && marks === 'RLK')
    return { ok: true, reason: 'a test guest ran to its end' };
  const lines = result.stderr.trim().split('\n');
  // The error itself, not the warnings before it nor the assertion that may follow; else whatever came last.
  const words = (lines.find((line) => /\berror:/.test(line)) ?? lines.at(-1) ?? '').replace(
    /^[\w/.-]*qemu[\w.-]*: /,
    '',
  );
  if (!result.timedOut)
    return { ok: false, reason: `QEMU gave up (${result.signal ?? `exit code ${result.exitCode}`}): ${words}` };
  if (marks.startsWith('RL'))
    return {
      ok: false,
      reason: `it interprets guest code instead of running it: a test guest did not finish within ${deadlineMs} ms`,
    };
  if (marks.startsWith('R'))
    return { ok: false, reason: `a test guest started, but hung on its way into 64-bit mode (${deadlineMs} ms)` };
  return { ok: false, reason: `a test guest ran no instruction within ${deadlineMs} ms` };
}

function runWithDeadline(path: string, argv: string[], deadlineMs: number): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(path, argv, { stdio: ['ignore', 'pipe', 'pipe'] });
    const result: RunResult = { stdout: '', stderr: '', exitCode: null, signal: null, timedOut: false };
    const timer = setTimeout(() => {
      result.timedOut = true;
      child.kill('SIGKILL');
    }, deadlineMs);
    child.stdout.on('data', (chunk: Buffer) => {
      result.stdout = (result.stdout + chunk.toString('latin1')).slice(0, 64);
    });
    child.stderr.on('data', (chunk: Buffer) => {
      result.stderr = (result.stderr + chunk.toString()).slice(-STDERR_BYTES_MAX);
    });
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', (exitCode, signal) => {
      clearTimeout(timer);
      resolve({ ...result, exitCode, signal });
    });
  });
}

const BIOS_BYTES = 64 * 1024;
/** Where the last 128 KiB of the BIOS appear below 1 MiB; ours is the upper half of that. */
const BIOS_BASE = 0xf0000;
const GDT_OFFSET = 0x80;
/**
 * Three instructions each: 12 million in all. Measured: 4 ms of KVM on hardware, 40 ms of TCG, 7800 ms of an interpreter.
 */
const LOOPS = 4_000_000;

/**
 * The guest, written by hand so that no assembler is needed to build ShadowVM. It writes R in real mode, L in long
 * mode and K after its work to the serial port, then ends QEMU. Its page tables are at 0x1000: one 2 MiB page, mapped
 * to itself.
 */
export function probeBios(): Buffer {
  const u32 = (value: number): number[] => [value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24];
  const realMode = [
    ...[0xfa], //                                           cli
    ...[0xfc], //                                           cld
    ...[0xba, 0xf8, 0x03], //                               mov dx, 0x3f8
    ...[0xb0, 0x52], //                                     mov al, 'R'
    ...[0xee], //                                           out dx, al
    ...[0x31, 0xc0], //                                     xor ax, ax
    ...[0x8e, 0xd8], //                                     mov ds, ax
    ...[0x8e, 0xc0], //                                     mov es, ax
    ...[0xbf, 0x00, 0x10], //                               mov di, 0x1000
    ...[0xb9, 0x00, 0x18], //                               mov cx, 0x1800
    ...[0xf3, 0xab], //                                     rep stosw
    ...[0xc7, 0x06, 0x00, 0x10, 0x03, 0x20], //             mov word [0x1000], 0x2003    PML4 -> PDPT
    ...[0xc7, 0x06, 0x00, 0x20, 0x03, 0x30], //             mov word [0x2000], 0x3003    PDPT -> PD
    ...[0xc7, 0x06, 0x00, 0x30, 0x83, 0x00], //             mov word [0x3000], 0x0083    2 MiB page at 0
    ...[0x2e, 0x66, 0x0f, 0x01, 0x16, GDT_OFFSET + 16, 0x00], // lgdt cs:[descriptor]
    ...[0x0f, 0x20, 0xe0], //                               mov eax, cr4
    ...[0x0c, 0x20], //                                     or al, 0x20                  PAE
    ...[0x0f, 0x22, 0xe0], //                               mov cr4, eax
    ...[0x66, 0xb8, ...u32(0x1000)], //                     mov eax, 0x1000
    ...[0x0f, 0x22, 0xd8], //                               mov cr3, eax
    ...[0x66, 0xb9, ...u32(0xc0000080)], //                 mov ecx, EFER
    ...[0x0f, 0x32], //                                     rdmsr
    ...[0x80, 0xcc, 0x01], //                               or ah, 1                     LME
    ...[0x0f, 0x30], //                                     wrmsr
    ...[0x0f, 0x20, 0xc0], //                               mov eax, cr0
    ...[0x66, 0x0d, ...u32(0x80000001)], //                 or eax, 0x80000001           PG, PE
    ...[0x0f, 0x22, 0xc0], //                               mov cr0, eax
  ];
  const farJumpBytes = 8;
  const longModeAt = BIOS_BASE + realMode.length + farJumpBytes;
  const farJump = [0x66, 0xea, ...u32(longModeAt), 0x08, 0x00]; // jmp 8:longMode
  const longMode = [
    ...[0x66, 0xba, 0xf8, 0x03], //                         mov dx, 0x3f8
    ...[0xb0, 0x4c], //                                     mov al, 'L'
    ...[0xee], //                                           out dx, al
    ...[0xb9, ...u32(LOOPS)], //                            mov ecx, LOOPS
    ...[0x48, 0x83, 0xc3, 0x03], //                   loop: add rbx, 3
    ...[0xff, 0xc9], //                                     dec ecx
    ...[0x75, 0xf8], //                                     jnz loop
    ...[0xb0, 0x4b], //                                     mov al, 'K'
    ...[0xee], //                                           out dx, al
    ...[0xb0, PROBE_EXIT_VALUE], //                         mov al, value
    ...[0xe6, 0xf4], //                                     out 0xf4, al
    ...[0xf4], //                                     stop: hlt
    ...[0xeb, 0xfd], //                                     jmp stop
  ];
  const descriptors = [
    ...[0, 0, 0, 0, 0, 0, 0, 0],
    ...[0xff, 0xff, 0, 0, 0, 0x9a, 0xaf, 0], //             64-bit code
    ...[15, 0, ...u32(BIOS_BASE + GDT_OFFSET)], //          what lgdt reads: size less one, address
  ];
  const code = [...realMode, ...farJump, ...longMode];
  if (code.length > GDT_OFFSET) throw new RangeError('the probe guest has grown into its own descriptors');
  const bios = Buffer.alloc(BIOS_BYTES, 0xf4);
  bios.set(code, 0);
  bios.set(descriptors, GDT_OFFSET);
  bios.set([0xea, 0x00, 0x00, 0x00, 0xf0], BIOS_BYTES - 16); // reset vector: jmp 0xf000:0
  return bios;
}

// ---- What the addon measures ----

interface NativeProbe {
  measureTscKhz(): number;
  probeTracking(): string | null;
}

let tscKhz: number | undefined;

/**
 * The rate of the host's time stamp counter in whole kHz, measured once (20 ms) within 0.01 %: /proc/cpuinfo shows
 * the momentary clock of a core instead, and the kernel's own number is nowhere to be read. @throws NATIVE_ERROR
 */
export function hostTscKhz(): number {
  try {
    tscKhz ??= Math.round(loadAddon<NativeProbe>().measureTscKhz());
  } catch (error) {
    throw nativeError('measure the time stamp counter', error);
  }
  return tscKhz;
}

export interface TrackingProbe {
  usable: boolean;
  /** Why not; null when usable. */
  reason: string | null;
}

/** Whether writes to guest RAM can be tracked, found out by tracking a page. Below a millisecond. @throws NATIVE_ERROR */
export function probeTracking(): TrackingProbe {
  try {
    const reason = loadAddon<NativeProbe>().probeTracking();
    return { usable: reason === null, reason };
  } catch (error) {
    throw nativeError('try write tracking', error);
  }
}

function nativeError(attempted: string, error: unknown): ShadowVmError {
  if (error instanceof ShadowVmError) return error;
  return new ShadowVmError('NATIVE_ERROR', {
    attempted,
    reason: messageOf(error),
    remedy: 'ShadowVM needs an x86-64 host',
    cause: error,
  });
}
