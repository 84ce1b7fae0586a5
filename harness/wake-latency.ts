import { closeSync, existsSync, openSync, readSync } from 'node:fs';

const DEVICE = '/dev/cpu_dma_latency';

export const canAskForWakeLatency = existsSync(DEVICE) && process.getuid?.() === 0;

/** How fast an idle CPU of this host has to be awake, µs: the shortest that anybody asks for. */
export function wakeLatencyInForceUs(): number {
  const fd = openSync(DEVICE, 'r');
  try {
    const word = new Int32Array(1);
    readSync(fd, word);
    return word[0] as number;
  } finally {
    closeSync(fd);
  }
}
