/**
 * A file of lines that never grows past a bound and never gets in the way: `write` only queues, the disk is waited for
 * elsewhere, and a disk that fails costs lines, not the caller. Behind the event log and the manager's own log, both of
 * which are written from the middle of a failover.
 */
import { renameSync, writeSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

export interface RotatingFileOptions {
  /** At this size the file becomes `<path>.1`, in place of the one before: at most twice this is on disk. */
  fileBytesMax?: number;
  /** Lines that wait for the disk beyond this are dropped, the new ones first: the beginning of a trouble tells most. */
  pendingBytesMax?: number;
  /** Called at the first failure of a row of failures, not at each. */
  onError: (error: Error) => void;
}

export class RotatingFile {
  readonly path: string;
  readonly #fileBytesMax: number;
  readonly #pendingBytesMax: number;
  readonly #onError: (error: Error) => void;
  #file: FileHandle | null;
  /** Size of the file up to the end of its last whole line. */
  #sizeBytes: number;
  #pending: string[] = [];
  #pendingBytes = 0;
  #writing: Promise<void> | null = null;
  #failing = false;
  #dropping = false;
  #closed = false;
  #errors = 0;
  #linesLost = 0;

  private constructor(path: string, file: FileHandle, sizeBytes: number, options: RotatingFileOptions) {
    this.path = path;
    this.#file = file;
    this.#sizeBytes = sizeBytes;
    this.#fileBytesMax = options.fileBytesMax ?? 16 * 1024 * 1024;
    this.#pendingBytesMax = options.pendingBytesMax ?? 4 * 1024 * 1024;
    this.#onError = options.onError;
  }

  /** Opens for appending. `keepBytes` cuts the file there first: what follows was torn by a crash. */
  static async open(path: string, options: RotatingFileOptions, keepBytes?: number): Promise<RotatingFile> {
    const file = await open(path, 'a', 0o600);
    const { size } = await file.stat();
    if (keepBytes !== undefined && keepBytes < size) await file.truncate(keepBytes);
    return new RotatingFile(path, file, Math.min(size, keepBytes ?? size), options);
  }

  /** Failures of the disk so far. */
  get errors(): number {
    return this.#errors;
  }
  /** Lines that never got to the disk. */
  get linesLost(): number {
    return this.#linesLost;
  }

  /** Queues one line, which ends in a line feed. Never throws and never waits. */
  write(line: string): void {
    const bytes = Buffer.byteLength(line);
    if (this.#closed || this.#pendingBytes + bytes > this.#pendingBytesMax) {
      this.#linesLost++;
      if (!this.#closed && !this.#dropping)
        this.#onError(new Error(`the disk is too slow: ${this.#pendingBytes} bytes of lines wait for it`));
      this.#dropping = !this.#closed;
      return;
    }
    this.#dropping = false;
    this.#pending.push(line);
    this.#pendingBytes += bytes;
    this.#writing ??= this.#drain();
  }

  /** Resolves when everything queued so far is with the kernel, or lost. */
  async flush(): Promise<void> {
    while (this.#writing !== null) await this.#writing;
  }

  /** The last words of a process that is about to exit: what is queued goes to the kernel before this returns. */
  flushSync(): void {
    if (this.#file === null) return;
    const batch = this.#take();
    if (batch === '') return;
    try {
      this.#sizeBytes += writeSync(this.#file.fd, batch);
    } catch (error) {
      this.#failed(error, batch);
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.flush();
    const file = this.#file;
    this.#file = null;
    await file?.close();
  }

  /** Everything that came while the batch before was written is the next batch: the disk sets the pace. */
  async #drain(): Promise<void> {
    // One turn later, so that lines of one burst become one write.
    await new Promise((resolve) => setImmediate(resolve));
    for (let batch = this.#take(); batch !== ''; batch = this.#take()) {
      try {
        await this.#append(batch);
        this.#failing = false;
      } catch (error) {
        this.#failed(error, batch);
      }
    }
    this.#writing = null;
  }

  #take(): string {
    const batch = this.#pending.join('');
    this.#pending = [];
    this.#pendingBytes = 0;
    return batch;
  }

  async #append(batch: string): Promise<void> {
    const bytes = Buffer.byteLength(batch);
    if (this.#sizeBytes > 0 && this.#sizeBytes + bytes > this.#fileBytesMax) await this.#rotate();
    const file = this.#file ?? (await this.#reopen());
    // A full disk takes half a line. Without this cut the next line would go on where the half one ended.
    if (this.#failing) await file.truncate(this.#sizeBytes);
    await file.appendFile(batch);
    this.#sizeBytes += bytes;
  }

  async #rotate(): Promise<void> {
    const old = this.#file;
    renameSync(this.path, `${this.path}.1`);
    this.#file = null;
    this.#sizeBytes = 0;
    await old?.close();
  }

  async #reopen(): Promise<FileHandle> {
    this.#file = await open(this.path, 'a', 0o600);
    this.#sizeBytes = (await this.#file.stat()).size;
    return this.#file;
  }

  #failed(error: unknown, batch: string): void {
    this.#errors++;
    this.#linesLost += batch.split('\n').length - 1;
    const first = !this.#failing;
    this.#failing = true;
    if (first) this.#onError(error as Error);
  }
}
