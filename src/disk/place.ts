/** Where a VM's writable disks lie among the pages of its shadow image: behind the RAM, in the order of the specification. */
import { diskBytes, type VmSpec } from '../vm/spec.js';

const PAGE_BYTES = 4096;

export interface DiskPlace {
  name: string;
  bytes: number;
  firstPage: number;
}

export function diskPlaces({ ramBytes, disks }: Pick<VmSpec, 'ramBytes' | 'disks'>): DiskPlace[] {
  let firstPage = ramBytes / PAGE_BYTES;
  return disks
    .filter(({ readOnly }) => !readOnly)
    .map((disk) => {
      const place = { name: disk.name, bytes: diskBytes([disk]), firstPage };
      firstPage += place.bytes / PAGE_BYTES;
      return place;
    });
}
