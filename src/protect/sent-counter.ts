/**
 * How many packets a guest has sent, read where QEMU tells its guest: in the ring of the network device, in the guest's
 * memory. That costs a microsecond and no word with QEMU.
 */
import fs from 'node:fs';
import { monotonicMs } from '../clock.js';
import type { QemuProcess } from '../qemu/process.js';

/** The counter has 16 bits and goes round. */
export const COUNTER_MASK = 0xffff;
const TX_QUEUE = 1;
/** A microvm's memory above this is found from 4 GiB on. */
const LOW_BYTES = 3 * 2 ** 30;
const HIGH_START = 4 * 2 ** 30;
const LOOK_AGAIN_MS = 100;
const LOOK_MS_MAX = 5000;

export class SentCounter {
  private readonly word = Buffer.alloc(2);

  constructor(
    private readonly fd: number,
    /** In the guest's RAM. */
    readonly offset: number,
  ) {}

  /** The same in another QEMU with the same guest. */
  of(qemu: QemuProcess): SentCounter {
    return new SentCounter(qemu.ram.fd, this.offset);
  }

  /** Goes round, see COUNTER_MASK. By the file and not by the mapping, where an absent page would be made one. */
  read(): number {
    try {
      fs.readSync(this.fd, this.word, 0, 2, this.offset);
    } catch {
      // The QEMU was let go of meanwhile: what was read last is as good.
    }
    return this.word.readUInt16LE();
  }
}

/** null when QEMU does not tell, or has no network device that its guest uses. */
export async function findSentCounter(qemu: QemuProcess): Promise<SentCounter | null> {
  for (const untilMs = monotonicMs() + LOOK_MS_MAX; monotonicMs() < untilMs && !qemu.hasDied; ) {
    try {
      const devices = await qemu.qmp.execute('x-query-virtio');
      const device = devices.find(({ name }) => name === 'virtio-net');
      if (device === undefined) return null;
      const ring = await qemu.qmp.execute('x-query-virtio-queue-status', { path: device.path, queue: TX_QUEUE });
      const used = ring['vring-used'];
      // flags, then the index of what QEMU has dealt with.
      if (used > 0) return new SentCounter(qemu.ram.fd, (used < HIGH_START ? used : used - HIGH_START + LOW_BYTES) + 2);
    } catch {
      return null;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS)); // its driver is not up yet
  }
  return null;
}
