/**
 * `shadowvm image …`: works in this process and needs no daemon. Images are files: building one takes the rights of who
 * builds and minutes of downloading, neither of which belongs into the process that keeps the VMs alive.
 */
import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { ShadowVmError } from '../errors.js';
import type { OnProgress } from '../vm/view.js';
import { collect } from './parse.js';
import { addGroup, addVerb, isNotRunning, type Session } from './session.js';
import * as show from './table.js';

const IMAGES_OPTION = ['--images <dir>', "folder of the images; default: the running daemon's"] as const;

interface ImagesOption {
  images?: string;
}

export function addImageVerbs(program: Command): void {
  const image = addGroup(program, 'image', 'build and remove what VMs boot from', ['image build', 'image ls']);

  addVerb<ImagesOption & { name?: string; package?: string[]; kernel?: string; force?: boolean }>(
    image,
    'build',
    {
      summary: 'build an image from Debian packages',
      description:
        'Builds an image from Debian packages: a kernel, busybox and the packages asked for. When nothing has changed\n' +
        'since it was built, nothing is done.',
      examples: [
        'image build',
        'image build --package redis-server --package nginx-light --name web',
        'image build --kernel linux-image-amd64 --force',
      ],
    },
    (command) =>
      command
        .option('--name <name>', 'default: default')
        .option('--package <package>', 'a Debian package; repeatable; default: redis-server', collect(String))
        .option('--kernel <package>', 'the package of the kernel; default: linux-image-cloud-amd64')
        .option('--force', 'build even when nothing has changed')
        .option(...IMAGES_OPTION),
    async (session, _args, options) => {
      const { buildImage } = await import('../image/builder.js');
      const imagesDir = await session.imagesDir(options.images);
      const result = await session.withProgress((report) =>
        untilInterrupted(report, (onProgress) =>
          buildImage(
            {
              imagesDir,
              ...(options.name === undefined ? {} : { name: options.name }),
              ...(options.package === undefined ? {} : { packages: options.package }),
              ...(options.kernel === undefined ? {} : { kernelPackage: options.kernel }),
              force: options.force === true,
            },
            onProgress,
          ),
        ),
      );
      const { name, kernelVersion, imageMiB } = result.image;
      session.result(
        result,
        result.cached
          ? `${name} is up to date\n`
          : `${name} is built: Linux ${kernelVersion}, ${imageMiB} MiB, in ${show.ms(result.elapsedMs)}\n`,
      );
    },
  );

  addVerb<ImagesOption>(
    image,
    'ls',
    { summary: 'list the images', examples: ['image ls', 'image ls --json'] },
    (command) => command.option(...IMAGES_OPTION),
    async (session, _args, options) => {
      const { listImages } = await import('../image/store.js');
      const images = await listImages(await session.imagesDir(options.images));
      session.result(
        { images },
        images.length === 0
          ? 'no images; build one with `shadowvm image build`\n'
          : show.table(
              [
                { title: 'NAME', value: (each) => each.name },
                { title: 'KERNEL', value: (each) => each.kernelVersion },
                { title: 'SIZE', align: 'right', value: (each) => `${each.imageMiB} MiB` },
                { title: 'BOOT', align: 'right', value: (each) => show.ms(each.bootMs) },
                { title: 'BUILT', value: (each) => show.time(each.builtAt) },
                { title: 'PACKAGES', value: (each) => each.requested.join(' ') },
              ],
              images,
            ),
      );
    },
  );

  addVerb<ImagesOption>(
    image,
    'rm <name>',
    {
      summary: 'remove an image that no VM uses',
      examples: ['image rm web'],
    },
    (command) => command.option(...IMAGES_OPTION),
    async (session, args, options) => {
      const { removeImage } = await import('../image/store.js');
      const name = args[0]!;
      const imagesDir = await session.imagesDir(options.images);
      await refuseInUse(session, imagesDir, name);
      await removeImage(imagesDir, name);
      session.result({ removed: name }, `${name} is removed\n`);
    },
  );
}

/** Asks the daemon, where one runs and uses this folder. Without one no VM runs, and a later one finds no image. */
async function refuseInUse(session: Session, imagesDir: string, name: string): Promise<void> {
  try {
    if ((await session.client.version()).imagesDir !== imagesDir) return;
    const users = (await session.client.listVms()).filter((vm) => vm.spec.image === name).map((vm) => vm.name);
    if (users.length > 0)
      throw new ShadowVmError('IMAGE_IN_USE', {
        attempted: 'remove the image',
        subject: name,
        reason: `it is used by ${users.join(', ')}`,
        remedy: 'Remove these VMs first with `shadowvm vm rm`',
      });
  } catch (error) {
    if (!isNotRunning(error)) throw error;
  }
}

/**
 * Ctrl-C ends the program that the build waits for, and the next step that it reports fails: so it ends by its own way
 * out, which leaves nothing half-made. A second one ends this process as it stands.
 */
async function untilInterrupted<T>(report: OnProgress, work: (onProgress: OnProgress) => Promise<T>): Promise<T> {
  let interruptedBy: NodeJS.Signals | undefined;
  const interrupt = (signal: NodeJS.Signals) => {
    interruptedBy = signal;
    for (const pid of childPids()) {
      try {
        process.kill(pid, 'SIGTERM');
      } catch {
        // It ended by itself meanwhile.
      }
    }
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.once(signal, interrupt);
  const interrupted = (cause?: unknown) =>
    new ShadowVmError('IMAGE_BUILD_FAILED', {
      attempted: 'build the image',
      reason: `it was interrupted by ${interruptedBy}`,
      remedy: 'Nothing half-made is left; what was downloaded is used next time',
      cause,
    });
  try {
    return await work((step) => {
      if (interruptedBy !== undefined) throw interrupted();
      report(step);
    });
  } catch (error) {
    throw interruptedBy === undefined ? error : interrupted(error);
  } finally {
    for (const signal of signals) process.off(signal, interrupt);
  }
}

function childPids(): number[] {
  try {
    return readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
  } catch {
    return []; // A kernel without that list: the terminal tells children of Ctrl-C itself.
  }
}
