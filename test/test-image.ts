/** Shadow images in a folder of their own, and what epochs of tests have in common. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ShadowImage } from '../src/native/image.js';
import { type CommitResult, type EpochSource, GuestRam, type ResidentRam } from '../src/native/memory.js';

export class TestImages {
  readonly folder = mkdtempSync(join(tmpdir(), 'shadowvm-images-'));
  private readonly open: ShadowImage[] = [];

  async create(ramBytes: number): Promise<ShadowImage> {
    const image = await ShadowImage.create(join(this.folder, `${this.open.length}`), { vm: 'test', ramBytes });
    this.open.push(image);
    return image;
  }

  async close(): Promise<void> {
    for (const image of this.open.splice(0)) await image.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Commits what was collected, as an epoch that was cut now. */
export function commit(
  source: EpochSource,
  deviceState: Buffer = Buffer.from('devices'),
  resident: ResidentRam | null = null,
): Promise<CommitResult> {
  const cut = { generation: 0, cutAtWallMs: Date.now(), cutAtNs: process.hrtime.bigint() };
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
