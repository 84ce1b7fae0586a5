/** What a manager that was killed may have left half done with a VM, brought to its end by the next one. */
import { messageOf } from '../errors.js';
import type { QemuProcess } from '../qemu/process.js';
import { readEpoch } from '../shadow/epochs.js';
import { settleSizes } from './disk-resize.js';
import type { VmCore } from './vm-core.js';

/** Of a VM whose primary runs. What fails is told, and the VM goes on without it. */
export async function bringToAnEnd(core: VmCore): Promise<void> {
  const primary = core.primary as QemuProcess;
  await core.strict.adopt(primary).catch((error: unknown) => core.logError(error, 'letting held packets go'));
  // It may have been killed while a disk grew.
  await settleSizes(core, primary).catch((error: unknown) => core.logError(error, 'looking at the sizes of its disks'));
  try {
    await fillToTheEnd(core, primary);
  } catch (error) {
    const why = messageOf(error);
    core.event('error', 'image.trouble', `its image can not be opened, it is protected from the beginning: ${why}`, {});
    await core.shadowImage.remove();
  }
}

/** A guest that woke up not long ago may wait for pages that only its image has. */
async function fillToTheEnd(core: VmCore, primary: QemuProcess): Promise<void> {
  const { lazy } = primary.control.read();
  const image = lazy || core.shadowImage.exists() ? await core.shadowImage.openSource() : null;
  if (lazy && image !== null)
    primary.fillFrom(image.native, core.hotPath, (page, why) => core.corruptPage(primary, page, why));
  if (image !== null && image === core.shadowImage.opened && image.describe().headEpoch > 0)
    core.wokeFrom = await readEpoch(image, image.describe().headEpoch, core.name);
}
