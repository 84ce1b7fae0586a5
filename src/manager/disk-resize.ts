/**
 * A disk grows while its guest runs.
 *
 * Disks lie one behind the other in the shadow image, whose number of pages is for ever: with another size it is another
 * image. So the shadow goes, and after the disk has grown it begins anew; epochs from before can not be gone back to.
 * The record comes before QEMU: a manager that finds a disk smaller than its record lets it grow, and none ever shrinks one.
 */
import { ShadowVmError } from '../errors.js';
import { diskNode } from '../qemu/argv.js';
import type { QemuProcess } from '../qemu/process.js';
import { formatBytesExact } from '../vm/quantity-text.js';
import { DISK_BYTES_MAX, type DiskSpec, MIB } from '../vm/spec.js';
import type { OnProgress } from '../vm/view.js';
import { faultPoint } from './fault-point.js';
import type { VmCore } from './vm-core.js';

const ATTEMPTED = 'resize the disk';

/** @throws DISK_NOT_FOUND */
export function findDisk(core: VmCore, name: string, attempted: string): DiskSpec {
  const { disks } = core.spec;
  const found = disks.find((disk) => disk.name === name);
  if (found !== undefined) return found;
  throw new ShadowVmError('DISK_NOT_FOUND', {
    attempted,
    subject: `${core.name}/${name}`,
    reason: disks.length === 0 ? 'the VM has no disks' : `its disks are ${disks.map((disk) => disk.name).join(', ')}`,
    remedy: 'See which there are: shadowvm disk ls',
  });
}

/** @throws INVALID_ARGUMENT */
export function requireGrowing(core: VmCore, { name, sizeBytes, readOnly, path }: DiskSpec, toBytes: number): void {
  const refuse = (reason: string, remedy: string) =>
    new ShadowVmError('INVALID_ARGUMENT', { attempted: ATTEMPTED, subject: `${core.name}/${name}`, reason, remedy });
  if (readOnly) throw refuse(`it is read-only, the file ${path} as it is`, 'Resize the file while no VM uses it');
  if (toBytes % MIB !== 0 || toBytes > DISK_BYTES_MAX)
    throw refuse(
      `a disk can not have ${toBytes} bytes`,
      `A disk has whole MiB, at most ${formatBytesExact(DISK_BYTES_MAX)}`,
    );
  if (toBytes < (sizeBytes ?? 0))
    throw refuse(
      `it has ${formatBytesExact(sizeBytes ?? 0)}, and a disk only grows: what is behind ${formatBytesExact(toBytes)} would be lost`,
      'Copy what is on it to a smaller disk of another VM',
    );
}

/** There is no shadow while this is done. @throws QMP_*, NO_SPACE */
export async function growDisk(core: VmCore, disk: DiskSpec, toBytes: number, progress: OnProgress): Promise<void> {
  const primary = core.primary as QemuProcess;
  const fromBytes = disk.sizeBytes;
  if (primary.pager !== null) {
    progress({ message: 'the rest of its memory comes from the image' });
    await primary.filled;
  }
  await core.shadowImage.begin();
  core.wokeFrom = null;
  core.followed = false;
  core.strict.hold?.suspend('a disk of it is resized');
  const resize = async (sizeBytes: number | null) => {
    disk.sizeBytes = sizeBytes;
    await core.save();
  };
  progress({ message: 'the disk grows' });
  await resize(toBytes);
  faultPoint('resize', 1);
  try {
    await settleSizes(core, primary);
  } catch (error) {
    await resize(fromBytes);
    throw error;
  }
  core.heat.resized();
  core.resizedAtMs = Date.now();
  core.event(
    'info',
    'disk.resized',
    `the disk ${disk.name} has ${formatBytesExact(toBytes)}, it had ${formatBytesExact(fromBytes ?? 0)}; its shadow begins anew, and epochs from before can not be gone back to`,
    { disk: disk.name, fromBytes, toBytes },
  );
}

/** Lets the disks grow that QEMU has smaller than they are to be. @throws QMP_* */
export async function settleSizes(core: VmCore, { qmp }: QemuProcess): Promise<void> {
  const { places } = core.disks;
  if (places.length === 0) return;
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  for (const { name, bytes } of places) {
    const node = nodes.find((each) => each['node-name'] === diskNode(name));
    if (node !== undefined && node.image['virtual-size'] < bytes)
      await qmp.execute('block_resize', { 'node-name': diskNode(name), size: bytes });
  }
}
