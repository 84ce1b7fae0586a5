/**
 * Kills and hangs a VM in strict mode again and again, under clients that keep their connections all the while: a
 * register in Redis whose whole history has to be linearizable, and a stream of bytes of which both ends keep a checksum.
 */
import { createHash, type Hash } from 'node:crypto';
import net from 'node:net';
import { nowMs, sleep } from '../harness/daemon.js';
import { InProcessManager } from '../harness/in-process.js';
import { RedisConnection } from '../harness/redis.js';
import { messageOf } from '../src/errors.js';
import type { PromotionView, VmView } from '../src/vm/view.js';
import { type Distribution, distribution } from './distribution.js';
import type { FailoverOptions } from './failover.js';
import { planRound } from './plan.js';
import { contradiction, type Operation } from './register.js';

const NAME = 'soak-strict';
const REDIS_PORT = 6379;
const STREAM_PORT = 7002;
const WRITERS = 2;
const READERS = 2;
/** A pause of each client between two commands: the checks are about order, not about load. */
const PAUSE_MS = 5;
const CHUNK_BYTES = 8 * 1024;
const CHUNK_EVERY_MS = 20;
const TIMEOUT_MS = 60_000;
/** Of a client's silence after a fault: later a connection counts as broken. */
const SILENCE_MS_MAX = 20_000;

export interface StrictResult {
  rounds: number;
  seconds: number;
  faults: { kill: number; hang: number };
  operations: number;
  acknowledgedWrites: number;
  streamedBytes: number;
  /** What was broken; empty when the promises held. */
  violations: string[];
  /** Times that strict mode was suspended by itself: promises do not hold meanwhile, and no fault is injected. */
  suspensions: number;
  /** Fault → the next reply that any client got. */
  silenceMs: { kill: Distribution; hang: Distribution };
}

export async function soakStrict(options: FailoverOptions): Promise<StrictResult> {
  const manager = await InProcessManager.open({ bridge: options.bridge, subnet: options.subnet });
  try {
    return await new StrictSoak(options, manager).run();
  } finally {
    await manager.close();
  }
}

class StrictSoak {
  private readonly startedMs = nowMs();
  private readonly history: Operation[] = [];
  private readonly violations: string[] = [];
  private readonly faults = { kill: 0, hang: 0 };
  private readonly silenceMs = { kill: [] as number[], hang: [] as number[] };
  private suspensions = 0;
  private stopping = false;
  private written = 0;
  private lastReplyMs = 0;

  constructor(
    private readonly options: FailoverOptions,
    private readonly manager: InProcessManager,
  ) {}

  async run(): Promise<StrictResult> {
    const { manager, options } = this;
    const vm = await manager.runVm({ ...options.vm, name: NAME, mode: 'strict', shadow: { kind: 'always' } });
    const host = vm.address as string;
    const listens = `grep -q ':${STREAM_PORT.toString(16).toUpperCase()} .* 0A ' /proc/net/tcp /proc/net/tcp6`;
    await manager.port.guestExec(
      NAME,
      `(sleep 1000000 | nc -l -p ${STREAM_PORT} | sha256sum > /dev/shm/sum) & until ${listens}; do sleep 0.1; done`,
    );
    manager.events.follow(({ type }) => {
      if (type === 'strict.suspended') this.suspensions++;
    });
    await this.active();
    const stream = await ByteStream.connect(host);
    await Promise.all(
      Array.from({ length: WRITERS + READERS }, async (_, i) => {
        const connection = await RedisConnection.connect(host, REDIS_PORT, TIMEOUT_MS);
        return this.client(connection, i < WRITERS);
      }),
    ).catch((error: unknown) => {
      throw new Error(`no client could connect: ${messageOf(error)}`);
    });
    let round = 0;
    try {
      while (round < options.rounds && this.violations.length === 0 && options.signal?.aborted !== true)
        await this.round(++round);
    } catch (error) {
      this.violations.push(`round ${round}: ${messageOf(error)}`);
    }
    this.stopping = true;
    await Promise.all(this.running);
    await this.examine(stream);
    return {
      rounds: round,
      seconds: Math.round((nowMs() - this.startedMs) / 1000),
      faults: this.faults,
      operations: this.history.length,
      acknowledgedWrites: this.written,
      streamedBytes: stream.bytes,
      violations: this.violations,
      suspensions: this.suspensions,
      silenceMs: { kill: distribution(this.silenceMs.kill), hang: distribution(this.silenceMs.hang) },
    };
  }

  private readonly running: Promise<void>[] = [];

  /** Reads or writes the register over one connection, which has to last. */
  private client(connection: RedisConnection, writes: boolean): void {
    const id = this.running.length;
    const run = async () => {
      for (let i = 0; !this.stopping; i++) {
        const fromMs = nowMs();
        const value = `${id}-${i}`;
        const reply = writes
          ? await connection.send('SET', 'register', value)
          : await connection.send('GET', 'register');
        const toMs = nowMs();
        this.lastReplyMs = toMs;
        if (writes) this.written++;
        this.history.push({
          kind: writes ? 'write' : 'read',
          value: writes ? value : (reply as string | null),
          fromMs,
          toMs,
        });
        await sleep(PAUSE_MS);
      }
      connection.close();
    };
    this.running.push(
      run().catch((error: unknown) => {
        this.violations.push(`the connection of client ${id} broke: ${messageOf(error)}`);
      }),
    );
  }

  private async active(): Promise<VmView> {
    for (const untilMs = nowMs() + TIMEOUT_MS; nowMs() < untilMs; await sleep(10)) {
      const vm = this.manager.port.showVm(NAME);
      if (vm.state === 'running' && vm.strict === 'active' && vm.shadow?.pid != null) return vm;
    }
    throw new Error(`the VM was not protected in strict mode again: ${this.manager.recent()}`);
  }

  private async round(round: number): Promise<void> {
    const { delayMs, fault: planned } = planRound(this.options.seed, round);
    const fault = planned === 'hang' ? 'hang' : 'kill';
    await this.active();
    await sleep(delayMs);
    await this.active();
    this.faults[fault]++;
    const promoted = this.manager.nextPromotion(NAME);
    const { primary } = this.manager.processes(NAME);
    const faultMs = nowMs();
    if (fault === 'kill') primary.kill();
    else primary.freeze();
    const promotion: PromotionView = await promoted;
    const resumedMs = Number(promotion.resumedAtNs) / 1e6;
    while (this.lastReplyMs < resumedMs && nowMs() < faultMs + SILENCE_MS_MAX && this.violations.length === 0)
      await sleep(1);
    if (this.lastReplyMs < resumedMs) throw new Error(`no client got a reply for ${SILENCE_MS_MAX} ms`);
    const silenceMs = this.lastReplyMs - faultMs;
    this.silenceMs[fault].push(silenceMs);
    this.options.onProgress(
      `${String(round).padStart(4)}/${this.options.rounds}  ${fault}  resumed ${Math.round(promotion.resumeMs)} ms  silence ${Math.round(silenceMs)} ms  ${this.written} writes acknowledged`,
    );
  }

  private async examine(stream: ByteStream): Promise<void> {
    const wrong = contradiction(this.history);
    if (wrong !== null) this.violations.push(`the register was not linearizable: ${wrong}`);
    try {
      const sum = await stream.end();
      for (const untilMs = nowMs() + TIMEOUT_MS; ; await sleep(200)) {
        const { exitCode } = await this.manager.port.guestExec(NAME, `grep -q ${sum} /dev/shm/sum`);
        if (exitCode === 0) return;
        const { exitCode: ended } = await this.manager.port.guestExec(NAME, 'test -s /dev/shm/sum');
        if (ended === 0 || nowMs() > untilMs) break;
      }
      this.violations.push('the guest has another checksum of the stream than its sender');
    } catch (error) {
      this.violations.push(`the stream broke: ${messageOf(error)}`);
    }
  }
}

/** Bytes without end, and their checksum. */
class ByteStream {
  bytes = 0;
  private readonly hash: Hash = createHash('sha256');
  private readonly timer: NodeJS.Timeout;
  private failure: Error | null = null;

  private constructor(private readonly socket: net.Socket) {
    socket.on('error', (error) => (this.failure ??= error));
    socket.on('close', () => (this.failure ??= new Error('the guest closed it')));
    this.timer = setInterval(() => this.send(), CHUNK_EVERY_MS);
  }

  static connect(host: string): Promise<ByteStream> {
    return new Promise((resolve, reject) => {
      const socket = net.connect({ host, port: STREAM_PORT });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.removeListener('error', reject);
        resolve(new ByteStream(socket));
      });
    });
  }

  private send(): void {
    if (this.socket.writableNeedDrain || this.failure !== null) return;
    const chunk = Buffer.alloc(CHUNK_BYTES, `${this.bytes} `);
    this.hash.update(chunk);
    this.bytes += chunk.length;
    this.socket.write(chunk);
  }

  /** The checksum of all of it, which the other end has got. */
  async end(): Promise<string> {
    clearInterval(this.timer);
    if (this.failure !== null) throw this.failure;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('the guest did not take its end')), TIMEOUT_MS);
      this.socket.once('error', reject);
      this.socket.once('close', () => resolve());
      this.socket.once('close', () => clearTimeout(timer));
      this.socket.resume();
      this.socket.end();
    });
    return this.hash.digest('hex');
  }
}
