/** Letting a guest go on from what an image holds: its RAM is filled while it runs already. */
import type { ShadowImage } from '../native/image.js';
import type { MarkedEpoch } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';
import type { VmSpec } from '../vm/spec.js';

const LOAD_TIMEOUT_MS = 10_000;
/** A guest that wakes up runs everything for the first time, and a heartbeat with its figures takes as long as an answer to a client. */
const REST_MS = 300;

/** Makes a waiting QEMU ready to run from the image's newest epoch. @throws PROMOTION_FAILED, QMP_* */
export async function loadFromImage(
  qemu: QemuProcess,
  image: ShadowImage,
  deviceState: Buffer,
  /** A file with what the guest will need first. */
  hotPath: string,
  onCorrupt: (page: number, why: string) => void,
): Promise<void> {
  // First: loading the devices reads the guest's queues, which are in pages that are not there yet.
  qemu.fillFrom(image.native, hotPath, onCorrupt);
  await qemu.loadDevices(deviceState, LOAD_TIMEOUT_MS);
}

/** vCPUs run when it resolves. @param from what its disks hold; null when nobody will ask */
export async function letRun(qemu: QemuProcess, from: MarkedEpoch | null): Promise<void> {
  // Otherwise the first epoch would read all of its disks.
  if (from !== null) qemu.control.setMarked(from.imageId, from.epoch);
  const running = qemu.qmp.execute('cont');
  qemu.agent.wake(REST_MS); // right behind it: the guest's first sign of life is the end of the outage
  await running;
}

/** Of a guest in user-mode networking whose QEMU waited: two processes can not listen on one port, so it did not. */
export async function publishPorts(qemu: QemuProcess, ports: VmSpec['publish']): Promise<void> {
  for (const { hostPort, guestPort } of ports) {
    const command = `hostfwd_add net0 tcp:127.0.0.1:${hostPort}-:${guestPort}`;
    const answer = await qemu.qmp.execute('human-monitor-command', { 'command-line': command });
    if (answer.trim() !== '') throw new Error(answer.trim());
  }
}
