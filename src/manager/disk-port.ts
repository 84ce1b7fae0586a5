/** What the API may ask about disks; see port.ts. */
import type { DiskExportView, DiskHeatView, DiskView } from '../vm/disk-view.js';
import type { OnProgress } from '../vm/view.js';

export interface DiskPort {
  list(): DiskView[];
  /** What the guest uses of its disks. @throws VM_NOT_FOUND */
  heat(vm: string): DiskHeatView[];
  /** While the VM runs, and to more than it has. @throws VM_NOT_FOUND, VM_NOT_RUNNING, DISK_NOT_FOUND, INVALID_ARGUMENT */
  resize(vm: string, change: { disk: string; sizeBytes: number }, progress: OnProgress): Promise<DiskView>;
  /**
   * Writes a raw image of a disk as it was at an epoch, the newest if `epoch` is null, whole or not at all.
   * @throws VM_NOT_FOUND, DISK_NOT_FOUND, SNAPSHOT_NOT_FOUND, EPOCH_NOT_FOUND, INVALID_ARGUMENT for a file that is there
   */
  export(
    vm: string,
    what: { disk: string; path: string; epoch: number | null },
    progress: OnProgress,
  ): Promise<DiskExportView>;
}
