/** QMP against peers that are slow, silent, confused or gone. (Against the real QEMU: test/qemu-process.test.ts.) */
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest';
import { QmpClient } from './qmp.js';

const dir = mkdtempSync(join(tmpdir(), 'shadowvm-qmp-'));
const GREETING = '{"QMP": {"version": {}, "capabilities": []}}\r\n';

interface Command {
  execute: string;
  arguments?: object;
  id: number;
}

let peers = 0;

/** A peer whose every word the test chooses. */
class Peer {
  readonly path = join(dir, `${++peers}.qmp`);
  readonly commands: Command[] = [];
  socket: net.Socket | null = null;

  private readonly server: net.Server;
  private waiting: (() => void)[] = [];

  constructor(options: { greeting?: string; answer?: (command: Command) => string | null }) {
    this.server = net.createServer((socket) => {
      this.socket = socket;
      socket.on('error', () => {});
      if (options.greeting !== '') socket.write(options.greeting ?? GREETING);
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk.toString();
        const lines = text.split('\n');
        text = lines.pop() as string;
        for (const line of lines) {
          const command = JSON.parse(line) as Command;
          this.commands.push(command);
          const answer = options.answer?.(command) ?? null;
          if (command.execute === 'qmp_capabilities') this.say({ return: {}, id: command.id });
          else if (answer !== null) socket.write(answer);
          for (const wake of this.waiting.splice(0)) wake();
        }
      });
    });
    this.server.listen(this.path);
  }

  say(message: object): void {
    this.socket?.write(`${JSON.stringify(message)}\r\n`);
  }

  /** The command with this position, the capabilities not counted. */
  async command(index: number): Promise<Command> {
    while (this.commands.length <= index + 1) await new Promise<void>((resolve) => this.waiting.push(resolve));
    return this.commands[index + 1] as Command;
  }

  close(): void {
    this.socket?.destroy();
    this.server.close();
  }
}

let peer: Peer;
let client: QmpClient | undefined;
const open = async (options: ConstructorParameters<typeof Peer>[0] = {}) => {
  peer = new Peer(options);
  client = await QmpClient.connect(peer.path, 'web', 2000);
  return client;
};
beforeEach(() => {
  client = undefined;
});
afterEach(() => {
  client?.destroy();
  peer.close();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const code = (code: string, reason?: string) =>
  expect.objectContaining({ code, ...(reason === undefined ? {} : { reason: expect.stringContaining(reason) }) });

describe('the greeting', () => {
  test('that never comes is a time-out, and the connection is given up', async () => {
    peer = new Peer({ greeting: '' });
    await expect(QmpClient.connect(peer.path, 'web', 50)).rejects.toEqual(code('QMP_TIMEOUT', 'no greeting'));
    await expect.poll(() => peer.socket?.destroyed).toBe(true);
  });

  test.each([['garbage\n'], ['null\n'], ['7\n'], ['"QMP"\n'], ['{"QMP": \n']])('%j is none', async (greeting) => {
    peer = new Peer({ greeting });
    await expect(QmpClient.connect(peer.path, 'web', 2000)).rejects.toEqual(code('QMP_CLOSED', 'no message'));
  });

  test('a peer that hangs up before it is QMP_CLOSED; so is a socket that is not there', async () => {
    peer = new Peer({ greeting: '' });
    const connecting = QmpClient.connect(peer.path, 'web', 2000);
    await expect.poll(() => peer.socket !== null).toBe(true);
    peer.socket?.destroy();
    await expect(connecting).rejects.toEqual(code('QMP_CLOSED'));
    await expect(QmpClient.connect(join(dir, 'none'), 'web', 2000)).rejects.toEqual(code('QMP_CLOSED', 'ENOENT'));
  });
});

describe('a command', () => {
  test('goes out with its arguments, and its answer comes back', async () => {
    const qmp = await open();
    const answer = qmp.execute('balloon', { value: 5 });
    const { execute, arguments: args, id } = await peer.command(0);
    expect({ execute, args }).toEqual({ execute: 'balloon', args: { value: 5 } });
    peer.say({ return: { done: true }, id });
    expect(await answer).toEqual({ done: true });
  });

  test('that fails has QEMU’s own words', async () => {
    const qmp = await open({
      answer: ({ id }) => `{"error": {"class": "GenericError", "desc": "no room"}, "id": ${id}}\n`,
    });
    await expect(qmp.execute('stop')).rejects.toMatchObject({
      code: 'QMP_ERROR',
      attempted: 'run the QMP command stop',
      subject: 'web',
      reason: 'no room',
    });
  });

  test.each(['null', '{}', '7', '"x"'])('that fails with %s fails all the same', async (error) => {
    const qmp = await open({ answer: ({ id }) => `{"error": ${error}, "id": ${id}}\n` });
    await expect(qmp.execute('stop')).rejects.toEqual(code('QMP_ERROR', 'no reason'));
  });

  test('whose answer is late times out; the late answer is nobody’s, and the next command gets its own', async () => {
    const qmp = await open();
    await expect(qmp.execute('stop', undefined, { timeoutMs: 30 })).rejects.toEqual(
      code('QMP_TIMEOUT', 'within 30 ms'),
    );
    const status = qmp.execute('query-status');
    const [late, next] = [await peer.command(0), await peer.command(1)];
    peer.say({ return: { status: 'of the stop' }, id: late.id });
    peer.say({ return: { status: 'running', running: true }, id: next.id });
    expect(await status).toEqual({ status: 'running', running: true });
    peer.say({ return: {}, id: 4711 }); // and one that was never asked for
    peer.say({ return: {} });
    peer.say({ return: {}, id: 'text' });
    const again = qmp.execute('query-status');
    peer.say({ return: { status: 'paused', running: false }, id: (await peer.command(2)).id });
    expect(await again).toMatchObject({ status: 'paused' });
  });

  test('is answered whatever the order, with events between and lines in pieces', async () => {
    const qmp = await open();
    const events: string[] = [];
    const off = qmp.onEvent(({ event }) => events.push(event));
    const [first, second] = [qmp.execute('stop'), qmp.execute('query-status')];
    const [a, b] = [await peer.command(0), await peer.command(1)];
    const text = [
      { event: 'STOP' },
      { return: { n: 2 }, id: b.id },
      { event: 'RESUME', data: { 'ü€': 'ö' } },
      { return: { n: 1 }, id: a.id },
    ];
    for (const byte of Buffer.from(text.map((message) => `${JSON.stringify(message)}\n\n`).join(''))) {
      peer.socket?.write(Buffer.of(byte));
      if (byte % 16 === 0) await sleep(0);
    }
    expect([await first, await second, events]).toEqual([{ n: 1 }, { n: 2 }, ['STOP', 'RESUME']]);
    off();
    peer.say({ event: 'STOP' });
    const third = qmp.execute('cont');
    peer.say({ return: {}, id: (await peer.command(2)).id });
    await third;
    expect(events).toHaveLength(2);
  });

  test('is refused when 64 are unanswered, and taken again when one has been answered', async () => {
    const qmp = await open();
    const pending = Array.from({ length: 64 }, () => qmp.execute('query-status'));
    await expect(qmp.execute('stop')).rejects.toEqual(code('QUEUE_FULL'));
    peer.say({ return: {}, id: (await peer.command(10)).id });
    await pending.splice(10, 1)[0];
    pending.push(qmp.execute('query-status'));
    for (const each of pending) each.catch(() => {});
    qmp.destroy();
    const outcomes = await Promise.allSettled(pending);
    expect(outcomes.map((each) => each.status === 'rejected' && each.reason)).toEqual(
      new Array(64).fill(code('QMP_CLOSED')),
    );
  });
});

describe('the end', () => {
  test('by the peer rejects everything that waits', async () => {
    const qmp = await open();
    const waiting = [qmp.execute('stop'), qmp.execute('cont'), qmp.waitEvent('stop', () => true, 5000)];
    for (const each of waiting) each.catch(() => {});
    await peer.command(1);
    peer.socket?.destroy();
    for (const each of waiting) await expect(each).rejects.toEqual(code('QMP_CLOSED'));
    expect(await qmp.closed).toEqual(code('QMP_CLOSED'));
    await expect(qmp.execute('stop')).rejects.toEqual(code('QMP_CLOSED'));
    await expect(qmp.waitEvent('stop', () => true, 5000)).rejects.toEqual(code('QMP_CLOSED'));
  });

  test('by destroy() does not wait for a peer that is frozen', async () => {
    const qmp = await open();
    const waiting = qmp.execute('stop').catch((error: unknown) => error);
    let settled: unknown = null;
    void waiting.then((error) => {
      settled = error;
    });
    qmp.destroy();
    await Promise.resolve(); // not one turn of the event loop
    await Promise.resolve();
    expect(settled).toEqual(code('QMP_CLOSED', 'the manager closed'));
    qmp.destroy();
    expect((await qmp.closed).reason).toBe('the manager closed the connection');
  });

  test.each([
    ['no JSON', 'what?\n'],
    ['JSON that is no object', 'null\n'],
    ['a list', '[]\n{"return"\n'],
    ['a line beyond 4 MiB', 'x'.repeat(4 * 1024 * 1024 + 1)],
  ])('comes with %s', async (_what, text) => {
    const qmp = await open();
    const waiting = qmp.execute('stop').catch((error: unknown) => error);
    await peer.command(0);
    peer.socket?.write(text);
    expect(await waiting).toEqual(code('QMP_CLOSED'));
  });

  test('a line of 3 MiB is taken', async () => {
    const qmp = await open();
    const answer = qmp.execute('human-monitor-command', { 'command-line': 'info' });
    peer.say({ return: 'y'.repeat(3 * 1024 * 1024), id: (await peer.command(0)).id });
    expect(await answer).toHaveLength(3 * 1024 * 1024);
  });

  test('whatever lines a peer sends, a command is answered or the connection ends', { timeout: 60_000 }, () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.oneof(
            fc.json(),
            fc.string({ unit: 'binary' }),
            fc
              .record(
                {
                  id: fc.oneof(fc.nat(5), fc.jsonValue()),
                  error: fc.jsonValue(),
                  return: fc.jsonValue(),
                  event: fc.oneof(fc.constant('STOP'), fc.jsonValue()),
                  data: fc.jsonValue(),
                },
                { requiredKeys: [] },
              )
              .map((message) => JSON.stringify(message)),
          ),
          { maxLength: 8 },
        ),
        async (lines) => {
          peer = new Peer({});
          const qmp = await QmpClient.connect(peer.path, 'web', 2000);
          qmp.onEvent(() => {});
          const outcome = qmp.execute('stop').then(
            () => 'answered',
            (error: { code: string }) => error.code,
          );
          const { id } = await peer.command(0);
          peer.socket?.write(`${lines.join('\n')}\n${JSON.stringify({ return: {}, id })}\n`);
          expect(['answered', 'QMP_ERROR', 'QMP_CLOSED']).toContain(await outcome);
          qmp.destroy();
          peer.close();
        },
      ),
      { numRuns: 60 },
    ),
  );
});

describe('waiting for an event', () => {
  test('ends with the first that matches', async () => {
    const qmp = await open();
    const completed = qmp.waitEvent('load', ({ data }) => data?.status === 'completed', 5000);
    for (const data of [undefined, null, { status: 'active' }, { status: 'completed', n: 1 }, { status: 'completed' }])
      peer.say({ event: 'MIGRATION', data });
    expect(await completed).toEqual({ event: 'MIGRATION', data: { status: 'completed', n: 1 } });
  });

  test('times out with what it was for', async () => {
    const qmp = await open();
    const never = qmp.waitEvent('load the device state', () => false, 30);
    peer.say({ event: 'STOP' });
    await expect(never).rejects.toMatchObject({
      code: 'QMP_TIMEOUT',
      attempted: 'wait for QEMU to load the device state',
    });
  });
});
