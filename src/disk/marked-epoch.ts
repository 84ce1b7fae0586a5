/** What the marks of a primary's disks are worth to a protection. Pure. */
import type { ImageDescription } from '../native/image.js';
import type { MarkedEpoch } from '../native/memory.js';

/**
 * Whether everything is marked that differs between the disks and an image, when all is that was written since `since`.
 * Marks of more than that do no harm.
 */
export function areMarksWhole(
  since: MarkedEpoch | null,
  image: Pick<ImageDescription, 'id' | 'baseId' | 'headEpoch'>,
): boolean {
  if (since === null) return false;
  // What the base holds is older than all of the image's own epochs.
  return since.imageId === image.id ? since.epoch <= image.headEpoch : since.imageId === image.baseId;
}
