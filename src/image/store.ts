/**
 * The images on disk.
 *
 *     <imagesDir>/default -> .builds/default.4321.778899.a1b2c3     what callers name
 *     <imagesDir>/.builds/<name>.<pid>.<start>.<random>/            vmlinuz, initrd, manifest.json; also builds under way
 *
 * The name is a symlink because a symlink can be replaced in one step and a folder that holds files can not: readers see
 * the old image or the new one, at every moment one of them, whole.
 */
import { randomBytes } from 'node:crypto';
import {
  copyFile,
  link,
  mkdir,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  stat,
  symlink,
} from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { ShadowVmError } from '../errors.js';
import { replaceFile, syncPath } from '../host/durable-file.js';
import { startTicks } from '../host/process-stat.js';
import type { Kernel } from '../qemu/argv.js';
import { MIB } from '../vm/spec.js';

const manifestSchema = z.object({
  name: z.string(),
  /** SHA-256 over everything that went in; equal keys mean equal images. */
  key: z.string(),
  kernelVersion: z.string(),
  /** What the build asked for, before dependencies. */
  requested: z.array(z.string()),
  kernelPackage: z.string(),
  /** SHA-256 over ShadowVM's own part: guest program, init, services, builder. */
  guestKey: z.string(),
  /** Everything taken from Debian, exactly. */
  packages: z.array(z.object({ name: z.string(), version: z.string() })),
  services: z.array(z.string()),
  kernelBytes: z.number().int().positive(),
  initrdBytes: z.number().int().positive(),
  imageMiB: z.number(),
  builtAt: z.string(),
  /** Power-on → first heartbeat as last measured on this host; null before that. */
  bootMs: z.number().nullable(),
});
export type ImageManifest = z.infer<typeof manifestSchema>;

export interface Image extends ImageManifest {
  /** The folder of this very build: it does not change its content when the name is given to another build. */
  dir: string;
  kernelPath: string;
  initrdPath: string;
}

const BUILDS = '.builds';
const IMAGE_NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/;

/** @throws INVALID_ARGUMENT: names become file names, and those with a leading dot are ours */
export function checkImageName(name: string): void {
  if (!IMAGE_NAME.test(name))
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'use an image name',
      subject: name,
      reason:
        'it must have 1 to 63 lower-case letters, digits, dots, underscores and hyphens, and begin with a letter or digit',
    });
}

/** All images that are complete, by name. A folder without images, or none at all, is an empty list. */
export async function listImages(imagesDir: string): Promise<Image[]> {
  const names = await readdir(imagesDir).catch(emptyWhenMissing);
  const images = await Promise.all(
    names.filter((name) => IMAGE_NAME.test(name)).map((name) => readImage(imagesDir, name)),
  );
  return images.filter((image) => image !== null).sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** @throws IMAGE_NOT_FOUND, INVALID_ARGUMENT */
export async function findImage(imagesDir: string, name: string): Promise<Image> {
  checkImageName(name);
  const image = await readImage(imagesDir, name);
  if (image === null) throw notFound('find an image', name);
  return image;
}

/** Removes it for good. Whether a VM uses it is the caller's to know. @throws IMAGE_NOT_FOUND, INVALID_ARGUMENT */
export async function removeImage(imagesDir: string, name: string): Promise<void> {
  checkImageName(name);
  const path = join(imagesDir, name);
  const dir = await realpath(path).catch(nullWhenMissing);
  // The name goes first: an image that can be found is always whole.
  const known = await rm(path, { recursive: true }).then(() => true, falseWhenMissing);
  if (!known) throw notFound('remove an image', name);
  await syncPath(imagesDir);
  if (dir !== null) await removeBuild(imagesDir, dir);
}

/** Notes how long the image took to boot on this host. @throws IMAGE_NOT_FOUND, INVALID_ARGUMENT */
export async function recordBoot(imagesDir: string, name: string, bootMs: number): Promise<void> {
  const { dir, kernelPath: _kernel, initrdPath: _initrd, ...manifest } = await findImage(imagesDir, name);
  await writeManifest(dir, { ...manifest, bootMs });
}

/**
 * Gives a VM its own names of the image's two files, as hard links where the file system permits. A shadow's QEMU must
 * be started with the very bytes that its primary was started with (they are part of the machine's shape), also after
 * the image was built anew or removed.
 */
export async function pinImage(image: Kernel, folder: string): Promise<Kernel> {
  await mkdir(folder, { recursive: true });
  const pin = async (source: string): Promise<string> => {
    const target = join(folder, basename(source));
    const temporary = `${target}.${randomBytes(6).toString('hex')}`;
    try {
      await link(source, temporary).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'EXDEV' || error.code === 'EPERM' || error.code === 'EMLINK')
          return copyFile(source, temporary);
        throw error;
      });
      await rename(temporary, target);
    } catch (error) {
      const gone = (error as NodeJS.ErrnoException).code === 'ENOENT';
      throw new ShadowVmError(gone ? 'IMAGE_NOT_FOUND' : 'NO_SPACE', {
        attempted: 'keep the image of a VM',
        subject: source,
        reason: (error as Error).message,
        remedy: gone
          ? 'The image was just replaced or removed; try again'
          : 'Check the space and the rights of the folder',
        cause: error,
      });
    } finally {
      // rename() of two names of one file does nothing, successfully, and leaves the temporary name.
      await rm(temporary, { force: true });
    }
    return target;
  };
  return { kernelPath: await pin(image.kernelPath), initrdPath: await pin(image.initrdPath) };
}

/** Makes the folder of a build under way; it stays until it is committed, discarded, or this process has died. */
export async function beginBuild(imagesDir: string, name: string): Promise<string> {
  const owner = `${process.pid}.${startTicks(process.pid)}`;
  const dir = join(imagesDir, BUILDS, `${name}.${owner}.${randomBytes(6).toString('hex')}`);
  await mkdir(dir, { recursive: true });
  return dir;
}

/** Gives the name to a finished build, atomically and durably, and removes the build that had it. */
export async function commitBuild(imagesDir: string, dir: string, manifest: ImageManifest): Promise<void> {
  for (const file of [KERNEL_FILE, INITRD_FILE]) await syncPath(join(dir, file));
  await writeManifest(dir, manifest);
  await syncPath(join(imagesDir, BUILDS));
  const path = join(imagesDir, manifest.name);
  const former = await realpath(path).catch(nullWhenMissing);
  const temporary = `${dir}.link`;
  await symlink(join(BUILDS, basename(dir)), temporary);
  await rename(temporary, path);
  await syncPath(imagesDir);
  if (former !== null && basename(former) !== basename(dir)) await removeBuild(imagesDir, former);
}

/** Only what lies among our builds: a name that somebody pointed elsewhere must not cost them that folder. */
async function removeBuild(imagesDir: string, dir: string): Promise<void> {
  const builds = await realpath(join(imagesDir, BUILDS)).catch(nullWhenMissing);
  if (dirname(dir) === builds) await rm(dir, { recursive: true, force: true });
}

/** Removes what dead builders left: builds that no name leads to. */
export async function cleanBuilds(imagesDir: string): Promise<void> {
  const builds = join(imagesDir, BUILDS);
  for (const entry of await readdir(builds).catch(emptyWhenMissing)) {
    const [, name, pid, start] = /^(.+)\.(\d+)\.(\d+)\.[0-9a-f]+(?:\.link)?$/.exec(entry) ?? [];
    if (name === undefined || startTicks(Number(pid)) === Number(start)) continue;
    const used = await readlink(join(imagesDir, name)).catch(() => '');
    if (basename(used) !== entry) await rm(join(builds, entry), { recursive: true, force: true });
  }
}

export const KERNEL_FILE = 'vmlinuz';
export const INITRD_FILE = 'initrd';
const MANIFEST_FILE = 'manifest.json';

/** Null for what is missing or not whole: it is then built again like one that never was. */
async function readImage(imagesDir: string, name: string): Promise<Image | null> {
  try {
    const dir = await realpath(join(imagesDir, name));
    const text = await readFile(join(dir, MANIFEST_FILE), 'utf8');
    const manifest = manifestSchema.parse(JSON.parse(text));
    const image = { ...manifest, dir, kernelPath: join(dir, KERNEL_FILE), initrdPath: join(dir, INITRD_FILE) };
    const whole =
      (await stat(image.kernelPath)).size === image.kernelBytes &&
      (await stat(image.initrdPath)).size === image.initrdBytes;
    return whole && manifest.name === name ? image : null;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) return null;
    return nullWhenMissing(error);
  }
}

async function writeManifest(dir: string, manifest: ImageManifest): Promise<void> {
  const text = `${JSON.stringify(manifestSchema.parse(manifest), null, 2)}\n`;
  // Images hold no secrets and serve the managers of all users.
  await replaceFile(join(dir, MANIFEST_FILE), text, 0o644);
}

export function imageMiB(bytes: number): number {
  return Math.round((bytes / MIB) * 10) / 10;
}

function notFound(attempted: string, name: string): ShadowVmError {
  return new ShadowVmError('IMAGE_NOT_FOUND', {
    attempted,
    subject: name,
    reason: 'there is no complete image of this name',
    remedy: `Run \`shadowvm image build --name ${name}\``,
  });
}

function whenMissing<T>(value: T): (error: unknown) => T {
  return (error) => {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return value;
    throw error;
  };
}
const nullWhenMissing = whenMissing(null);
const falseWhenMissing = whenMissing(false);
const emptyWhenMissing = whenMissing<string[]>([]);
