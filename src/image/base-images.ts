/** The golden snapshots that are open now. One is opened once, however many VMs stand on it: its index is shared. */
import { stat } from 'node:fs/promises';
import { ShadowImage } from '../native/image.js';

interface Entry {
  opening: Promise<ShadowImage>;
  users: number;
}

export class BaseImages {
  /** By device and inode: each VM has a name of its own for the file. */
  private readonly entries = new Map<string, Entry>();
  private readonly keys = new Map<ShadowImage, string>();

  /** Opens the file, or counts one more user of it. @throws IMAGE_CORRUPT, IMAGE_FOREIGN, NOT_FOUND */
  async open(path: string): Promise<ShadowImage> {
    const { dev, ino } = await stat(path);
    const key = `${dev}:${ino}`;
    const entry = this.entries.get(key) ?? { opening: ShadowImage.open(path).then(({ image }) => image), users: 0 };
    entry.users++;
    this.entries.set(key, entry);
    try {
      const image = await entry.opening;
      this.keys.set(image, key);
      return image;
    } catch (error) {
      this.drop(key, entry);
      throw error;
    }
  }

  /** One user less; the last one closes it. */
  async release(image: ShadowImage): Promise<void> {
    const key = this.keys.get(image);
    const entry = key === undefined ? undefined : this.entries.get(key);
    if (key === undefined || entry === undefined) return;
    if (!this.drop(key, entry)) return;
    this.keys.delete(image);
    await image.close();
  }

  private drop(key: string, entry: Entry): boolean {
    entry.users--;
    if (entry.users > 0) return false;
    this.entries.delete(key);
    return true;
  }
}
