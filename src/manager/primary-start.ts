/** How the primary of a VM comes to run: from power-on, or from what an image holds. */
import { monotonicMs } from '../clock.js';
import type { ShadowImage } from '../native/image.js';
import type { CommittedEpoch } from '../protect/protector.js';
import type { GuestIdentity } from '../qemu/agent.js';
import type { QemuProcess } from '../qemu/process.js';
import type { VmSpec } from '../vm/spec.js';
import type { OnProgress, VmOrigin } from '../vm/view.js';
import { awakening, bootBeat } from './first-beat.js';
import { letRun, loadFromImage, publishPorts } from './wake.js';

export type StartFrom =
  | { origin: 'boot' }
  | {
      origin: Exclude<VmOrigin, 'boot'>;
      image: ShadowImage;
      deviceState: Buffer;
      /** The VM's own epoch that it wakes up from; null when it is one of a golden snapshot's. */
      epoch: CommittedEpoch | null;
      /** The file of its hot pages, which may be missing. */
      hotPath: string;
      /** Who the guest is from now on; null when it is who it was. */
      identity: Omit<GuestIdentity, 'wallClockMs'> | null;
    };

export interface StartContext {
  launch: (incoming: boolean) => Promise<QemuProcess>;
  /** The process is there: it has to be ended whatever comes. */
  onLaunched: (qemu: QemuProcess) => void;
  connect: () => void;
  publish: VmSpec['publish'];
  onCorrupt: (page: number, why: string) => void;
  consoleLogPath: string;
  accelerator: string;
  progress: OnProgress;
  signal: AbortSignal;
}

/** A guest that wakes up beats within some ten ms, on a busy host within some hundred. */
const AWAKENING_TIMEOUT_MS = 10_000;

/** Resolves with the time it took, ms, when the guest answers. @throws what keeps it from that, CANCELLED */
export async function startPrimary(from: StartFrom, context: StartContext): Promise<number> {
  const { launch, onLaunched, connect, publish, onCorrupt } = context;
  const { consoleLogPath, accelerator, progress, signal } = context;
  signal.throwIfAborted();
  progress({ message: `starting QEMU (${accelerator})` });
  const startedMs = monotonicMs();
  const qemu = await launch(from.origin !== 'boot');
  onLaunched(qemu);
  signal.throwIfAborted();
  if (from.origin === 'boot') {
    connect();
    progress({ message: 'the guest boots' });
    await bootBeat(qemu, consoleLogPath, signal);
  } else {
    progress({ message: 'the guest wakes up' });
    await loadFromImage(qemu, from.image, from.deviceState, from.hotPath, onCorrupt);
    const { id, headEpoch } = from.image.describe();
    await letRun(qemu, { imageId: id, epoch: headEpoch });
    // Before it is on the network: until then it has another guest's addresses.
    if (from.identity !== null) await qemu.agent.identify({ ...from.identity, wallClockMs: Date.now() });
    // A guest that has just woken up was slow to take its identity.
    qemu.agent.setClock(Date.now());
    connect();
    if (publish.length > 0) await publishPorts(qemu, publish);
    await awakening(qemu, AWAKENING_TIMEOUT_MS);
  }
  signal.throwIfAborted();
  return monotonicMs() - startedMs;
}
