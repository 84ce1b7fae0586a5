/** Makes one probe, and tells what its result says about the guest. Each ends at once when its signal is aborted. */
import http from 'node:http';
import net from 'node:net';
import type { GuestAgent } from '../qemu/agent.js';
import type { ProbeCheck } from '../vm/probe.js';

export type ProbeOutcome =
  | { kind: 'succeeded' }
  | { kind: 'failed'; reason: string }
  /** Not the guest's fault: the host is out of something, or the manager ends. */
  | { kind: 'unknown' };

/** Where the guest's ports are reached from the host. */
export interface ProbeTarget {
  host: string;
  /** Of the host for a port of the guest: they differ where it is published. */
  portOf: (guestPort: number) => number;
}

const succeeded: ProbeOutcome = { kind: 'succeeded' };
const failed = (reason: string): ProbeOutcome => ({ kind: 'failed', reason });
const REPLY_BYTES_MAX = 1024;

/** What a guest answers with its own network. Everything else, such as EMFILE, is of the host. */
const GUESTS_ERRORS = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'EHOSTUNREACH', 'ETIMEDOUT']);

export class ProbeCaller {
  /** A command that has not ended is not begun again: a guest that hangs would collect them. */
  private readonly commands = new Map<string, Promise<ProbeOutcome>>();

  constructor(
    private readonly target: ProbeTarget | null,
    private readonly agent: Pick<GuestAgent, 'exec'>,
  ) {}

  call(check: ProbeCheck, signal: AbortSignal): Promise<ProbeOutcome> {
    if (check.kind === 'exec') return this.exec(check.command);
    if (this.target === null) return Promise.resolve({ kind: 'unknown' });
    const { host, portOf } = this.target;
    const at = { host, port: portOf(check.port) };
    switch (check.kind) {
      case 'tcp':
        return probeTcp(at, signal);
      case 'redis':
        return probeRedis(at, signal);
      case 'http':
        return probeHttp({ ...at, path: check.path }, signal);
    }
  }

  private exec(command: string): Promise<ProbeOutcome> {
    const underWay = this.commands.get(command);
    if (underWay !== undefined) return underWay;
    const run = this.agent.exec(command).then(
      (code): ProbeOutcome => (code === 0 ? succeeded : failed(`it ended with ${code}`)),
      // The VM has ended, or too many other commands run.
      (): ProbeOutcome => ({ kind: 'unknown' }),
    );
    this.commands.set(command, run);
    void run.then(() => this.commands.delete(command));
    return run;
  }
}

interface Address {
  host: string;
  port: number;
}

function probeTcp(at: Address, signal: AbortSignal): Promise<ProbeOutcome> {
  return converse(at, signal, (socket, done) => socket.on('connect', () => done(succeeded)));
}

/** "-LOADING" and "-NOAUTH" are signs of life too: whether it is of use is not a question of liveness. */
function probeRedis(at: Address, signal: AbortSignal): Promise<ProbeOutcome> {
  return converse(at, signal, (socket, done) => {
    let reply = '';
    socket.on('connect', () => socket.write('PING\r\n'));
    socket.setEncoding('latin1').on('data', (text: string) => {
      reply += text;
      if (/^[+-][^\r\n]*\r\n/.test(reply)) done(succeeded);
      else if (reply.includes('\r\n') || reply.length > REPLY_BYTES_MAX) done(failed('the answer is not of Redis'));
    });
    socket.on('end', () => done(failed('the connection ended without an answer')));
  });
}

function converse(
  at: Address,
  signal: AbortSignal,
  talk: (socket: net.Socket, done: (outcome: ProbeOutcome) => void) => void,
): Promise<ProbeOutcome> {
  return new Promise((resolve) => {
    const socket = net.connect(at);
    const done = (outcome: ProbeOutcome): void => {
      socket.destroy();
      resolve(outcome);
    };
    signal.addEventListener('abort', () => done({ kind: 'unknown' }), { once: true });
    socket.on('error', (error) => done(outcomeOf(error)));
    talk(socket, done);
  });
}

function probeHttp(at: Address & { path: string }, signal: AbortSignal): Promise<ProbeOutcome> {
  return new Promise((resolve) => {
    const request = http.get(
      { ...at, agent: false, signal, headers: { 'user-agent': 'shadowvm-probe' } },
      (response) => {
        const { statusCode = 0 } = response;
        // Its body is not waited for, and can be without end.
        response.on('error', () => {}).destroy();
        resolve(statusCode >= 200 && statusCode < 400 ? succeeded : failed(`it answered ${statusCode}`));
      },
    );
    request.on('error', (error) => resolve(outcomeOf(error)));
  });
}

function outcomeOf(error: NodeJS.ErrnoException): ProbeOutcome {
  if (GUESTS_ERRORS.has(error.code ?? '') || error.code?.startsWith('HPE_')) return failed(error.message);
  return { kind: 'unknown' };
}
