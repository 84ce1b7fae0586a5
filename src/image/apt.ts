/** Debian's archive through the host's own apt: its mirrors, proxies and keys are what the user has set up. */
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ShadowVmError } from '../errors.js';
import { type PackageLookup, type PackageRecord, parsePolicy, parseRecords } from './debian-control.js';
import { runTool } from './host-tool.js';

/** apt-cache says so when it knows none of the names; that is an answer and no failure. */
const NOTHING_FOUND = 100;

export class Apt implements PackageLookup {
  readonly #cacheDir: string;

  /** @param cacheDir holds downloaded .deb files and apt's parsed package lists; it is made when missing */
  constructor(cacheDir: string) {
    this.#cacheDir = cacheDir;
  }

  /** Only packages that can be downloaded: an installed one that no archive has any more is of no use here. */
  async show(names: readonly string[]): Promise<Map<string, PackageRecord>> {
    const text = await this.#query(['show', '--no-all-versions', ...names]);
    const records = parseRecords(text).filter((record) => record.sha256 !== undefined);
    return new Map(records.map((record) => [record.name, record]));
  }

  /**
   * Versions that a build would take now, of those names that have one. Ten times as fast as show(), which reads the
   * lists themselves.
   */
  async candidates(names: readonly string[]): Promise<Map<string, string>> {
    return parsePolicy(await this.#query(['policy', ...names]));
  }

  async providers(virtualName: string): Promise<string[]> {
    const text = await this.#query(['showpkg', virtualName]);
    const providers = /^Reverse Provides: *\n((?:\S+ .*\n?)*)/m.exec(text)?.[1] ?? '';
    return [...new Set(providers.split('\n').flatMap((line) => line.split(' ')[0] || []))];
  }

  /** Fetches the package lists. @throws PACKAGE_MISSING without root, IMAGE_BUILD_FAILED without network */
  async update(): Promise<void> {
    if (process.geteuid?.() !== 0)
      throw new ShadowVmError('PACKAGE_MISSING', {
        attempted: 'find packages for the image',
        reason: 'this host has no usable package lists, and fetching them needs root',
        remedy: 'Run `sudo apt-get update`, then try again',
      });
    await runTool('apt-get', ['update', '-qq', ...NETWORK_OPTIONS], { attempted: 'fetch the package lists' });
  }

  /**
   * Paths of the packages' .deb files in the cache, by package name; those that are not there or are damaged are
   * downloaded first, all in one call of apt.
   * @throws IMAGE_BUILD_FAILED
   */
  async download(records: readonly PackageRecord[]): Promise<Map<string, string>> {
    const paths = new Map(records.map((record) => [record.name, this.#pathOf(record)]));
    const missing: PackageRecord[] = [];
    for (const record of records) if ((await digestOf(this.#pathOf(record))) !== record.sha256) missing.push(record);
    if (missing.length === 0) return paths;
    await mkdir(this.#cacheDir, { recursive: true });
    // Beside its place, so that neither a concurrent build nor an interruption leaves half a file there.
    const folder = await mkdtemp(join(this.#cacheDir, 'download-'));
    try {
      const wanted = missing.map((record) => `${record.name}=${record.version}`);
      await runTool('apt-get', [...this.#cacheOptions(), ...NETWORK_OPTIONS, 'download', '-qq', ...wanted], {
        attempted: 'download packages',
        cwd: folder,
      });
      const byDigest = new Map<string | null, string>();
      for (const file of await readdir(folder)) byDigest.set(await digestOf(join(folder, file)), join(folder, file));
      for (const record of missing) {
        const file = byDigest.get(record.sha256 ?? null);
        if (file === undefined)
          throw new ShadowVmError('IMAGE_BUILD_FAILED', {
            attempted: 'download a package',
            subject: `${record.name} ${record.version}`,
            reason: 'what came is not what the package lists describe',
            remedy: 'Run `apt-get update`, then try again',
          });
        await rename(file, this.#pathOf(record));
      }
      return paths;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  #pathOf(record: PackageRecord): string {
    return join(this.#cacheDir, `${record.name}_${encodeURIComponent(record.version)}.deb`);
  }

  async #query(args: readonly string[]): Promise<string> {
    await mkdir(this.#cacheDir, { recursive: true });
    const output = await runTool('apt-cache', [...this.#cacheOptions(), ...args], {
      attempted: 'look up packages',
      okCodes: [NOTHING_FOUND],
    });
    return output.toString('utf8');
  }

  /**
   * Slim systems switch apt's parsed lists off, and then every call parses all lists again (0.4 s instead of 20 ms); so
   * we keep our own.
   */
  #cacheOptions(): string[] {
    return ['-o', `Dir::Cache::pkgcache=${join(this.#cacheDir, 'pkgcache.bin')}`, '-o', 'Dir::Cache::srcpkgcache='];
  }
}

/** Bounds what a dead network costs. */
const NETWORK_OPTIONS = [
  '-o',
  'Acquire::Retries=2',
  '-o',
  'Acquire::http::Timeout=20',
  '-o',
  'Acquire::https::Timeout=20',
];

/** SHA-256 as hex; null where there is no file. */
async function digestOf(path: string): Promise<string | null> {
  try {
    return createHash('sha256')
      .update(await readFile(path))
      .digest('hex');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
