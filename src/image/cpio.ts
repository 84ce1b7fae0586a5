/**
 * Writes an initramfs archive ("newc" cpio, kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
 * Our own writer instead of cpio(1): device nodes and root's ownership need no root, and the same tree always gives the
 * same bytes.
 */
import { createHash } from 'node:crypto';
import type { FileTree, TreeEntry } from './file-tree.js';

const TYPE_BITS: Record<TreeEntry['kind'], number> = {
  directory: 0o040000,
  file: 0o100000,
  symlink: 0o120000,
  device: 0o020000,
};
const FILE_BYTES_MAX = 0xffff_ffff;

export function packCpio(tree: FileTree): Buffer {
  const entries = [...tree.entries()];
  // Debian ships the same program under several names; as hard links they cost their bytes once, on disk and in RAM.
  const twins = new Map<string, { inode: number; count: number; written: boolean }>();
  const identities = entries.map(([, entry], index) => {
    if (entry.kind !== 'file' || entry.content.length === 0) return undefined;
    const identity = `${entry.mode} ${createHash('sha256').update(entry.content).digest('hex')}`;
    const known = twins.get(identity);
    if (known === undefined) twins.set(identity, { inode: index + 1, count: 1, written: false });
    else known.count++;
    return identity;
  });

  const chunks: Buffer[] = [];
  const append = (header: Header, name: string, body: Buffer): void => {
    // Header and name together, and the body, are padded to 4 bytes; the header alone is not a multiple of 4.
    chunks.push(pad(Buffer.concat([encodeHeader(header), Buffer.from(`${name}\0`)])), pad(body));
  };
  for (const [index, [path, entry]] of entries.entries()) {
    const identity = identities[index];
    const twin = identity === undefined ? undefined : twins.get(identity);
    let body: Buffer = Buffer.alloc(0);
    if (entry.kind === 'symlink') body = Buffer.from(entry.target);
    // The kernel takes a linked file's content from whichever of its names has any: the first one here.
    else if (entry.kind === 'file' && twin?.written !== true) body = entry.content;
    if (twin !== undefined) twin.written = true;
    if (body.length > FILE_BYTES_MAX) throw new RangeError(`${path} is too large for a cpio archive`);
    append(
      {
        inode: twin?.inode ?? index + 1,
        mode: TYPE_BITS[entry.kind] | (entry.kind === 'symlink' ? 0o777 : entry.mode),
        links: twin?.count ?? 1,
        bytes: body.length,
        major: entry.kind === 'device' ? entry.major : 0,
        minor: entry.kind === 'device' ? entry.minor : 0,
        nameBytes: Buffer.byteLength(path) + 1,
      },
      path,
      body,
    );
  }
  const trailer = 'TRAILER!!!';
  append(
    { inode: 0, mode: 0, links: 1, bytes: 0, major: 0, minor: 0, nameBytes: trailer.length + 1 },
    trailer,
    Buffer.alloc(0),
  );
  return Buffer.concat(chunks);
}

interface Header {
  inode: number;
  mode: number;
  links: number;
  bytes: number;
  major: number;
  minor: number;
  nameBytes: number;
}

/** Owner, group and time are 0 throughout. */
function encodeHeader(h: Header): Buffer {
  const fields = [h.inode, h.mode, 0, 0, h.links, 0, h.bytes, 0, 0, h.major, h.minor, h.nameBytes, 0];
  return Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`, 'latin1');
}

function pad(bytes: Buffer): Buffer {
  const missing = (4 - (bytes.length % 4)) % 4;
  return missing === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(missing)]);
}
