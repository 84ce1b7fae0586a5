/** Reads from a 64-bit little-endian ELF file what it needs to start: its loader and its shared libraries. */

export interface ElfNeeds {
  /** PT_INTERP: path of the dynamic loader; null in libraries and static programs. */
  interpreter: string | null;
  /** DT_NEEDED: names of shared libraries, in the order of the file. */
  needed: string[];
}

const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const DT_NULL = 0;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const SEGMENT_BYTES = 56;
const DYNAMIC_BYTES = 16;

/** Null for what is no ELF file of this kind. @throws RangeError when the file is cut short */
export function readElfNeeds(file: Buffer): ElfNeeds | null {
  // Magic, 64-bit, little-endian.
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) return null;
  const segmentsAt = number64(file, 32);
  const segments = Array.from({ length: file.readUInt16LE(56) }, (_, index) => {
    const at = segmentsAt + index * SEGMENT_BYTES;
    return {
      type: file.readUInt32LE(at),
      offset: number64(file, at + 8),
      address: number64(file, at + 16),
      bytes: number64(file, at + 32),
    };
  });
  const interpreter = segments.find((s) => s.type === PT_INTERP);
  const dynamic = segments.find((s) => s.type === PT_DYNAMIC);
  const needs: ElfNeeds = {
    interpreter: interpreter === undefined ? null : text(file, interpreter.offset),
    needed: [],
  };
  if (dynamic === undefined) return needs;
  const nameOffsets: number[] = [];
  let stringsAddress: number | undefined;
  for (let at = dynamic.offset; at < dynamic.offset + dynamic.bytes; at += DYNAMIC_BYTES) {
    const tag = number64(file, at);
    if (tag === DT_NULL) break;
    if (tag === DT_NEEDED) nameOffsets.push(number64(file, at + 8));
    if (tag === DT_STRTAB) stringsAddress = number64(file, at + 8);
  }
  if (nameOffsets.length === 0) return needs;
  // The string table is given as an address in memory; the segment that is loaded there tells where it is in the file.
  const strings = segments.find(
    (s) =>
      s.type === PT_LOAD &&
      stringsAddress !== undefined &&
      stringsAddress >= s.address &&
      stringsAddress < s.address + s.bytes,
  );
  if (strings === undefined || stringsAddress === undefined) throw new RangeError('its string table is nowhere');
  const stringsAt = strings.offset + (stringsAddress - strings.address);
  needs.needed = nameOffsets.map((offset) => text(file, stringsAt + offset));
  return needs;
}

/** Tags and addresses that do not fit a JavaScript number are none that we look for. */
function number64(file: Buffer, at: number): number {
  return Number(file.readBigUInt64LE(at));
}

function text(file: Buffer, at: number): string {
  const end = file.indexOf(0, at);
  if (end < 0) throw new RangeError('a name has no end');
  return file.toString('latin1', at, end);
}
