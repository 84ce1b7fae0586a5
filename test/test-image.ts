/** Shadow images in a folder of their own, and what epochs of tests have in common. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ShadowImage } from '../src/native/image.js';
import {
  type CommitResult,
  type EpochCut,
  EpochSource,
  GuestRam,
  QemuControl,
  type ResidentRam,
} from '../src/native/memory.js';
import type { QemuProcess } from '../src/qemu/process.js';

const PAGE = 4096;
const PRESENT = 2; // native/shim/control.h

export class TestImages {
  readonly folder = mkdtempSync(join(tmpdir(), 'shadowvm-images-'));
  private readonly open: ShadowImage[] = [];

  async create(ramBytes: number, folder = join(this.folder, `${this.open.length}`)): Promise<ShadowImage> {
    const image = await ShadowImage.create(folder, { vm: 'test', ramBytes });
    this.open.push(image);
    return image;
  }

  async close(): Promise<void> {
    for (const image of this.open.splice(0)) await image.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A disk that can be full. */
export class SmallDisk {
  constructor(
    readonly folder: string,
    sizeBytes: number,
  ) {
    mkdirSync(folder);
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes}`, 'tmpfs', folder]);
  }

  fill(leaveBytes: number): void {
    const { bavail, bsize } = statfsSync(this.folder);
    writeFileSync(join(this.folder, 'ballast'), Buffer.alloc(Math.max(0, bavail * bsize - leaveBytes)));
  }

  makeRoom(): void {
    rmSync(join(this.folder, 'ballast'), { force: true });
  }

  close(): void {
    execFileSync('umount', ['-l', this.folder]);
  }
}

/** Finds changes by checksums: all that a control page is good for that no process has. */
export function checksumSource(ram: GuestRam, image: ShadowImage): EpochSource {
  const control = new QemuControl(ram.bytes);
  return new EpochSource({ ram, control, pid: process.pid, tracking: 'checksum', image: image.native });
}

/** Commits what was collected, as an epoch that was cut now. */
export function commit(
  source: EpochSource,
  deviceState: Buffer = Buffer.from('devices'),
  resident: ResidentRam | null = null,
  more: Pick<EpochCut, 'holdsOutput' | 'releases'> = {},
): Promise<CommitResult> {
  const cut = { generation: 0, cutAtWallMs: Date.now(), cutAtNs: process.hrtime.bigint(), ...more };
  return source.commit(cut, deviceState, resident);
}

/** Number of pages in which a memory differs from the newest epoch of an image. */
export async function differences(ram: GuestRam, image: ShadowImage): Promise<number> {
  const copy = new GuestRam('copy', ram.bytes);
  await image.fill(copy);
  const count = ram.differences(copy);
  copy.close();
  return count;
}

/** The pages that a waiting QEMU has. */
export function presentPages({ ram, control }: Pick<ResidentRam, 'ram' | 'control'>): number[] {
  const states = Buffer.alloc(ram.bytes / PAGE);
  readSync(control.fd, states, 0, states.length, PAGE); // behind the control page
  return [...states.keys()].filter((page) => states[page] === PRESENT);
}

/** The same, and how many of them are not what the image holds. */
export async function residentPages(
  waiting: Pick<ResidentRam, 'ram' | 'control'>,
  image: ShadowImage,
): Promise<{ present: number[]; stale: number[] }> {
  const { ram } = waiting;
  const present = presentPages(waiting);
  const stale: number[] = [];
  const content = Buffer.alloc(PAGE);
  const copy = new GuestRam('copy', ram.bytes);
  await image.fill(copy);
  const held = Buffer.alloc(PAGE);
  for (const page of present) {
    readSync(ram.fd, content, 0, PAGE, page * PAGE);
    readSync(copy.fd, held, 0, PAGE, page * PAGE);
    if (!content.equals(held)) stale.push(page);
  }
  copy.close();
  return { present, stale };
}

/** A QEMU's epochs by write tracking, compared once with a new image. */
export async function trackedEpochs(qemu: Pick<QemuProcess, 'ram' | 'control' | 'pid'>, images: TestImages) {
  const { ram, control, pid } = qemu;
  const image = await images.create(ram.bytes);
  const source = new EpochSource({ ram, control, pid, tracking: 'write', image: image.native });
  await source.sync();
  return { image, source };
}
