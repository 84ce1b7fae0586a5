/** Notices on a guest's console that its kernel ended programs for want of memory. */
import fs from 'node:fs';

const SIGN = 'Out of memory: Killed process';
/** Of a console that says more than that in a second, the end is looked at. */
const READ_BYTES_MAX = 64 * 1024;

export class OomWatch {
  private readBytes: number | null = null;

  constructor(private readonly consoleLogPath: string) {}

  /** How often it happened since the last call. */
  kills(): number {
    try {
      const { size } = fs.statSync(this.consoleLogPath);
      const from = Math.max(this.readBytes ?? size, size - READ_BYTES_MAX);
      this.readBytes = size;
      if (size <= from) return 0;
      const fd = fs.openSync(this.consoleLogPath, 'r');
      try {
        const text = Buffer.alloc(size - from);
        fs.readSync(fd, text, 0, text.length, from);
        return text.toString('latin1').split(SIGN).length - 1;
      } finally {
        fs.closeSync(fd);
      }
    } catch {
      return 0; // no console yet, or one that was just renewed
    }
  }
}
