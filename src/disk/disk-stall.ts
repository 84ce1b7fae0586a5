/**
 * A write to a disk that the host can not carry out stops the guest (`werror=stop`), which knows nothing of it; when it is
 * let go, QEMU tries the write again. That is done here: at once, then ever more rarely, and not while there is no room.
 */
import { monotonicMs } from '../clock.js';
import type { QemuProcess } from '../qemu/process.js';

export interface DiskStallOptions {
  primary: QemuProcess;
  /** What is free where the disks are. */
  freeBytes: () => number;
  /** Told once for each standstill. */
  onStopped: (stop: { disk: string; reason: string; full: boolean }) => void;
  onResumed: (stoppedMs: number) => void;
}

/** Below this a retry would only stop the guest again. */
const ROOM_BYTES_MIN = 16 * 1024 * 1024;
const RETRY_MS_MIN = 20;
const RETRY_MS_MAX = 1000;
/** So long without another failure, and the guest runs. */
const SOUND_MS = 100;

export class DiskStall {
  private sinceMs: number | null = null;
  private beforeMs = 0;
  private timer: NodeJS.Timeout | undefined;
  private retryMs = RETRY_MS_MIN;
  private full = false;
  private closed = false;

  constructor(private readonly options: DiskStallOptions) {
    const { qmp } = options.primary;
    qmp.onEvent(({ event, data }) => {
      if (event !== 'BLOCK_IO_ERROR' || data?.action !== 'stop') return;
      this.full = data.nospace === true;
      this.stopped(String(data['node-name'] ?? '').replace(/^disk-/, ''), String(data.reason ?? 'no reason was given'));
    });
    void qmp.closed.then(() => this.close());
  }

  /** How long the guest has stood still for its disks so far, ms. It only grows. */
  totalMs(): number {
    return this.beforeMs + (this.sinceMs === null ? 0 : monotonicMs() - this.sinceMs);
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
  }

  private stopped(disk: string, reason: string): void {
    if (this.closed) return;
    if (this.sinceMs === null) {
      this.sinceMs = monotonicMs();
      this.retryMs = RETRY_MS_MIN;
      this.options.onStopped({ disk, reason, full: this.full });
    }
    this.later(this.retryMs, () => this.retry());
    this.retryMs = Math.min(RETRY_MS_MAX, 2 * this.retryMs);
  }

  private retry(): void {
    if (this.full && this.options.freeBytes() < ROOM_BYTES_MIN) {
      this.later(RETRY_MS_MAX, () => this.retry());
      return;
    }
    this.later(SOUND_MS, () => this.resumed()); // unless it stops again
    this.options.primary.qmp.execute('cont').catch(() => {}); // its end is the detector's business
  }

  private resumed(): void {
    const stoppedMs = monotonicMs() - (this.sinceMs as number);
    this.beforeMs += stoppedMs;
    this.sinceMs = null;
    this.options.onResumed(stoppedMs);
  }

  private later(ms: number, act: () => void): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(act, ms);
  }
}
