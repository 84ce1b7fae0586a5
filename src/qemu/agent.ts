/** The manager's end of the guest agent's virtio-serial port: heartbeats in, commands out. */
import net from 'node:net';
import { ShadowVmError } from '../errors.js';

export interface Beat {
  count: number;
  uptimeMs: number;
  memTotalKiB: number;
  memAvailableKiB: number;
  /** What a program in the guest has to say, '-' for nothing. */
  app: string;
  /** When it was heard, CLOCK_MONOTONIC ns. */
  atNs: bigint;
}

const LINE_CHARS_MAX = 1024;
const EXECS_MAX = 16;
const IDENTITY_TIMEOUT_MS = 5000;
const COMMAND_BYTES_MAX = 3500;
/**
 * One row of numbers for all agents: a command that was begun before a promotion may end after it, and must not be taken
 * for one that was begun since.
 */
let nextExec = 1;

/** One line of the agent, or null when it is none that we know. */
export function parseBeat(line: string, atNs: bigint): Beat | null {
  const match = /^beat (\d{1,19}) (\d{1,15}) (\d{1,12}) (\d{1,12}) (.{1,160})$/.exec(line);
  if (match === null) return null;
  const [, count, uptimeMs, memTotalKiB, memAvailableKiB, app] = match;
  return {
    count: Number(count),
    uptimeMs: Number(uptimeMs),
    memTotalKiB: Number(memTotalKiB),
    memAvailableKiB: Number(memAvailableKiB),
    app: app as string,
    atNs,
  };
}

/** Who a guest is; null is left as it is. */
export interface GuestIdentity {
  hostname: string;
  mac: string | null;
  /** "10.213.0.2/24" */
  address: string | null;
  gateway: string | null;
  address6: string | null;
  gateway6: string | null;
  /** Random bytes, at most 64: two guests from one snapshot must not draw the same numbers. */
  seed: Buffer;
  wallClockMs: number;
}

/**
 * Makes a port that another manager had fit for use again; before a GuestAgent of one's own. When the guest speaks at the
 * moment in which that manager dies, QEMU (7.2 and 10 at least) holds the port's output back and forgets that it does, until
 * the next end of a connection. So one is made and ended. Only its one half: until QEMU has seen the end it can write, and
 * does not run into the same trouble again.
 */
export async function clearPort(path: string, timeoutMs: number): Promise<void> {
  const socket = net.connect({ path, allowHalfOpen: true });
  socket.on('error', () => {}); // the GuestAgent will meet it too
  socket.resume();
  const late = setTimeout(() => socket.destroy(), timeoutMs);
  await new Promise<void>((resolve) => {
    socket.on('close', () => resolve());
    socket.end();
  });
  clearTimeout(late);
}

export class GuestAgent {
  private readonly socket: net.Socket;
  private buffer = '';
  private readonly execs = new Map<number, { resolve: (code: number) => void; reject: (e: ShadowVmError) => void }>();
  private closed = false;
  last: Beat | null = null;
  /** When the first sign of life of this QEMU's guest came, a heartbeat or the answer to a ping: CLOCK_MONOTONIC ns. */
  firstSignAtNs: bigint | null = null;
  /** When the newest one came. */
  lastSignAtNs: bigint | null = null;
  /**
   * It has lived at this time or later, CLOCK_MONOTONIC ns: when the newest ping was sent that it has answered. A sign of
   * life may have been under way for a while when it comes.
   */
  livedAtNs = 0n;
  private tellSign: ((came: boolean) => void) | undefined;
  private awaitedSign: Promise<boolean> | null = null;
  beats = 0;
  /** Set when the guest announced a shutdown of its own will. */
  bye: 'poweroff' | 'reboot' | null = null;
  onBeat: ((beat: Beat) => void) | undefined;

  constructor(
    path: string,
    private readonly vm: string,
  ) {
    this.socket = net.connect(path);
    this.socket.setEncoding('latin1');
    this.socket.on('data', (chunk: string) => this.read(chunk));
    this.socket.on('error', () => this.close());
    this.socket.on('close', () => this.close());
  }

  /** Asks for a sign of life at once. */
  ping(): void {
    this.socket.write(`ping ${process.hrtime.bigint()}\n`);
  }

  /**
   * The same of a guest that is about to wake up, and no heartbeat for a while after it: whoever the guest serves has waited
   * longer. An agent of an older image beats all the same.
   */
  wake(restMs: number): void {
    this.socket.write(`ping ${process.hrtime.bigint()}\nrest ${restMs}\n`);
  }

  /** Resolves with the guest's next sign of life, or with false when there will be none. */
  nextSign(): Promise<boolean> {
    if (this.closed) return Promise.resolve(false);
    this.awaitedSign ??= new Promise((resolve) => (this.tellSign = resolve));
    return this.awaitedSign;
  }

  /** Sets the guest's wall clock, which stood still with it. */
  setClock(wallClockMs: number): void {
    this.socket.write(`clock ${Math.round(wallClockMs)}\n`);
  }

  /** Makes somebody else of a guest that woke up from another one's memory. @throws GUEST_REFUSED, VM_NOT_RUNNING */
  async identify(identity: GuestIdentity): Promise<void> {
    const { hostname, mac, address, gateway, address6, gateway6, seed, wallClockMs } = identity;
    const words = [hostname, mac ?? '-', address ?? '-', gateway ?? '-', seed.toString('hex'), Math.round(wallClockMs)];
    words.push(address6 ?? '-', gateway6 ?? '-');
    const code = await Promise.race([this.ask('identity', words.join(' ')), timeOut(IDENTITY_TIMEOUT_MS)]);
    if (code === 0) return;
    throw new ShadowVmError('GUEST_REFUSED', {
      attempted: 'give the guest an identity of its own',
      subject: this.vm,
      reason: code === null ? `it did not answer within ${IDENTITY_TIMEOUT_MS} ms` : 'its agent failed to take it',
      remedy: 'Its console tells which step failed; is the image older than this ShadowVM? Then build it anew',
    });
  }

  /** Asks the guest to shut down cleanly. */
  poweroff(): void {
    this.socket.write('poweroff\n');
  }

  /** Crashes the guest's kernel: for drills. */
  panic(): void {
    this.socket.write('panic\n');
  }

  /** Runs a shell command in the guest and tells its exit code. @throws INVALID_ARGUMENT, QUEUE_FULL, VM_NOT_RUNNING */
  exec(command: string): Promise<number> {
    const attempted = 'run a command in the guest';
    if (command.includes('\n') || Buffer.byteLength(command) > COMMAND_BYTES_MAX)
      return Promise.reject(
        new ShadowVmError('INVALID_ARGUMENT', {
          attempted,
          subject: this.vm,
          reason: `a guest command is one line of at most ${COMMAND_BYTES_MAX} bytes`,
        }),
      );
    return this.ask('exec', command);
  }

  /** Has the guest do something, and tells its exit code. */
  private ask(what: 'exec' | 'identity', words: string): Promise<number> {
    if (this.closed) return Promise.reject(this.ended());
    if (this.execs.size >= EXECS_MAX)
      return Promise.reject(
        new ShadowVmError('QUEUE_FULL', {
          attempted: 'run a command in the guest',
          subject: this.vm,
          reason: `${EXECS_MAX} commands run already`,
        }),
      );
    const id = nextExec++;
    return new Promise((resolve, reject) => {
      this.execs.set(id, { resolve, reject });
      this.socket.write(`${what} ${id} ${words}\n`);
    });
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.socket.destroy();
    for (const { reject } of this.execs.values()) reject(this.ended());
    this.execs.clear();
    this.tellSign?.(false);
  }

  private ended(): ShadowVmError {
    return new ShadowVmError('VM_NOT_RUNNING', {
      attempted: 'run a command in the guest',
      subject: this.vm,
      reason: 'the VM ended or was replaced by its shadow meanwhile',
    });
  }

  private read(chunk: string): void {
    const atNs = process.hrtime.bigint();
    this.buffer += chunk;
    for (let end = this.buffer.indexOf('\n'); end >= 0; end = this.buffer.indexOf('\n')) {
      const line = this.buffer.slice(0, end);
      this.buffer = this.buffer.slice(end + 1);
      this.readLine(line, atNs);
    }
    // A guest that talks without end of line talks to nobody.
    if (this.buffer.length > LINE_CHARS_MAX) this.buffer = '';
  }

  private noteSign(atNs: bigint): void {
    this.firstSignAtNs ??= atNs;
    this.lastSignAtNs = atNs;
    this.awaitedSign = null;
    this.tellSign?.(true);
  }

  private readLine(line: string, atNs: bigint): void {
    const beat = parseBeat(line, atNs);
    const pong = /^pong (\d{1,19})$/.exec(line);
    if (pong !== null) {
      const askedAtNs = BigInt(pong[1] as string);
      if (askedAtNs > this.livedAtNs && askedAtNs <= atNs) this.livedAtNs = askedAtNs;
    }
    if (beat !== null || pong !== null) this.noteSign(atNs);
    if (beat !== null) {
      this.last = beat;
      this.beats++;
      this.onBeat?.(beat);
      return;
    }
    const exit = /^exit (\d{1,9}) (-?\d{1,9})$/.exec(line);
    if (exit !== null) {
      const waiting = this.execs.get(Number(exit[1]));
      this.execs.delete(Number(exit[1]));
      waiting?.resolve(Number(exit[2]));
      return;
    }
    const bye = /^bye (poweroff|reboot)$/.exec(line);
    if (bye !== null) this.bye = bye[1] as 'poweroff' | 'reboot';
  }
}

function timeOut(ms: number): Promise<null> {
  return new Promise((resolve) => setTimeout(resolve, ms, null).unref());
}
