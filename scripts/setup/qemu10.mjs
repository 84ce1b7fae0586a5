// A second QEMU for the tests. Debian 12 has QEMU 7.2 and Debian 13 has QEMU 10, and ShadowVM promises to work with
// both; on Debian 12 the packages from the backports suite are unpacked beside the installed ones, under
// .cache/qemu10/. Nothing is installed and the system's apt sources are not touched.
//
// What tests use of it is .cache/qemu10/env.json: the version, and under `environment` the variables with which ShadowVM
// runs on it. There is no wrapper script to put in QEMU's place: the library that ShadowVM preloads into QEMU would be
// preloaded into the wrapper's shell, and do its work there.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { failure, run, SetupError } from './process.mjs';

const DEBIAN_KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const LIBRARY_PATH = 'usr/lib/x86_64-linux-gnu';
const MODULE_PATH = 'usr/lib/x86_64-linux-gnu/qemu';
// Firmware first: a data folder may hold a link of the same name that leads to the installed, older firmware.
const DATA_PATHS = ['usr/share/seabios', 'usr/share/qemu'];

/**
 * @param {string} text what `qemu-system-x86_64 --version` prints
 * @returns {number | null}
 */
export function qemuMajor(text) {
  const match = /QEMU emulator version (\d+)\./.exec(text);
  return match === null ? null : Number(match[1]);
}

/** @returns {number | null} null when no QEMU is installed */
export function installedQemuMajor() {
  return qemuMajor(spawnSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).stdout ?? '');
}

/**
 * The mirror from which this system takes the given release, so that the backports come from the same place.
 * @param {string} indexTargets lines of `URI TAB release`, as `apt-get indextargets` prints them
 * @param {string} codename
 * @returns {string | null}
 */
export function mirrorOf(indexTargets, codename) {
  for (const line of indexTargets.split('\n')) {
    const [uri, release] = line.split('\t');
    if (uri && release === codename) return uri;
  }
  return null;
}

/**
 * @param {string} mirror
 * @param {string} codename
 * @param {string | null} keyring
 */
export function backportsSource(mirror, codename, keyring) {
  const lines = ['Types: deb', `URIs: ${mirror}`, `Suites: ${codename}-backports`, 'Components: main'];
  if (keyring !== null) lines.push(`Signed-By: ${keyring}`);
  return `${lines.join('\n')}\n`;
}

/**
 * @param {string} root where the packages are unpacked
 * @param {boolean} hasLibraries whether there are libraries among them
 * @returns {Record<string, string>}
 */
export function environmentOf(root, hasLibraries) {
  return {
    SHADOWVM_QEMU: join(root, 'usr/bin/qemu-system-x86_64'),
    SHADOWVM_QEMU_DATA: DATA_PATHS.map((path) => join(root, path)).join(':'),
    QEMU_MODULE_DIR: join(root, MODULE_PATH),
    ...(hasLibraries ? { LD_LIBRARY_PATH: join(root, LIBRARY_PATH) } : {}),
  };
}

/**
 * @param {string} log
 * @param {string} folder made anew
 * @param {string} codename
 * @returns {Promise<string>} the version
 */
export async function unpackQemu10(log, folder, codename) {
  const work = `${folder}.tmp`;
  rmSync(work, { recursive: true, force: true });
  rmSync(folder, { recursive: true, force: true });
  for (const path of ['lists/partial', 'cache/archives/partial', 'root'])
    mkdirSync(join(work, path), { recursive: true });

  const targets = spawnSync(
    'apt-get',
    ['indextargets', '--no-release-info', '--format', '$(REPO_URI)\t$(RELEASE)', 'Created-By: Packages'],
    { encoding: 'utf8' },
  );
  const mirror = mirrorOf(targets.stdout ?? '', codename);
  if (mirror === null) throw new SetupError(`apt has no source for ${codename}`);
  const source = join(work, 'backports.sources');
  writeFileSync(source, backportsSource(mirror, codename, existsSync(DEBIAN_KEYRING) ? DEBIAN_KEYRING : null));

  const privateApt = [
    `Dir::Etc::SourceList=${source}`,
    'Dir::Etc::SourceParts=/dev/null',
    `Dir::State::Lists=${join(work, 'lists')}`,
    `Dir::Cache=${join(work, 'cache')}`,
    // Nothing of the system's is written, so nobody needs to be kept away from it; and the checkout may lie where
    // apt's own user cannot read.
    'Debug::NoLocking=1',
    'APT::Sandbox::User=root',
    // An update that found nothing is otherwise a success with warnings.
    'APT::Update::Error-Mode=any',
    'Acquire::Retries=1',
    'Acquire::http::Timeout=20',
    'Acquire::https::Timeout=20',
  ].flatMap((option) => ['-o', option]);
  await run(log, 'apt-get', ['update', '-q', ...privateApt]);
  // apt's own solver picks what is newer than, or missing from, the installed packages; it all lands in the folder.
  const download = ['install', '-q', '-y', '--download-only', '--no-install-recommends', '-t', `${codename}-backports`];
  await run(log, 'apt-get', [...download, ...privateApt, 'qemu-system-x86']);
  const archives = join(work, 'cache/archives');
  for (const file of readdirSync(archives).filter((name) => name.endsWith('.deb'))) {
    await run(log, 'dpkg', ['-x', join(archives, file), join(work, 'root')]);
  }

  const libraries = join(work, 'root', LIBRARY_PATH);
  const hasLibraries = existsSync(libraries) && readdirSync(libraries).some((name) => /\.so(\.|$)/.test(name));
  const version = await tryQemu(log, environmentOf(join(work, 'root'), hasLibraries));
  const environment = environmentOf(join(folder, 'root'), hasLibraries);
  writeFileSync(join(work, 'env.json'), `${JSON.stringify({ version, environment }, null, 2)}\n`);
  for (const path of ['lists', 'cache']) rmSync(join(work, path), { recursive: true });
  renameSync(work, folder);
  return version;
}

/**
 * Starts a micro-VM that has no kernel, and lets its monitor end it: this needs the libraries, the firmware and the
 * machine type, which is all that can be wrong.
 * @param {string} log
 * @param {Record<string, string>} environment
 * @returns {Promise<string>}
 */
async function tryQemu(log, environment) {
  const qemu = /** @type {string} */ (environment.SHADOWVM_QEMU);
  const text =
    spawnSync(qemu, ['--version'], { encoding: 'utf8', env: { ...process.env, ...environment } }).stdout ?? '';
  const version = /version (\S+)/.exec(text)?.[1];
  if (version === undefined || (qemuMajor(text) ?? 0) < 10) throw failure(log, `${qemu} --version`, 1);
  const data = (environment.SHADOWVM_QEMU_DATA ?? '').split(':').flatMap((path) => ['-L', path]);
  const machine = ['-M', 'microvm', '-accel', 'tcg', '-m', '32', '-nodefaults', '-display', 'none', '-S'];
  // Its arguments are the shell's: no name has to be quoted.
  const script = 'printf "quit\\n" | timeout 30 "$@" -monitor stdio';
  await run(log, 'sh', ['-c', script, 'sh', qemu, ...data, ...machine], {
    env: environment,
    name: `${qemu} -M microvm`,
  });
  return version;
}
