/**
 * The names of dirty bitmaps. A bitmap marks what was written to a disk since one epoch of one image, and its name says
 * which: a manager that comes back learns from QEMU alone whether what it finds is enough to go on with. Pure.
 */
import type { ImageDescription } from '../native/image.js';

const PREFIX = 'shadowvm';
const ID_CHARS = 12;

/** The state of the disk at which a bitmap begins. */
export interface MarkedEpoch {
  imageId: string;
  epoch: number;
}

export function markName({ imageId, epoch }: MarkedEpoch): string {
  return `${PREFIX}-${imageId.slice(0, ID_CHARS)}-${epoch}`;
}

export function isMark(name: string): boolean {
  return name.startsWith(`${PREFIX}-`);
}

/**
 * The bitmaps that together mark everything that differs between disk and image, the oldest first.
 * @returns null when they do not: all of the disk has to be read
 */
export function usableMarks(
  names: readonly string[],
  image: Pick<ImageDescription, 'id' | 'baseId' | 'headEpoch'>,
): string[] | null {
  const [own, base] = [image.id.slice(0, ID_CHARS), image.baseId.slice(0, ID_CHARS)];
  const marks = names
    .filter(isMark)
    .map((name) => {
      const [, id = '', epoch = ''] = name.split('-');
      return { name, id, epoch: Number(epoch) };
    })
    // What the base holds is older than all of the image's own epochs.
    .sort((a, b) => Number(b.id === base) - Number(a.id === base) || a.epoch - b.epoch);
  const [oldest] = marks;
  if (oldest === undefined || marks.some(({ id }) => id !== own && id !== base)) return null;
  // The younger ones go on where it ends: together they mark everything since.
  return oldest.id === base || oldest.epoch <= image.headEpoch ? marks.map(({ name }) => name) : null;
}
