/** Files that are on the disk when it is said that they are. */
import { open, rename, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

let temporaryFiles = 0;

/**
 * Replaces a file whole or not at all, durably: written beside it, synced, renamed over it, and the directory synced so
 * that the rename itself outlives a power cut.
 * @param mode of the new file, whatever the umask says
 * @throws the system's error; nothing is left then
 */
export async function replaceFile(path: string, data: string | Uint8Array, mode = 0o600): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.${++temporaryFiles}.tmp`);
  try {
    const file = await open(temporary, 'wx', mode);
    try {
      await file.writeFile(data);
      await file.chmod(mode);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncPath(dirname(path));
  } catch (error) {
    await unlink(temporary).catch(() => {}); // Not there when it was never made or already renamed.
    throw error;
  }
}

/** Of a file its content; of a folder the names in it. */
export async function syncPath(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
