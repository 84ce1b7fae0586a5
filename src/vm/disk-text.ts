/** Disks as people write them: `data=8G`, `data=/srv/db.img`, `base=/srv/debian.img,ro`. */
import { malformed, parseBytes } from './quantity-text.js';
import { type DiskSpec, diskSpecSchema } from './spec.js';

const WHAT = 'the disk';
const REMEDY = 'Write NAME=SIZE for an empty disk, NAME=PATH for a copy of a file, NAME=PATH,ro to use a file as it is';

/** @throws INVALID_ARGUMENT that says which part is wrong */
export function parseDisk(text: string): DiskSpec {
  const parts = /^([^=]*)=(.*?)(,ro)?$/.exec(text);
  const [, name = '', what = '', ro] = parts ?? [];
  if (parts === null || what === '')
    throw malformed(WHAT, text, 'it does not have the form NAME=SIZE or NAME=PATH', REMEDY);
  const isPath = what.includes('/');
  if (!isPath && ro !== undefined) throw malformed(WHAT, text, 'an empty disk that is read-only is of no use', REMEDY);
  const parsed = diskSpecSchema.safeParse({
    name,
    readOnly: ro !== undefined,
    ...(isPath ? { path: what } : { sizeBytes: parseBytes(what, `the size of the disk ${name}`) }),
  });
  if (parsed.success) return parsed.data;
  throw malformed(WHAT, text, parsed.error.issues[0]?.message ?? 'it is no disk', REMEDY);
}
