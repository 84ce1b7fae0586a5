/**
 * Builds an image: Debian's cloud kernel and an initramfs of busybox, the wanted packages, the kernel modules of our
 * machine, and our own guest part. No root is needed but for `apt-get update`, and the same inputs give the same bytes.
 */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { ShadowVmError, toShadowVmError } from '../errors.js';
import type { OnProgress } from '../vm/view.js';
import { Apt } from './apt.js';
import { packCpio } from './cpio.js';
import { PACKAGE_NAME, type PackageRecord, type SelectedPackage, selectPackages } from './debian-control.js';
import { FileTree, readTree } from './file-tree.js';
import { runTool } from './host-tool.js';
import { loadOrder, moduleDepends, moduleName } from './kernel-module.js';
import { addLibraries, isLibrary, isWanted } from './root-tree.js';
import {
  beginBuild,
  checkImageName,
  cleanBuilds,
  commitBuild,
  findImage,
  type Image,
  type ImageManifest,
  INITRD_FILE,
  imageMiB,
  KERNEL_FILE,
} from './store.js';

export interface BuildOptions {
  /** Folder of all images; made when missing. */
  imagesDir: string;
  name?: string;
  /** Debian packages whose programs the guest gets. One with a script in guest/services runs as a service. */
  packages?: readonly string[];
  /** A kernel package, or one that depends on the newest. */
  kernelPackage?: string;
  /** Downloads and apt's parsed lists; `<imagesDir>/.debs` unless told. */
  cacheDir?: string;
  /** Build even when nothing has changed. */
  force?: boolean;
}

export interface BuildResult {
  image: Image;
  /** Nothing had changed, and nothing was built. */
  cached: boolean;
  elapsedMs: number;
}

export const DEFAULT_IMAGE_NAME = 'default';
export const DEFAULT_PACKAGES: readonly string[] = ['redis-server'];
const DEFAULT_KERNEL_PACKAGE = 'linux-image-cloud-amd64';
const BUSYBOX_PACKAGE = 'busybox-static';
const PACKAGES_MAX = 256;

/** Rises when the builder puts other things, or things otherwise, into an image. */
const BUILDER_VERSION = 2;

/** Our machine's devices. Console first: it carries the heartbeat, which is to begin as early as possible. */
const MODULES = ['virtio_mmio', 'virtio_console', 'virtio_balloon', 'virtio_blk', 'virtio_net', 'virtio_rng'];
/** Loaded in guests that have a disk. A checksum that the file systems ask for by its algorithm's name comes first. */
const DISK_MODULES = ['crc32c_generic', 'ext4', 'xfs'];
const OPTIONAL_MODULES = new Set(['virtio_rng', 'crc32c_generic']);

/**
 * Builds the image, or finds that it is built already: then nothing is written and the network is not used.
 * @throws INVALID_ARGUMENT, PACKAGE_MISSING, IMAGE_BUILD_FAILED, NO_SPACE
 */
export async function buildImage(options: BuildOptions, onProgress: OnProgress = () => {}): Promise<BuildResult> {
  const startedMs = performance.now();
  const request = checkRequest(options);
  const { imagesDir, name } = request;
  try {
    const guest = await readGuestSources(request.packages);
    const existing = options.force ? null : await findImage(imagesDir, name).catch(nullWhenNotFound);
    const apt = new Apt(request.cacheDir);
    if (existing !== null && (await isCurrent(existing, request, guest, apt)))
      return { image: existing, cached: true, elapsedMs: performance.now() - startedMs };

    let inputs = await resolveInputs(apt, request, guest);
    await cleanBuilds(imagesDir);
    if (inputs === null) {
      onProgress({ message: 'fetching the package lists', done: 0 });
      await apt.update();
      inputs = await resolveInputs(apt, request, guest);
      if (inputs === null) throw noPackageLists();
    }
    let debs: Map<string, string>;
    try {
      onProgress({ message: 'fetching packages', done: 0.1 });
      debs = await apt.download(allRecords(inputs));
    } catch (error) {
      // Archives delete superseded versions: old package lists name files that are gone.
      if (process.geteuid?.() !== 0) throw error;
      onProgress({ message: `${toShadowVmError(error).reason.split('\n')[0]}; fetching the package lists`, done: 0 });
      await apt.update();
      inputs = (await resolveInputs(apt, request, guest)) ?? inputs;
      debs = await apt.download(allRecords(inputs));
    }
    const dir = await beginBuild(imagesDir, name);
    let committed = false;
    try {
      const manifest = await assemble(dir, request, guest, inputs, debs, onProgress);
      // Another process may have built the very same meanwhile; the first one stays, as it may be in use.
      const rival = options.force ? null : await findImage(imagesDir, name).catch(nullWhenNotFound);
      if (rival?.key !== manifest.key) {
        await commitBuild(imagesDir, dir, manifest);
        committed = true;
      }
    } finally {
      if (!committed) await rm(dir, { recursive: true, force: true });
    }
    onProgress({ message: 'done', done: 1 });
    return { image: await findImage(imagesDir, name), cached: false, elapsedMs: performance.now() - startedMs };
  } catch (error) {
    throw asBuildError(error, name);
  }
}

type Request = Required<Omit<BuildOptions, 'force'>>;

function checkRequest(options: BuildOptions): Request {
  const name = options.name ?? DEFAULT_IMAGE_NAME;
  checkImageName(name);
  const packages = [...new Set(options.packages ?? DEFAULT_PACKAGES)].sort();
  const kernelPackage = options.kernelPackage ?? DEFAULT_KERNEL_PACKAGE;
  const bad = [...packages, kernelPackage].find((each) => !PACKAGE_NAME.test(each));
  if (bad !== undefined || packages.length > PACKAGES_MAX)
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'build an image',
      subject: name,
      reason: bad === undefined ? `more than ${PACKAGES_MAX} packages` : `'${bad}' is no name of a Debian package`,
      remedy: 'Package names have lower-case letters, digits, plus, minus and dots',
    });
  const cacheDir = options.cacheDir ?? join(options.imagesDir, '.debs');
  return { imagesDir: options.imagesDir, name, packages, kernelPackage, cacheDir };
}

// --- What goes in -----------------------------------------------------------------------------------------------------

interface GuestSources {
  program: Buffer;
  init: Buffer;
  services: Map<string, Buffer>;
  key: string;
}

/** guest/ of the checkout, from the sources as from dist/. */
function guestDir(): string {
  const dir = ['../../guest/', '../../../guest/']
    .map((path) => fileURLToPath(new URL(path, import.meta.url)))
    .find((path) => existsSync(`${path}init`));
  if (dir !== undefined) return dir;
  throw new ShadowVmError('IMAGE_BUILD_FAILED', {
    attempted: 'find the sources of the guest part',
    reason: 'the folder guest/ is not beside the program',
    remedy: 'Install ShadowVM anew',
  });
}

async function readGuestSources(packages: readonly string[]): Promise<GuestSources> {
  const dir = guestDir();
  const [program, init] = await Promise.all([readFile(`${dir}shadowvm-guest.c`), readFile(`${dir}init`)]);
  const services = new Map<string, Buffer>();
  for (const name of packages) {
    const path = `${dir}services/${name}.sh`;
    if (existsSync(path)) services.set(name, await readFile(path));
  }
  const parts = [
    BUILDER_VERSION,
    sha256(program),
    sha256(init),
    ...[...services].map(([n, text]) => [n, sha256(text)]),
  ];
  return { program, init, services, key: sha256(JSON.stringify(parts)) };
}

interface Inputs {
  kernel: PackageRecord[];
  busybox: PackageRecord;
  packages: SelectedPackage[];
  key: string;
}

/** Null when this host has no package lists. @throws PACKAGE_MISSING when they do not have what was asked for */
async function resolveInputs(apt: Apt, request: Request, guest: GuestSources): Promise<Inputs | null> {
  const busybox = (await apt.show([BUSYBOX_PACKAGE])).get(BUSYBOX_PACKAGE);
  if (busybox === undefined) return null;
  const kernel = await selectKernel(apt, request.kernelPackage);
  const packages = await selectPackages(request.packages, apt);
  const key = sha256(
    JSON.stringify({
      guest: guest.key,
      kernel: kernel.map(identity),
      busybox: identity(busybox),
      // Which of them were asked for by name decides how much of each goes in.
      packages: packages.map(({ record, use }) => [identity(record), use]),
    }),
  );
  return { kernel, busybox, packages, key };
}

function identity(record: PackageRecord): string[] {
  return [record.name, record.version, record.sha256 ?? ''];
}

/** The kernel's package and those that Debian may split off it. */
async function selectKernel(apt: Apt, name: string): Promise<PackageRecord[]> {
  const found = new Map<string, PackageRecord>();
  for (let names = [name]; names.length > 0; ) {
    const records = await apt.show(names);
    for (const record of records.values()) found.set(record.name, record);
    names = [...records.values()]
      .flatMap((record) => record.depends.flat())
      .filter((each) => /^linux-(image|binary|modules)-\d/.test(each) && !found.has(each));
  }
  if (found.size > 0) return [...found.values()];
  throw new ShadowVmError('PACKAGE_MISSING', {
    attempted: 'find the kernel',
    subject: name,
    reason: 'the package lists of this host do not have it',
    remedy: 'Name another kernel package, or run `apt-get update`',
  });
}

function allRecords(inputs: Inputs): PackageRecord[] {
  const records = [...inputs.kernel, inputs.busybox, ...inputs.packages.map((each) => each.record)];
  return [...new Map(records.map((record) => [record.name, record])).values()];
}

/**
 * Whether a build would make this very image again: the same request, and no package of it has another version now. A
 * package's dependencies change only with its version, so they need no look. Packages that no list has count as
 * unchanged: without package lists, and without network, an image that is there is as new as can be told.
 */
async function isCurrent(image: ImageManifest, request: Request, guest: GuestSources, apt: Apt): Promise<boolean> {
  const same =
    image.guestKey === guest.key &&
    image.kernelPackage === request.kernelPackage &&
    JSON.stringify(image.requested) === JSON.stringify(request.packages);
  if (!same) return false;
  const candidates = await apt.candidates(image.packages.map((each) => each.name));
  return image.packages.every(({ name, version }) => (candidates.get(name) ?? version) === version);
}

// --- Putting it together ----------------------------------------------------------------------------------------------

async function assemble(
  dir: string,
  request: Request,
  guest: GuestSources,
  inputs: Inputs,
  debs: ReadonlyMap<string, string>,
  onProgress: OnProgress,
): Promise<ImageManifest> {
  const unpackDir = join(dir, 'unpacked');
  const unpack = async (record: PackageRecord, into: string): Promise<string> => {
    const folder = join(unpackDir, into);
    await mkdir(folder, { recursive: true });
    await runTool('dpkg-deb', ['-x', debs.get(record.name)!, folder], { attempted: 'unpack a package' });
    return folder;
  };

  onProgress({ message: 'unpacking the kernel', done: 0.5 });
  for (const record of inputs.kernel) await unpack(record, 'kernel');
  const kernel = await readKernel(join(unpackDir, 'kernel'), request.kernelPackage);

  onProgress({ message: 'unpacking the packages', done: 0.7 });
  const root = new FileTree();
  const libraries = new FileTree();
  for (const { record, use } of inputs.packages) {
    const folder = await unpack(record, record.name);
    for (const [path, entry] of readTree(folder, use === 'whole' ? isWanted : isLibrary).entries()) {
      if (use === 'whole') root.set(path, entry);
      if (isLibrary(path)) libraries.set(path, entry);
    }
  }
  for (const line of addLibraries(root, libraries))
    onProgress({ message: `note: ${line}, which no package has`, done: 0.8 });

  onProgress({ message: 'compiling the guest program', done: 0.8 });
  const busybox = join(await unpack(inputs.busybox, 'busybox'), 'bin/busybox');
  await addBase(root, existsSync(busybox) ? busybox : join(unpackDir, 'busybox/usr/bin/busybox'));
  addGuestPart(root, guest, await compileGuestProgram(request.cacheDir, guest.program));
  addModules(root, kernel);

  onProgress({ message: 'packing the initramfs', done: 0.9 });
  const initrd = await compress(packCpio(root), kernel);
  await writeFile(join(dir, KERNEL_FILE), kernel.image);
  await writeFile(join(dir, INITRD_FILE), initrd);
  await rm(unpackDir, { recursive: true });
  return {
    name: request.name,
    key: inputs.key,
    kernelVersion: kernel.version,
    requested: [...request.packages],
    kernelPackage: request.kernelPackage,
    guestKey: guest.key,
    packages: allRecords(inputs).map(({ name, version }) => ({ name, version })),
    services: [...guest.services.keys()],
    kernelBytes: kernel.image.length,
    initrdBytes: initrd.length,
    imageMiB: imageMiB(kernel.image.length + initrd.length),
    builtAt: new Date().toISOString(),
    bootMs: null,
  };
}

interface Kernel {
  version: string;
  image: Buffer;
  /** The configuration it was built with: lines of CONFIG_X=y. */
  config: string;
  /** Path in the guest and content, in the order of loading. */
  modules: KernelModule[];
  diskModules: KernelModule[];
}

interface KernelModule {
  path: string;
  content: Buffer;
}

async function readKernel(folder: string, subject: string): Promise<Kernel> {
  const fail = (reason: string): ShadowVmError =>
    new ShadowVmError('IMAGE_BUILD_FAILED', {
      attempted: 'use a kernel package',
      subject,
      reason,
      remedy: `Use a Debian kernel for virtual machines, as ${DEFAULT_KERNEL_PACKAGE} gives`,
    });
  const file = (await readdir(join(folder, 'boot')).catch(() => [])).find((name) => name.startsWith('vmlinuz-'));
  if (file === undefined) throw fail('it has no /boot/vmlinuz');
  const version = file.slice('vmlinuz-'.length);
  const modulesDir = ['usr/lib/modules', 'lib/modules'].map((d) => join(folder, d, version)).find((d) => existsSync(d));
  if (modulesDir === undefined) throw fail('it has no modules');

  const paths = new Map<string, string>();
  for (const path of await readdir(modulesDir, { recursive: true }))
    if (/\.ko(\.xz|\.zst)?$/.test(path)) paths.set(moduleName(path), join(modulesDir, path));
  const builtIn = new Set((await readFile(join(modulesDir, 'modules.builtin'), 'utf8')).split('\n').map(moduleName));

  // Only what is wanted is unpacked: a kernel has thousands of modules.
  const contents = new Map<string, Buffer>();
  const gather = async (name: string): Promise<void> => {
    if (builtIn.has(name) || contents.has(name)) return;
    const path = paths.get(name);
    if (path === undefined) {
      if (OPTIONAL_MODULES.has(name)) return;
      throw fail(`it has no module ${name}`);
    }
    const content = await readModule(path);
    contents.set(name, content);
    for (const dependency of moduleDepends(content)) await gather(dependency);
  };
  for (const name of [...MODULES, ...DISK_MODULES]) await gather(name);
  const inOrder = (names: readonly string[]): KernelModule[] =>
    loadOrder(names, (name) => {
      const content = contents.get(name);
      return content === undefined ? null : moduleDepends(content);
    }).map((name) => ({ path: `usr/lib/modules/${name}.ko`, content: contents.get(name)! }));
  const modules = inOrder(MODULES);
  const loaded = new Set(modules.map(({ path }) => path));
  return {
    version,
    image: await readFile(join(folder, 'boot', file)),
    config: await readFile(join(folder, 'boot', `config-${version}`), 'utf8'),
    modules,
    diskModules: inOrder(DISK_MODULES).filter(({ path }) => !loaded.has(path)),
  };
}

/** Uncompressed here, so that the guest need not do it at every boot; the initramfs is compressed as a whole. */
async function readModule(path: string): Promise<Buffer> {
  const content = await readFile(path);
  const options = { attempted: 'decompress a kernel module', input: content };
  if (path.endsWith('.xz')) return await runTool('xz', ['-dc'], options);
  if (path.endsWith('.zst')) return await runTool('zstd', ['-dcq'], options);
  return content;
}

/** The folders, links and accounts that programs expect of any system, and busybox under all of its names. */
async function addBase(root: FileTree, busyboxPath: string): Promise<void> {
  const text = (path: string, content: string): void => {
    if (root.get(path) === undefined) root.set(path, { kind: 'file', mode: 0o644, content: Buffer.from(content) });
  };
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    root.set(name, { kind: 'symlink', target: `usr/${name}` });
    if (root.get(`usr/${name}`) === undefined) root.set(`usr/${name}`, { kind: 'directory', mode: 0o755 });
  }
  for (const name of ['dev', 'etc', 'mnt', 'proc', 'run', 'sys', 'var/lib', 'var/log', 'var/cache'])
    if (root.get(name) === undefined) root.set(name, { kind: 'directory', mode: 0o755 });
  root.set('root', { kind: 'directory', mode: 0o700 });
  root.set('tmp', { kind: 'directory', mode: 0o1777 });
  root.set('var/run', { kind: 'symlink', target: '../run' });
  // The kernel opens it for init before devtmpfs is mounted.
  root.set('dev/console', { kind: 'device', mode: 0o600, major: 5, minor: 1 });
  text('etc/passwd', 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n');
  text('etc/group', 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n');
  text('etc/hosts', '127.0.0.1 localhost\n::1 localhost\n');
  text('etc/nsswitch.conf', 'passwd: files\ngroup: files\nhosts: files dns\n');
  text('etc/profile', "export PS1='\\h:\\w\\$ '\n");

  const content = await readFile(busyboxPath);
  root.set('usr/bin/busybox', { kind: 'file', mode: 0o755, content });
  const applets = await runTool(busyboxPath, ['--list'], { attempted: 'ask busybox for its commands' });
  for (const name of applets.toString('utf8').split('\n')) {
    // A package's own program is the better one wherever there is one.
    const taken = [`usr/bin/${name}`, `usr/sbin/${name}`].some((path) => root.get(path) !== undefined);
    if (name !== '' && !taken) root.set(`usr/bin/${name}`, { kind: 'symlink', target: 'busybox' });
  }
}

function addGuestPart(root: FileTree, guest: GuestSources, program: Buffer): void {
  root.set('init', { kind: 'file', mode: 0o755, content: guest.init });
  root.set('usr/bin/shadowvm-guest', { kind: 'file', mode: 0o755, content: program });
  for (const [name, content] of guest.services)
    root.set(`etc/shadowvm/services/${name}.sh`, { kind: 'file', mode: 0o644, content });
}

function addModules(root: FileTree, kernel: Kernel): void {
  const put = (list: string, modules: readonly KernelModule[]): void => {
    for (const { path, content } of modules) root.set(path, { kind: 'file', mode: 0o644, content });
    const text = modules.map(({ path }) => `/${path}\n`).join('');
    root.set(`usr/lib/${list}`, { kind: 'file', mode: 0o644, content: Buffer.from(text) });
  };
  put('modules.order-to-load', kernel.modules);
  put('modules.of-disks', kernel.diskModules);
}

/** Compiled once per source; static, so that it runs whatever libraries the image has. */
async function compileGuestProgram(cacheDir: string, source: Buffer): Promise<Buffer> {
  const path = join(cacheDir, `shadowvm-guest-${sha256(source).slice(0, 16)}`);
  if (!existsSync(path)) {
    await mkdir(cacheDir, { recursive: true });
    const temporary = `${path}.${randomBytes(6).toString('hex')}`;
    const args = ['-std=gnu11', '-static', '-Os', '-s', '-Wall', '-Wextra', '-Werror', '-x', 'c', '-', '-o', temporary];
    try {
      await runTool('gcc', args, { attempted: 'compile the guest program', input: source });
      await rename(temporary, path);
    } finally {
      await rm(temporary, { force: true });
    }
  }
  return await readFile(path);
}

/**
 * LZ4, because the guest unpacks at every boot: under emulation, on two busy cores, power-on → first heartbeat had these
 * medians of 8 (best in brackets), at these sizes of the default image's initramfs:
 *     lz4 1811 ms (1721) 10.1 MiB · zstd -3 1999 (1798) 8.7 · gzip 2121 (1878) 8.6 · none 2147 (1810) 21.1 ·
 *     zstd -19 2446 (1890) 6.7 · xz about 3000 at 6.2 MiB
 * A kernel that was built without it gets gzip.
 */
async function compress(archive: Buffer, kernel: Kernel): Promise<Buffer> {
  if (!kernel.config.includes('\nCONFIG_RD_LZ4=y\n')) return gzipSync(archive, { level: 9 });
  // -l: the frame format that the kernel reads. It has no checksum; QEMU reads the file from the same disk that we do.
  return await runTool('lz4', ['-l', '-9', '-c'], { attempted: 'compress the initramfs', input: archive });
}

// --- Small things -----------------------------------------------------------------------------------------------------

function sha256(content: string | Buffer): string {
  return createHash('sha256').update(content).digest('hex');
}

function nullWhenNotFound(error: unknown): null {
  if (error instanceof ShadowVmError && error.code === 'IMAGE_NOT_FOUND') return null;
  throw error;
}

function noPackageLists(): ShadowVmError {
  return new ShadowVmError('PACKAGE_MISSING', {
    attempted: 'find packages for the image',
    subject: BUSYBOX_PACKAGE,
    reason: 'the package lists do not have it even after fetching them',
    remedy: 'Check /etc/apt/sources.list: ShadowVM needs the main section of Debian',
  });
}

function asBuildError(error: unknown, name: string): ShadowVmError {
  if (error instanceof ShadowVmError) return error;
  const { code, message, path } = error as NodeJS.ErrnoException;
  if (code === undefined) return toShadowVmError(error, 'build an image');
  const full = code === 'ENOSPC' || code === 'EDQUOT';
  return new ShadowVmError(full ? 'NO_SPACE' : 'IMAGE_BUILD_FAILED', {
    attempted: 'build an image',
    subject: path === undefined ? name : basename(path),
    reason: message,
    remedy: full ? 'Free some space (a build needs about 300 MiB)' : 'Check that the folder of images can be written',
    cause: error,
  });
}
