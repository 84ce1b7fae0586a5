/** Real servers on this host, in every state that a guest's can be in. */
import http from 'node:http';
import net from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { ShadowVmError } from '../errors.js';
import { parseProbe } from '../vm/probe.js';
import { ProbeCaller, type ProbeOutcome } from './probe-call.js';

const servers: (net.Server | http.Server)[] = [];
const sockets = new Set<net.Socket>();
afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  for (const server of servers.splice(0)) await new Promise((resolve) => server.close(resolve));
});

async function listen<S extends net.Server>(server: S): Promise<number> {
  servers.push(server);
  server.on('connection', (socket: net.Socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as net.AddressInfo).port;
}
const talker = (words: string | null, end = false) =>
  listen(net.createServer((socket) => (end ? socket.end(words ?? '') : words !== null && socket.write(words))));
const web = (status: number) =>
  listen(
    http.createServer((_request, response) => {
      response.writeHead(status);
      response.write('a body that never ends');
    }),
  );
const closedPort = async () => {
  const port = await talker(null);
  await new Promise((resolve) => servers.pop()!.close(resolve));
  return port;
};

function call(probe: string, abortAfterMs = 3000): Promise<ProbeOutcome> {
  const target = { host: '127.0.0.1', portOf: (port: number) => port };
  const caller = new ProbeCaller(target, { exec: () => Promise.reject(new Error('no agent')) });
  return caller.call(parseProbe(probe), AbortSignal.timeout(abortAfterMs));
}
const succeeded = { kind: 'succeeded' };
const failed = (reason: RegExp) => ({ kind: 'failed', reason: expect.stringMatching(reason) });

describe('a probe of', () => {
  test('tcp', async () => {
    expect(await call(`tcp:${await talker(null)}`)).toEqual(succeeded);
    expect(await call(`tcp:${await closedPort()}`)).toEqual(failed(/ECONNREFUSED/));
  });

  test('redis', async () => {
    for (const answer of ['+PONG\r\n', '-NOAUTH Authentication required.\r\n', '-LOADING\r\n'])
      expect(await call(`redis:${await talker(answer)}`)).toEqual(succeeded);
    expect(await call(`redis:${await talker('HTTP/1.1 400 Bad Request\r\n')}`)).toEqual(failed(/not of Redis/));
    expect(await call(`redis:${await talker('x'.repeat(4096))}`)).toEqual(failed(/not of Redis/));
    expect(await call(`redis:${await talker('', true)}`)).toEqual(failed(/without an answer/));
    expect(await call(`redis:${await closedPort()}`)).toEqual(failed(/ECONNREFUSED/));
    expect(await call(`redis:${await talker(null)}`, 100)).toEqual({ kind: 'unknown' });
  });

  test('http', async () => {
    expect(await call(`http:${await web(200)}/`)).toEqual(succeeded);
    expect(await call(`http:${await web(302)}/`)).toEqual(succeeded);
    expect(await call(`http:${await web(503)}/health`)).toEqual(failed(/it answered 503/));
    expect(await call(`http:${await talker('220 ready\r\n', true)}`)).toEqual(failed(/Parse Error|HTTP/));
    expect(await call(`http:${await closedPort()}`)).toEqual(failed(/ECONNREFUSED/));
    expect(await call(`http:${await talker(null)}`, 100)).toEqual({ kind: 'unknown' });
  });

  test('a command, which is not begun again while it runs', async () => {
    const ends: ((code: number) => void)[] = [];
    const caller = new ProbeCaller(null, { exec: () => new Promise((resolve) => ends.push(resolve)) });
    const check = parseProbe('exec:test -e /run/ready');
    const { signal } = new AbortController();
    const [first, second] = [caller.call(check, signal), caller.call(check, signal)];
    expect(ends).toHaveLength(1);
    ends[0]!(0);
    expect([await first, await second]).toEqual([succeeded, succeeded]);
    const third = caller.call(check, signal);
    ends[1]!(3);
    expect(await third).toEqual(failed(/ended with 3/));
  });

  test('what can not be asked says nothing', async () => {
    const ended = new ShadowVmError('VM_NOT_RUNNING', { attempted: 'run a command', reason: 'it ended' });
    const caller = new ProbeCaller(null, { exec: () => Promise.reject(ended) });
    const { signal } = new AbortController();
    expect(await caller.call(parseProbe('exec:true'), signal)).toEqual({ kind: 'unknown' });
    expect(await caller.call(parseProbe('tcp:80'), signal)).toEqual({ kind: 'unknown' });
  });
});
