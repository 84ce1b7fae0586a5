/** A live serial console that follows its VM through promotions. */
import net from 'node:net';
import { Duplex } from 'node:stream';

/** A client that reads slower than the guest writes loses output beyond this, and is told so. */
const BACKLOG_BYTES_MAX = 256 * 1024;
const RETRY_MS = 50;

export class ConsoleStream extends Duplex {
  private socket: net.Socket | null = null;
  private retry: NodeJS.Timeout | undefined;
  private skipped = 0;

  /** @param currentPath the console socket of the present primary; '' when there is none now, null when the VM has ended */
  constructor(private readonly currentPath: () => string | null) {
    super({ readableHighWaterMark: BACKLOG_BYTES_MAX });
    this.connect();
  }

  private connect(): void {
    const path = this.currentPath();
    if (path === null) {
      this.push(null);
      return;
    }
    if (path === '') {
      this.retry = setTimeout(() => this.connect(), RETRY_MS);
      return;
    }
    const socket = net.connect(path);
    this.socket = socket;
    socket.on('data', (chunk) => this.receive(chunk));
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => {
      if (this.destroyed || this.socket !== socket) return;
      this.socket = null;
      // The VM ended, or its shadow is taking over: look again in a moment.
      this.retry = setTimeout(() => this.connect(), RETRY_MS);
    });
  }

  private receive(chunk: Buffer): void {
    if (this.readableLength > BACKLOG_BYTES_MAX) {
      this.skipped += chunk.length;
      return;
    }
    if (this.skipped > 0) this.push(`\r\n[shadowvm: ${this.skipped} bytes skipped]\r\n`);
    this.skipped = 0;
    this.push(chunk);
  }

  override _read(): void {
    // Pushed as it comes: a console that is not read must not hold QEMU up.
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    this.socket?.write(chunk); // what is typed while nobody listens is lost, as on a real serial line
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    clearTimeout(this.retry);
    this.socket?.destroy();
    done(error);
  }
}
