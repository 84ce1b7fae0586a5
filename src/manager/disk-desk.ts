/** What users ask of disks. */
import { statSync } from 'node:fs';
import type { DiskExportView, DiskHeatView, DiskView } from '../vm/disk-view.js';
import { type DiskSpec, diskBytes } from '../vm/spec.js';
import type { OnProgress } from '../vm/view.js';
import { exportDisk } from './disk-export.js';
import type { DiskPort } from './disk-port.js';
import { findDisk } from './disk-resize.js';
import { vmNotFound } from './usage-desk.js';
import type { ManagedVm } from './vm.js';

export class DiskDesk implements DiskPort {
  constructor(private readonly vms: ReadonlyMap<string, ManagedVm>) {}

  list(): DiskView[] {
    return [...this.vms.values()].flatMap((vm) => vm.spec.disks.map((disk) => viewOf(vm, disk)));
  }

  heat(vm: string): DiskHeatView[] {
    return this.get(vm, 'show what is used of the disks').core.heat.view();
  }

  async resize(
    vm: string,
    { disk, sizeBytes }: { disk: string; sizeBytes: number },
    progress: OnProgress,
  ): Promise<DiskView> {
    const attempted = 'resize the disk';
    const found = this.get(vm, attempted);
    await found.resizeDisk(disk, sizeBytes, progress);
    return viewOf(found, findDisk(found.core, disk, attempted));
  }

  export(
    vm: string,
    what: { disk: string; path: string; epoch: number | null },
    progress: OnProgress,
  ): Promise<DiskExportView> {
    return exportDisk(this.get(vm, 'export the disk').core, what, progress);
  }

  private get(name: string, attempted: string): ManagedVm {
    const vm = this.vms.get(name);
    if (vm === undefined) throw vmNotFound(name, attempted);
    return vm;
  }
}

function viewOf(vm: ManagedVm, disk: DiskSpec): DiskView {
  const { name, readOnly, path } = disk;
  const { disks, name: owner } = vm.core;
  return {
    vm: owner,
    disk: name,
    sizeBytes: diskBytes([{ ...disk, readOnly: false }]),
    readOnly,
    path,
    cache: vm.spec.diskCache,
    hostBytes: takenBytes(disks.pathOf(disk, 'disk')),
    shadowBytes: readOnly ? null : takenBytes(disks.pathOf(disk, 'twin')),
  };
}

const BLOCK_BYTES = 512;

function takenBytes(path: string): number | null {
  const stats = statSync(path, { throwIfNoEntry: false });
  return stats === undefined ? null : stats.blocks * BLOCK_BYTES;
}
