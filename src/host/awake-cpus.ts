/**
 * Keeps idle CPUs from falling asleep while clients of a VM in strict mode wait. A round of theirs goes through some ten
 * threads, one after the other, and each of them has to wake up: on a CPU that sleeps deeply, or whose hypervisor has given
 * it away meanwhile, the round takes a third longer. The request (`/dev/cpu_dma_latency`, Documentation/power/pm_qos_interface
 * of the kernel) is for the whole host and costs power, so it is made by quick rounds only, and taken back soon after the
 * last. The kernel takes it back from a manager that dies.
 */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { monotonicMs } from '../clock.js';

const DEVICE = '/dev/cpu_dma_latency';
const DRIVER = '/sys/devices/system/cpu/cpuidle/current_driver';
/** Somebody waits for each round who asks at once again: rounds are so close then. */
const QUICK_MS = 20;
/** Without such a round for so long, CPUs may sleep again. */
const KEEP_MS = 100;

/**
 * How fast an idle CPU has to be awake, µs; null: nothing to ask for. On hardware 2 µs leave it its lightest sleep. Under a
 * hypervisor each sleep gives it away, and costs the way there and back: it does not sleep at all.
 */
export function wakeLatencyUs(idleDriver: string | null): number | null {
  if (idleDriver === null || idleDriver === 'none') return null;
  return idleDriver === 'haltpoll' ? 0 : 2;
}

export function hostWakeLatencyUs(): number | null {
  try {
    return wakeLatencyUs(readFileSync(DRIVER, 'latin1').trim());
  } catch {
    return null; // a kernel without idle drivers
  }
}

export class AwakeCpus {
  private request: number | null = null;
  private timer: NodeJS.Timeout | undefined;
  private lastMs = Number.NEGATIVE_INFINITY;

  /** @param latencyUs null: CPUs sleep as they like */
  constructor(
    private latencyUs: number | null,
    private readonly device = DEVICE,
  ) {}

  /** Packets that somebody waited for have just left. */
  noteRound(nowMs = monotonicMs()): void {
    const quick = nowMs - this.lastMs <= QUICK_MS;
    this.lastMs = nowMs;
    if (quick && this.request === null) this.ask();
  }

  close(): void {
    clearInterval(this.timer);
    if (this.request !== null) closeSync(this.request);
    this.request = null;
  }

  private ask(): void {
    if (this.latencyUs === null) return;
    try {
      // Held for as long as it is open.
      this.request = openSync(this.device, 'r+');
      writeSync(this.request, new Int32Array([this.latencyUs]));
      this.timer = setInterval(() => {
        if (monotonicMs() - this.lastMs > KEEP_MS) this.close();
      }, KEEP_MS).unref();
    } catch {
      // Not root, or no such device: slower, and not worth a word for each round.
      this.close();
      this.latencyUs = null;
    }
  }
}
