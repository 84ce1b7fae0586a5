/** Disks of VMs that there are not, for tests of what is between a user and the manager. */
import type { DiskPort } from '../src/manager/disk-port.js';
import type { DiskExportView, DiskHeatView, DiskView } from '../src/vm/disk-view.js';
import { MIB } from '../src/vm/spec.js';

export class FakeDisks implements DiskPort {
  sizeBytes = 64 * MIB;

  /** @param find throws where there is no such VM */
  constructor(private readonly find: (vm: string) => unknown) {}

  list(): DiskView[] {
    return [
      {
        ...{ vm: 'web', disk: 'data', sizeBytes: this.sizeBytes, readOnly: false, path: null, cache: 'writeback' },
        ...{ hostBytes: 8 * MIB, shadowBytes: null },
      } as DiskView,
    ];
  }

  heat(vm: string): DiskHeatView[] {
    this.find(vm);
    const used = { pagesRead: 300, pagesWritten: 20 };
    return [
      {
        ...{ disk: 'data', sizeBytes: this.sizeBytes, extentBytes: MIB, extentsUsed: 1, ...used },
        stripes: [{ pagesRead: 0, pagesWritten: 0 }, used],
        hottest: [{ offset: 32 * MIB, ...used }],
        prefetch: { budgetBytes: 256 * MIB, readBytes: MIB },
      },
    ];
  }

  async resize(vm: string, { sizeBytes }: { disk: string; sizeBytes: number }): Promise<DiskView> {
    this.find(vm);
    this.sizeBytes = sizeBytes;
    return this.list()[0] as DiskView;
  }

  async export(
    vm: string,
    { disk, path, epoch }: { disk: string; path: string; epoch: number | null },
  ): Promise<DiskExportView> {
    this.find(vm);
    const at = { epoch: epoch ?? 42, cutAt: '2026-01-01T00:00:00.000Z' };
    return { vm, disk, path, ...at, sizeBytes: this.sizeBytes, hostBytes: 8 * MIB };
  }
}
