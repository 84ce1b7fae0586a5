// The Debian packages that ShadowVM and its tests need, and nothing more.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { exitCode, failure, SetupError } from './process.mjs';

export const PACKAGES = [
  'qemu-system-x86', // brings seabios and qemu-system-data, which hold the microvm firmware
  'iproute2', // bridges and taps
  'nftables', // what guests may send, NAT, published ports
  'gcc',
  'g++',
  'make',
  'libc6-dev',
  'libxxhash-dev', // page checksums
  'libzstd-dev', // the shadow image's compression, linked statically
  'xz-utils', // kernel modules in Debian's kernel package
  'zstd', // the same, in newer ones
  'lz4', // the guest's initramfs
  'e2fsprogs', // disk images, filled without a mount
];

export const TEST_PACKAGES = [
  'cpio', // reads the initramfs that we write
];

const MICROVM_FIRMWARE = ['/usr/share/seabios/bios-microvm.bin', '/usr/share/qemu/bios-microvm.bin'];
const APT_GET = ['-q', '-y', '-o', 'DPkg::Lock::Timeout=300', '-o', 'Dpkg::Options::=--force-confold'];
const APT_OPTIONS = { env: { DEBIAN_FRONTEND: 'noninteractive' }, withoutLock: true };

/**
 * @param {string} [file]
 * @returns {Record<string, string>} for example { ID: 'debian', VERSION_CODENAME: 'bookworm' }; empty when unknown
 */
export function readOsRelease(file = '/etc/os-release') {
  return existsSync(file) ? parseOsRelease(readFileSync(file, 'utf8')) : {};
}

/**
 * @param {string} text
 * @returns {Record<string, string>}
 */
export function parseOsRelease(text) {
  /** @type {Record<string, string>} */
  const values = {};
  for (const line of text.split('\n')) {
    const match = /^([A-Z_]+)=(["']?)(.*)\2$/.exec(line.trim());
    if (match?.[1] !== undefined) values[match[1]] = match[3] ?? '';
  }
  return values;
}

/**
 * Why setup cannot install packages on this system; null when it can. Debian's children (Ubuntu, Mint) are let through:
 * their packages have the same names.
 * @param {Record<string, string>} osRelease
 * @param {string} arch as process.arch
 * @returns {string | null}
 */
export function unsupportedSystem(osRelease, arch) {
  const family = [osRelease.ID, ...(osRelease.ID_LIKE ?? '').split(' ')];
  if (!family.includes('debian')) {
    return (
      `ShadowVM's setup needs Debian 12 or 13, and this is ${osRelease.PRETTY_NAME ?? 'another system'}: ` +
      'it takes QEMU, the compilers and the guest kernel from Debian packages. Run it in a Debian machine or container.'
    );
  }
  if (arch !== 'x64') {
    return `ShadowVM runs on x86-64 only (QEMU's microvm machine exists for nothing else), and this is ${arch}.`;
  }
  return null;
}

/**
 * @param {string[]} wanted
 * @param {string} dpkgOutput lines of `package TAB status`, as queryPackages asks for; a package with several
 *   architectures has several lines, one that dpkg never saw has none
 * @returns {string[]}
 */
export function missingPackages(wanted, dpkgOutput) {
  const installed = new Set();
  for (const line of dpkgOutput.split('\n')) {
    const [name, status] = line.split('\t');
    // 'config-files', 'half-installed', 'unpacked', ... are not installed.
    if (status === 'installed') installed.add(name);
  }
  return wanted.filter((name) => !installed.has(name));
}

/** @param {string[]} wanted */
export function queryMissingPackages(wanted) {
  // Exit code 1 says that some package is unknown, which is one of the answers.
  const query = spawnSync('dpkg-query', ['-W', '-f', `\${Package}\\t\${db:Status-Status}\\n`, ...wanted], {
    encoding: 'utf8',
  });
  if (query.error !== undefined) throw new SetupError(`dpkg-query cannot be run: ${query.error.message}`);
  return missingPackages(wanted, query.stdout);
}

/**
 * @param {string[]} missing
 * @returns {string}
 */
export function notRootMessage(missing) {
  return (
    `these Debian packages are missing, and only root may install them: ${missing.join(' ')}\n` +
    'Run this once, then start again:\n\n' +
    `  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing.join(' ')}`
  );
}

/**
 * @param {string} log
 * @param {string[]} missing
 */
export async function installPackages(log, missing) {
  const install = ['install', '--no-install-recommends', ...APT_GET, ...missing];
  // Without an update first: where the package lists are good it only costs time, and where they are missing or old
  // the install fails at once.
  let code = await exitCode(log, 'apt-get', install, APT_OPTIONS);
  if (code !== 0) {
    const output = readFileSync(log, 'utf8');
    if (output.includes('dpkg --configure -a')) await exitCode(log, 'dpkg', ['--configure', '-a'], APT_OPTIONS);
    // A failed update (one of several sources away, say) need not hinder the install, which has the last word.
    await exitCode(log, 'apt-get', ['update', ...APT_GET], APT_OPTIONS);
    code = await exitCode(log, 'apt-get', install, APT_OPTIONS);
  }
  if (code !== 0) throw failure(log, `apt-get install ${missing.join(' ')}`, code);
}

/** Throws when the installed QEMU packages lack the one firmware without which no micro-VM starts. */
export function checkFirmware() {
  if (MICROVM_FIRMWARE.some((file) => existsSync(file))) return;
  throw new SetupError(
    `QEMU's microvm firmware is not there (looked for ${MICROVM_FIRMWARE.join(' and ')}). ` +
      'Reinstall it: apt-get install --reinstall seabios qemu-system-data',
  );
}
