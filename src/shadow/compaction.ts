/** When a shadow image is worth compacting. Pure. */

export interface ImageSize {
  bytesOnDisk: number;
  /** What its newest epoch needs of that. */
  liveBytes: number;
  maxBytes: number;
}

/** Below this nobody cares, and a compaction costs more than it gives back. */
const WORTH_BYTES = 32 * 1024 * 1024;
/** From so much of the bound on, space is made before it runs out. */
const FULL_SHARE = 0.7;

/** More garbage than state, or nearly full. Epochs inside the window count as garbage here: they are kept all the same. */
export function compactionDue({ bytesOnDisk, liveBytes, maxBytes }: ImageSize): boolean {
  const garbageBytes = bytesOnDisk - liveBytes;
  if (garbageBytes < Math.min(WORTH_BYTES, maxBytes / 4)) return false;
  return garbageBytes > liveBytes || bytesOnDisk > FULL_SHARE * maxBytes;
}
