/** The protocol between clients and the daemon: the real server and the real client on a real Unix socket. */
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Client } from '../src/api/client.js';
import { FOLLOWER_QUEUE_MAX } from '../src/api/follower.js';
import { noBody, routes } from '../src/api/routes.js';
import { type ApiLimits, type ApiServer, serveApi } from '../src/api/server.js';
import type { Event, Progress } from '../src/vm/view.js';
import { FakeManager, shadowView, vmView } from './fake-manager.js';

let dir: string;
let socketPath: string;
let manager: FakeManager;
let api: ApiServer;
let client: Client;
let logged: string[];

async function serve(limits: Partial<ApiLimits> = {}): Promise<void> {
  api = await serveApi({
    socketPath,
    manager,
    log: pino({ level: 'info' }, { write: (line: string) => void logged.push(JSON.parse(line).msg) }),
    about: { version: '1.2.3', startedAt: '2026-01-01T00:00:00.000Z', stateDir: dir, imagesDir: join(dir, 'images') },
    limits: { closeMs: 200, ...limits },
  });
}

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'svm-'));
  socketPath = join(dir, 'shadowvm.sock');
  manager = new FakeManager();
  client = new Client(socketPath);
  logged = [];
  await serve();
});
afterEach(async () => {
  await api.close();
  rmSync(dir, { recursive: true, force: true });
});

/** A request as a stranger would send it: without our client's care. */
async function raw(
  method: string,
  path: string,
  body?: string,
  headers: http.OutgoingHttpHeaders = body === undefined ? {} : { 'content-type': 'application/json' },
): Promise<{ status: number; type: string | undefined; body: string }> {
  const request = http.request({ socketPath, method, path, headers, agent: false });
  request.end(body);
  const [response] = (await once(request, 'response')) as [http.IncomingMessage];
  return {
    status: response.statusCode!,
    type: response.headers['content-type']?.split(';')[0],
    body: await text(response),
  };
}

async function until(condition: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + 5000;
  while (!condition()) {
    if (performance.now() > deadlineMs) throw new Error(`never true: ${condition}`);
    await sleep(5);
  }
}

async function take(events: AsyncGenerator<Event>, count: number): Promise<number[]> {
  const seqs: number[] = [];
  for await (const event of events) {
    seqs.push(event.seq);
    if (seqs.length === count) break;
  }
  return seqs;
}

describe('questions and changes', () => {
  test('every method of the client does what its route says', async () => {
    expect(await client.version()).toMatchObject({ version: '1.2.3', api: 'v1', pid: process.pid, stateDir: dir });
    expect(await client.health()).toEqual({ status: 'ok' });
    expect(await client.listVms()).toEqual([]);

    const vm = await client.runVm({ name: 'web', ramBytes: 128 * 1024 * 1024 });
    expect(vm).toEqual(manager.vms.get('web'));
    expect(vm.spec.vcpus).toBe(1);
    expect(await client.showVm('web')).toEqual(vm);
    expect(await client.listVms()).toEqual([vm]);
    const log = await client.readLog('web');
    expect(log).toEqual({ which: 'console', text: 'console of web\nlogin:\n', nextByte: 22 });
    expect((await client.readLog('web', 'qemu', { maxBytes: 7 })).text).toBe('login:\n');
    manager.logged = 'root\n';
    const { nextByte: fromByte } = log;
    expect(await client.readLog('web', 'console', { fromByte })).toMatchObject({ text: 'root\n', nextByte: 27 });
    expect(await client.injectFault('web', 'hang')).toEqual({ fault: 'hang', atNs: '12345' });
    expect(await client.guestExec('web', 'false')).toEqual({ exitCode: 1 });

    expect(await client.createShadow('web')).toEqual(shadowView('web'));
    expect(await client.listShadows()).toEqual([shadowView('web')]);
    expect(await client.promoteShadow('web')).toMatchObject({ generation: 2, resumeMs: 8.5, planned: true });
    await client.removeShadow('web');
    expect(await client.listShadows()).toEqual([]);

    expect((await client.stopVm('web', { timeoutMs: 1234 })).state).toBe('stopped');
    expect((await client.killVm('web')).state).toBe('stopped');
    await client.removeVm('web', { force: true });
    expect(manager.calls).toEqual([
      'run web',
      'fault web hang',
      'exec web false',
      'promote web null',
      'stop web 1234 shutdown true',
      'remove web true',
    ]);
  });

  test('the socket is for its owner only', () => expect(statSync(socketPath).mode & 0o777).toBe(0o600));

  test('a body whose fields all have defaults may be left out', async () => {
    manager.vms.set('web', vmView('web'));
    expect((await raw('POST', '/v1/vms/web/stop')).status).toBe(200);
    expect(manager.calls).toEqual(['stop web 10000 shutdown true']);
  });

  test('creating answers 201, everything else 200', async () => {
    expect((await raw('POST', '/v1/vms', '{"name":"web"}')).status).toBe(201);
    expect((await raw('GET', '/v1/vms')).status).toBe(200);
  });
});

describe('the description of the API', () => {
  interface OpenApi {
    openapi: string;
    info: { version: string };
    paths: Record<string, Record<string, Operation>>;
    components: { schemas: Record<string, object> };
  }
  interface Operation {
    parameters: { name: string; in: string; required?: boolean }[];
    requestBody?: {
      required: boolean;
      content: Record<string, { schema: { properties: object; required: string[] } }>;
    };
    responses: Record<string, { content: Record<string, { schema: object }> }>;
  }
  const describeApi = async (): Promise<OpenApi> => JSON.parse((await raw('GET', '/v1/openapi.json')).body);

  test('has every route with what it takes and answers', async () => {
    const api = await describeApi();
    expect(api).toMatchObject({ openapi: '3.1.0', info: { version: '1.2.3' } });
    for (const [operationId, route] of Object.entries(routes)) {
      const found = api.paths[route.path.replace(':name', '{name}')]?.[route.method.toLowerCase()];
      expect(found, operationId).toMatchObject({ operationId, summary: route.attempted });
      const { parameters, requestBody, responses } = found!;
      expect(parameters.some((each) => each.in === 'path')).toBe(route.path.includes(':name'));
      expect(requestBody !== undefined).toBe(route.body !== noBody);
      expect(Object.keys(responses)).toEqual([String(route.status), 'default']);
      expect('application/x-ndjson' in responses[route.status]!.content).toBe(
        route.long || operationId === 'listEvents',
      );
    }
    const operations = Object.values(api.paths).flatMap((path) => Object.keys(path));
    expect(operations).toHaveLength(Object.keys(routes).length + 1); // and the console
    expect(api.paths['/v1/vms/{name}/console']!.get!.responses).toHaveProperty('101');
  });

  test('says what may be left out, and refers to nothing that is not there', async () => {
    const api = await describeApi();
    const run = api.paths['/v1/vms']!.post!;
    expect(run.requestBody).toMatchObject({ required: true });
    expect(run.requestBody!.content['application/json']!.schema).toMatchObject({
      properties: { ramBytes: { minimum: 67_108_864, default: 268_435_456 } },
      required: ['name'],
      additionalProperties: false,
    });
    expect(run.responses['201']!.content['application/json']!.schema).toEqual({ $ref: '#/components/schemas/Vm' });
    expect(api.paths['/v1/vms/{name}/stop']!.post!.requestBody).toMatchObject({ required: false });
    const text = JSON.stringify(api);
    const referred = [...text.matchAll(/"\$ref":"([^"]*)"/g)].map((match) => match[1]!);
    expect(referred.length).toBeGreaterThan(10);
    for (const ref of referred) {
      expect(ref).toMatch(/^#\/components\/schemas\/\w+$/);
      expect(api.components.schemas).toHaveProperty(ref.split('/').at(-1)!);
    }
    expect(text).not.toMatch(/\$defs|\$schema/);
  });
});

describe('errors', () => {
  test("the manager's errors arrive as they were thrown", async () => {
    await expect(client.showVm('nobody')).rejects.toMatchObject({
      name: 'ShadowVmError',
      code: 'VM_NOT_FOUND',
      subject: 'nobody',
      message: 'could not find the VM (nobody): there is no VM of this name. See `shadowvm vm ls`',
    });
    manager.vms.set('web', vmView('web', { shadow: shadowView('web', { state: 'syncing' }) }));
    await expect(client.promoteShadow('web')).rejects.toMatchObject({ code: 'SHADOW_NOT_READY' });
    await expect(client.createShadow('web', { onProgress: () => {} })).rejects.toMatchObject({ code: 'SHADOW_EXISTS' });
  });

  test.each([
    ['an odd name', 'GET', '/v1/vms/No_Good', undefined, 400, 'INVALID_ARGUMENT', /a name has 1 to 32 characters/],
    ['an unknown VM', 'GET', '/v1/vms/web', undefined, 404, 'VM_NOT_FOUND', /no VM of this name/],
    ['an unknown route', 'GET', '/v2/vms', undefined, 404, 'NOT_FOUND', /no such route/],
    ['an unknown method', 'PUT', '/v1/vms', '{}', 404, 'NOT_FOUND', /no such route/],
    ['a body that is not JSON', 'POST', '/v1/vms', '{"name":', 400, 'INVALID_ARGUMENT', /JSON/],
    ['an empty body', 'POST', '/v1/vms', '', 400, 'INVALID_ARGUMENT', /empty/],
    ['a missing field', 'POST', '/v1/vms', '{}', 400, 'INVALID_ARGUMENT', /name: /],
    ['a misspelt field', 'POST', '/v1/vms', '{"name":"a","vcpu":2}', 400, 'INVALID_ARGUMENT', /vcpu/],
    ['too little RAM', 'POST', '/v1/vms', '{"name":"a","ramBytes":1}', 400, 'INVALID_ARGUMENT', /ramBytes: /],
    ['too big a body', 'POST', '/v1/vms', `{"name":"${'x'.repeat(70_000)}"}`, 400, 'INVALID_ARGUMENT', /too large/],
    ['an unknown query', 'GET', '/v1/events?sicne=1', undefined, 400, 'INVALID_ARGUMENT', /sicne/],
    [
      'a query that is no number',
      'GET',
      '/v1/events?since=x',
      undefined,
      400,
      'INVALID_ARGUMENT',
      /not a whole number/,
    ],
    ['too much log', 'GET', '/v1/vms/web/logs?bytes=99999999', undefined, 400, 'INVALID_ARGUMENT', /bytes: /],
    ['a console without upgrade', 'GET', '/v1/vms/web/console', undefined, 400, 'INVALID_ARGUMENT', /upgrade/],
  ])('%s', async (_, method, path, body, status, code, reason) => {
    const answer = await raw(method, path, body);
    expect(answer).toMatchObject({ status, type: 'application/json' });
    expect(JSON.parse(answer.body).error).toMatchObject({
      code,
      attempted: expect.any(String),
      reason: expect.stringMatching(reason),
      remedy: expect.any(String),
    });
  });

  test('a manager that breaks its promise is a defect that is told and logged', async () => {
    manager.vms.set('web', vmView('web', { generation: 1.5 }));
    await expect(client.showVm('web')).rejects.toMatchObject({ code: 'INTERNAL', reason: /generation/ });
    expect(logged.join()).toContain('generation');
  });

  test('no daemon, and a daemon that dies while it answers, are told apart from errors of the request', async () => {
    await expect(new Client(join(dir, 'none.sock')).listVms()).rejects.toMatchObject({
      code: 'DAEMON_NOT_RUNNING',
      remedy: expect.stringContaining('shadowvm daemon'),
    });
    const path = join(dir, 'dying.sock');
    const dying = net.createServer((socket) => {
      socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"vms":['));
    });
    dying.listen(path);
    await expect(new Client(path).listVms()).rejects.toMatchObject({
      code: 'DAEMON_NOT_RUNNING',
      reason: expect.stringContaining('hung up'),
    });
    dying.close();
  });
});

describe('long operations', () => {
  test('their steps arrive while they last, and then the result', async () => {
    let goOn = () => {};
    manager.midway = () => new Promise((resolve) => (goOn = resolve));
    const steps: Progress[] = [];
    const running = client.runVm({ name: 'web' }, { onProgress: (step) => void steps.push(step) });
    await until(() => steps.length === 1);
    expect(steps).toEqual([{ message: 'starting QEMU', done: 0.1 }]);
    goOn();
    expect(await running).toMatchObject({ name: 'web', state: 'running' });
    expect(steps).toHaveLength(2);
  });

  test('an error ends them as an error', async () => {
    manager.vms.set('web', vmView('web'));
    await expect(client.runVm({ name: 'web' }, { onProgress: () => {} })).rejects.toMatchObject({ code: 'VM_EXISTS' });
    const answer = await raw('POST', '/v1/vms', '{"name":"web"}', {
      'content-type': 'application/json',
      accept: 'application/x-ndjson',
    });
    expect(answer).toMatchObject({ status: 200, type: 'application/x-ndjson' });
    expect(JSON.parse(answer.body).error.code).toBe('VM_EXISTS');
  });

  test('a body that is wrong is refused with its status before any line', async () => {
    const answer = await raw('POST', '/v1/vms', '{"name":"BAD"}', {
      'content-type': 'application/json',
      accept: 'application/x-ndjson',
    });
    expect(answer).toMatchObject({ status: 400, type: 'application/json' });
  });

  test('a caller that hangs up before its VM runs takes it back', async () => {
    manager.midway = () => new Promise(() => {});
    const giveUp = new AbortController();
    const running = client.runVm({ name: 'web' }, { onProgress: () => giveUp.abort(), signal: giveUp.signal });
    await expect(running).rejects.toMatchObject({ code: 'DAEMON_NOT_RUNNING' });
    await until(() => manager.calls.includes('take web back'));
    expect(manager.vms.has('web')).toBe(false);
  });

  test('a caller that hangs up does not take back what was there before, or what already runs', async () => {
    manager.vms.set('old', vmView('old'));
    const giveUp = new AbortController();
    const refused = client.runVm({ name: 'old' }, { signal: giveUp.signal });
    giveUp.abort();
    await expect(refused).rejects.toMatchObject({ code: expect.any(String) });
    await client.runVm({ name: 'web' }, { onProgress: () => {} });
    await sleep(50);
    expect([...manager.vms.keys()]).toEqual(['old', 'web']);
    expect(manager.calls).not.toContain('take web back');
  });

  test('a reader that does not read loses steps, not the daemon its memory', async () => {
    let written = 0;
    manager.midway = async (progress) => {
      for (; written < 10_000; written++) progress({ message: 'x'.repeat(1000) });
    };
    const request = http.request({
      socketPath,
      method: 'POST',
      path: '/v1/vms/web/shadow',
      headers: { accept: 'application/x-ndjson' },
      agent: false,
    });
    manager.vms.set('web', vmView('web'));
    request.end();
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    await until(() => written === 10_000);
    const lines = (await text(response)).trimEnd().split('\n');
    expect(lines.length).toBeLessThan(1000);
    expect(JSON.parse(lines.at(-1)!)).toEqual({ result: shadowView('web') });
  });
});

describe('limits', () => {
  test('changes beyond the limit are refused, questions are not', async () => {
    await api.close();
    await serve({ changes: 2 });
    let goOn: () => void = () => {};
    const gate = new Promise<void>((resolve) => (goOn = resolve));
    manager.midway = () => gate;
    const first = client.runVm({ name: 'a' });
    const second = client.runVm({ name: 'b' });
    await until(() => manager.vms.size === 2);
    await expect(client.runVm({ name: 'c' })).rejects.toMatchObject({ code: 'QUEUE_FULL' });
    expect((await raw('POST', '/v1/vms', '{"name":"c"}')).status).toBe(429);
    expect(await client.listVms()).toHaveLength(2);
    goOn();
    await Promise.all([first, second]);
    expect((await client.runVm({ name: 'c' })).name).toBe('c');
  });

  test('a daemon that stops begins nothing new and still answers', async () => {
    manager.vms.set('web', vmView('web'));
    api.refuseChanges();
    await expect(client.killVm('web')).rejects.toMatchObject({ code: 'DAEMON_STOPPING' });
    expect(await client.health()).toEqual({ status: 'stopping' });
    expect(await client.listVms()).toHaveLength(1);
  });

  test('closing ends followers and consoles, and takes the socket away', async () => {
    manager.vms.set('web', vmView('web'));
    const line = await client.openConsole('web');
    const lineClosed = once(line.resume(), 'close');
    const following = take(client.followEvents(), 99);
    await until(() => manager.followerCount === 1);
    manager.emit('daemon.stopping');
    await api.close();
    expect(await following).toEqual([1]);
    await lineClosed;
    expect(existsSync(socketPath)).toBe(false);
    expect(manager.followerCount).toBe(0);
  });

  test('an operation that does not end does not keep the server from closing', async () => {
    manager.midway = () => new Promise(() => {});
    const running = client.runVm({ name: 'web' });
    await until(() => manager.vms.size === 1);
    const startMs = performance.now();
    await Promise.all([expect(running).rejects.toMatchObject({ code: 'DAEMON_NOT_RUNNING' }), api.close()]);
    expect(performance.now() - startMs).toBeLessThan(2000);
  });
});

describe('events', () => {
  test('are listed by number, VM and limit', async () => {
    for (let i = 0; i < 5; i++) manager.emit('vm.test', i % 2 === 0 ? 'web' : 'db');
    const seqs = async (filter: object) => (await client.listEvents(filter)).map((event) => event.seq);
    expect(await seqs({})).toEqual([1, 2, 3, 4, 5]);
    expect(await seqs({ since: 2, limit: 2 })).toEqual([4, 5]);
    expect(await seqs({ vm: 'db' })).toEqual([2, 4]);
  });

  test('are followed from now on, or from a number without a gap', async () => {
    manager.emit('old');
    manager.emit('old');
    const fromNow = take(client.followEvents(), 2);
    const fromOne = take(client.followEvents({ since: 1 }), 3);
    const lastOne = take(client.followEvents({ limit: 1 }), 3);
    const ofWeb = take(client.followEvents({ vm: 'web' }), 1);
    await until(() => manager.followerCount === 4);
    manager.emit('new', 'db');
    manager.emit('new', 'web');
    expect(await fromNow).toEqual([3, 4]);
    expect(await fromOne).toEqual([2, 3, 4]);
    expect(await lastOne).toEqual([2, 3, 4]);
    expect(await ofWeb).toEqual([4]);
    await until(() => manager.followerCount === 0);
  });

  test('an aborted follower ends quietly', async () => {
    const stop = new AbortController();
    const following = take(client.followEvents({ signal: stop.signal }), 99);
    await until(() => manager.followerCount === 1);
    stop.abort();
    expect(await following).toEqual([]);
    await until(() => manager.followerCount === 0);
  });

  test('a follower that does not read is disconnected, and one that reads gets everything', async () => {
    const request = http.request({ socketPath, path: '/v1/events?follow=true', agent: false });
    request.end();
    const [slow] = (await once(request, 'response')) as [http.IncomingMessage];
    slow.on('error', () => {});
    const count = 3 * FOLLOWER_QUEUE_MAX;
    const quick = take(client.followEvents(), count);
    await until(() => manager.followerCount === 2);
    for (let i = 0; i < count; i++) {
      manager.emit('flood', null, { text: 'x'.repeat(200) });
      if (i % 100 === 0) await sleep(1);
    }
    expect(await quick).toHaveLength(count);
    await until(() => manager.followerCount === 0);
    expect(logged).toContain('a follower of the events read too slowly and was disconnected');
  });

  test('followers beyond the limit are refused', async () => {
    await api.close();
    await serve({ followers: 1 });
    const stop = new AbortController();
    const first = take(client.followEvents({ signal: stop.signal }), 1);
    await until(() => manager.followerCount === 1);
    await expect(take(client.followEvents(), 1)).rejects.toMatchObject({ code: 'QUEUE_FULL' });
    stop.abort();
    await first;
  });
});

describe('the console', () => {
  test('is raw in both directions, and hanging up reaches the manager', async () => {
    manager.vms.set('web', vmView('web'));
    const line = await client.openConsole('web');
    let heard = '';
    line.on('data', (chunk) => (heard += chunk));
    line.write('ls\x03\x00\r');
    await until(() => heard === 'console of web\r\nLS\x03\x00\r');
    line.destroy();
    await until(() => manager.calls.includes('console of web closed'));
  });

  test('errors come as errors', async () => {
    await expect(client.openConsole('nobody')).rejects.toMatchObject({ code: 'VM_NOT_FOUND' });
    await expect(client.openConsole('No Good')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(new Client(join(dir, 'none')).openConsole('web')).rejects.toMatchObject({
      code: 'DAEMON_NOT_RUNNING',
    });
  });

  test('there are only so many', async () => {
    await api.close();
    await serve({ consoles: 1 });
    manager.vms.set('web', vmView('web'));
    const line = await client.openConsole('web');
    await expect(client.openConsole('web')).rejects.toMatchObject({ code: 'QUEUE_FULL' });
    line.destroy();
    await until(() => manager.calls.includes('console of web closed'));
    (await client.openConsole('web')).destroy();
  });

  test('another upgrade, or one of another path, is refused', async () => {
    const upgrade = { connection: 'Upgrade', upgrade: 'websocket' };
    expect((await raw('GET', '/v1/vms/web/console', undefined, upgrade)).status).toBe(400);
    expect((await raw('GET', '/v1/other', undefined, upgrade)).status).toBe(404);
  });
});
