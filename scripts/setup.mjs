// Makes a fresh checkout on a fresh Debian ready: packages, node_modules, the addon, the TypeScript, the guest image.
// Each step is skipped when what it would make is there already, so that every npm script can begin with it.
//
//   node scripts/setup.mjs [--dev] [--no-image]
//     --dev        also what only tests need: a package, and a second QEMU
//     --no-image   no guest image
//
// Plain Node without dependencies, because it runs before there are any. The first lines must run on old Nodes too, to
// be able to say that they are too old.
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  checkFirmware,
  installPackages,
  notRootMessage,
  PACKAGES,
  queryMissingPackages,
  readOsRelease,
  TEST_PACKAGES,
  unsupportedSystem,
} from './setup/debian.mjs';
import { takeLock } from './setup/lock.mjs';
import { nodeIsTooOld } from './setup/node.mjs';
import { installModules, modulesAreInstalled } from './setup/npm.mjs';
import { run, SetupError, stopChildrenOnSignals } from './setup/process.mjs';
import { installedQemuMajor, unpackQemu10 } from './setup/qemu10.mjs';
import { hashPaths, readStamp, removeStamp, stampState, writeStamp } from './setup/stamp.mjs';

const FLAGS = ['--dev', '--no-image'];
const IMAGE_AGE_MS_MAX = 24 * 3600 * 1000;
const root = fileURLToPath(new URL('..', import.meta.url));
const state = join(root, '.cache/setup');

/** @param {string} step */
const logOf = (step) => join(state, `${step}.log`);
/** @param {string} step */
const stampOf = (step) => join(state, `${step}.json`);
/** @param {string} text */
const say = (text) => process.stderr.write(`setup: ${text}\n`);

/**
 * Runs a step that has something to do, and tells what it is and how long it took.
 * @param {string} step
 * @param {string} title
 * @param {(log: string) => Promise<unknown>} work
 */
async function doStep(step, title, work) {
  const log = logOf(step);
  writeFileSync(log, '');
  process.stderr.write(`setup: ${title} ... `);
  const startMs = Date.now();
  try {
    await work(log);
  } catch (error) {
    process.stderr.write('failed\n');
    throw error;
  }
  process.stderr.write(`${((Date.now() - startMs) / 1000).toFixed(1)} s\n`);
}

/**
 * A step whose result depends on files only, remembered by a stamp.
 * @param {string} step
 * @param {string} title
 * @param {{ key: string, results: string[], ageMsMax?: number }} stamp `results`: paths without which a stamp is void
 * @param {(log: string, before: 'old' | 'none') => Promise<unknown>} work `before`: whether an earlier, complete result
 *   of the same inputs is there
 */
async function doStampedStep(step, title, stamp, work) {
  const { key, results, ageMsMax } = stamp;
  const complete = results.every((path) => existsSync(join(root, path)));
  const before = complete ? stampState(readStamp(stampOf(step)), key, Date.now(), ageMsMax) : 'none';
  if (before === 'fresh') return;
  await doStep(step, title, async (log) => {
    // From here on until the step is complete there is no stamp, so that a killed step leaves none.
    if (before === 'none') removeStamp(stampOf(step));
    await work(log, before);
    writeStamp(stampOf(step), key, Date.now());
  });
}

/** @param {boolean} forTests */
async function packages(forTests) {
  const missing = queryMissingPackages([...PACKAGES, ...(forTests ? TEST_PACKAGES : [])]);
  if (missing.length > 0) {
    if (process.getuid?.() !== 0) throw new SetupError(notRootMessage(missing));
    await doStep('packages', `install Debian packages (${missing.join(' ')})`, (log) => installPackages(log, missing));
  }
  checkFirmware();
}

async function modules() {
  if (!modulesAreInstalled(root)) await doStep('modules', 'npm ci', (log) => installModules(log, root));
}

async function native() {
  // The lock file is an input for the headers of node-addon-api, which make does not see.
  const key = hashPaths(root, ['native', 'package-lock.json'], (path) => path !== 'native/build');
  const results = ['native/build/shadowvm.node', 'native/build/track-shim.so'];
  // Without a stamp, objects in native/build may be halves that a killed compiler left: make takes them for whole.
  const trusted = readStamp(stampOf('native')) !== null;
  await doStampedStep('native', 'build the addon', { key, results }, async (log) => {
    const args = ['-C', 'native', `-j${cpus().length}`, ...(trusted ? [] : ['-B'])];
    await run(log, 'make', args, { cwd: root });
  });
}

async function typescript() {
  const inputs = ['src', 'demo', 'bench', 'soak', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json'];
  const key = hashPaths(root, inputs, (path) => !path.endsWith('.test.ts'));
  await doStampedStep('typescript', 'compile the TypeScript', { key, results: ['dist/src'] }, async (log) => {
    // Built aside and renamed: a file that is gone from src/ is gone from dist/ too, a failed build leaves the last
    // good one, and nobody sees a half. It ignores itself in git, should a kill leave it behind.
    const work = join(root, 'dist.tmp');
    rmSync(work, { recursive: true, force: true });
    mkdirSync(work);
    writeFileSync(join(work, '.gitignore'), '*\n');
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    try {
      const args = [tsc, '-p', 'tsconfig.build.json', '--outDir', 'dist.tmp', '--noEmitOnError'];
      await run(log, process.execPath, args, { cwd: root, name: 'tsc' });
      rmSync(join(root, 'dist'), { recursive: true, force: true });
      renameSync(work, join(root, 'dist'));
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  });
}

async function guestImage() {
  const key = hashPaths(root, ['guest', 'src/image'], (path) => !path.endsWith('.test.ts'));
  const stamp = { key, results: ['.cache/images/default/manifest.json'], ageMsMax: IMAGE_AGE_MS_MAX };
  await doStampedStep('image', 'build the guest image', stamp, async (log, before) => {
    const image = ['image', 'build', '--images', '.cache/images', '--name', 'default', '--package', 'redis-server'];
    try {
      await run(log, process.execPath, ['bin/shadowvm', ...image], { cwd: root, name: 'shadowvm image build' });
    } catch (error) {
      // The daily rebuild picks up newer Debian packages. Without a network, yesterday's image still does.
      if (before !== 'old') throw error;
      say(`the guest image could not be brought up to date; going on with the old one (${log})`);
    }
  });
}

async function secondQemu() {
  const codename = readOsRelease().VERSION_CODENAME ?? 'unknown';
  // With QEMU 10 installed the tests run on it already, and there is no older one to have beside it.
  if (codename === 'unknown' || (installedQemuMajor() ?? 0) >= 10) return;
  const folder = join(root, '.cache/qemu10');
  const stamp = { key: `${codename} ${folder}`, results: ['.cache/qemu10/env.json'] };
  try {
    await doStampedStep('qemu10', 'unpack QEMU 10 for the tests', stamp, (log) => unpackQemu10(log, folder, codename));
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    say(`the tests run without QEMU 10: ${error.message.split('\n')[0]} (${logOf('qemu10')})`);
  }
}

/** @param {string[]} args */
async function main(args) {
  const unknown = args.filter((arg) => !FLAGS.includes(arg));
  if (unknown.length > 0) throw new SetupError(`unknown argument ${unknown.join(' ')}; known are ${FLAGS.join(' ')}`);
  const tooOld = nodeIsTooOld(process.versions.node);
  if (tooOld !== null) throw new SetupError(tooOld);
  const unsupported = unsupportedSystem(readOsRelease(), process.arch);
  if (unsupported !== null) throw new SetupError(unsupported);

  mkdirSync(state, { recursive: true });
  stopChildrenOnSignals();
  await takeLock(join(state, 'lock'), logOf('lock'), () => say('waiting for another setup in this checkout'));
  const dev = args.includes('--dev');
  await packages(dev);
  await modules();
  await native();
  await typescript();
  if (!args.includes('--no-image')) await guestImage();
  if (dev) await secondQemu();
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`setup: ${error instanceof SetupError ? error.message : error.stack}\n`);
  process.exit(1);
});
