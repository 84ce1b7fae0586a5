/**
 * HTTP with JSON over a Unix socket, in front of the manager. It checks what comes in and what goes out, bounds how much
 * may be under way, and decides nothing about VMs.
 *
 * A long operation may be asked for with `Accept: application/x-ndjson`. The answer is then lines:
 *
 *     {"progress":{"message":"starting QEMU"}}      any number
 *     {"result":{…}}  or  {"error":{…}}             the last one; the HTTP status was 200 long before
 */
import { chmodSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import type { Logger } from 'pino';
import type { z } from 'zod';
import { ERROR_STATUS, ShadowVmError, toShadowVmError } from '../errors.js';
import type { ManagerPort } from '../manager/port.js';
import { fileError } from '../manager/state-dir.js';
import type { OnProgress, WantedEpoch } from '../vm/view.js';
import { serveDisks } from './disk-routes.js';
import { Follower } from './follower.js';
import { openApi } from './openapi.js';
import { CONSOLE_PATH, noBody, type Route, routes } from './routes.js';
import {
  CONSOLE_PROTOCOL,
  check,
  describeIssues,
  NDJSON,
  nameParamsSchema,
  networkNameParamsSchema,
  type VersionResponse,
} from './schemas.js';
import { serveUsage } from './usage-routes.js';

const API_LIMITS = {
  bodyBytes: 64 * 1024,
  /** Changing requests under way at once, waiting ones included. */
  changes: 16,
  /** Streams of events. */
  followers: 64,
  consoles: 16,
  connections: 256,
  /** Progress lines beyond this wait for a reader in vain and are left out; the result is always sent. */
  progressBytes: 64 * 1024,
  /** How long answers that are being written may take when the server closes. */
  closeMs: 2000,
};
export type ApiLimits = typeof API_LIMITS;

export interface ApiOptions {
  socketPath: string;
  manager: ManagerPort;
  log: Logger;
  about: Omit<VersionResponse, 'api' | 'pid'>;
  limits?: Partial<ApiLimits>;
}

export interface ApiServer {
  readonly socketPath: string;
  /** From now on nothing new is begun; what is under way and all questions go on. Called before the manager closes. */
  refuseChanges(): void;
  /** Ends followers and consoles, lets answers finish, takes the socket away. */
  close(): Promise<void>;
}

/** @throws INVALID_ARGUMENT, NOT_ROOT, NO_SPACE when the socket can not be made */
export async function serveApi(options: ApiOptions): Promise<ApiServer> {
  const api = new Api(options);
  await api.listen();
  return api;
}

interface Input<R extends Route> {
  name: string;
  query: z.output<R['query']>;
  body: z.output<R['body']>;
  /** Aborted when the caller hangs up before it has its answer. */
  hungUp: AbortSignal;
}
type Answer<R extends Route> = z.input<R['response']>;
/** Registers what answers a route. */
export type Serve = <R extends Route>(route: R, handler: Handler<R>) => void;
type Handler<R extends Route> = (input: Input<R>, progress: OnProgress) => Promise<Answer<R>> | Answer<R>;

function wantedOf({ epoch, before }: { epoch?: number | undefined; before?: string | undefined }): WantedEpoch | null {
  if (epoch !== undefined) return { epoch };
  return before === undefined ? null : { beforeMs: Date.parse(before) };
}

class Api implements ApiServer {
  readonly socketPath: string;
  readonly #manager: ManagerPort;
  readonly #log: Logger;
  readonly #limits: ApiLimits;
  readonly #app: FastifyInstance;
  readonly #followers = new Set<Follower>();
  readonly #consoles = new Set<Duplex>();
  #changes = 0;
  #stopping = false;

  constructor(options: ApiOptions) {
    this.socketPath = options.socketPath;
    this.#manager = options.manager;
    this.#log = options.log;
    this.#limits = { ...API_LIMITS, ...options.limits };
    this.#app = fastify({
      bodyLimit: this.#limits.bodyBytes,
      return503OnClosing: false,
      routerOptions: { maxParamLength: 256 },
    });
    this.#app.server.maxConnections = this.#limits.connections;
    this.#app.setErrorHandler((error, request, reply) => this.#answerError(toApiError(error, request), request, reply));
    this.#app.setNotFoundHandler((request, reply) => this.#answerError(noRoute(request.raw), request, reply));
    this.#app.addHook('onResponse', (request, reply, done) => {
      const { method, url } = request;
      this.#log.debug({ method, url, status: reply.statusCode, ms: Math.round(reply.elapsedTime) }, 'request');
      done();
    });
    this.#routes(options.about);
    this.#app.server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      void this.#openConsole(request, socket, head);
    });
  }

  async listen(): Promise<void> {
    try {
      await this.#app.listen({ path: this.socketPath });
      // The directory keeps others out already; this is for a state directory whose mode somebody loosened.
      chmodSync(this.socketPath, 0o600);
    } catch (error) {
      throw fileError(error, 'open the socket of the API', this.socketPath);
    }
  }

  refuseChanges(): void {
    this.#stopping = true;
  }

  async close(): Promise<void> {
    this.#stopping = true;
    for (const follower of this.#followers) follower.end();
    for (const socket of this.#consoles) socket.destroy();
    const impatient = setTimeout(() => this.#app.server.closeAllConnections(), this.#limits.closeMs);
    await this.#app.close();
    clearTimeout(impatient);
  }

  #routes(about: ApiOptions['about']): void {
    const manager = this.#manager;
    this.#serve(routes.version, () => ({ ...about, api: 'v1' as const, pid: process.pid }));
    let description: Record<string, unknown> | undefined;
    // Once and not before it is asked for: it takes some 20 ms.
    this.#serve(routes.openApi, () => (description ??= openApi(about.version)));
    this.#serve(routes.health, () => ({ status: this.#stopping ? ('stopping' as const) : ('ok' as const) }));
    this.#serve(routes.listVms, () => ({ vms: manager.listVms() }));
    this.#serve(routes.showVm, ({ name }) => manager.showVm(name));
    // Taken back when the caller hangs up before it runs: nobody else knows that it is there.
    this.#serve(routes.runVm, ({ body, hungUp }, progress) => manager.runVm(body, progress, hungUp));
    this.#serve(routes.startVm, ({ name, body, hungUp }, progress) => manager.startVm(name, body, progress, hungUp));
    this.#serve(routes.cloneVm, ({ name, body, hungUp }, progress) =>
      manager.cloneVm(name, { name: body.name, wanted: wantedOf(body) }, progress, hungUp),
    );
    this.#serve(routes.stopVm, ({ name, body }, progress) => manager.stopVm(name, body, progress));
    this.#serve(routes.killVm, ({ name }) => manager.killVm(name));
    this.#serve(routes.removeVm, async ({ name, query }) => {
      await manager.removeVm(name, query);
      return { removed: name };
    });
    this.#serve(routes.readLog, async ({ name, query }) => ({
      which: query.which,
      ...(await manager.readLog(name, query.which, {
        maxBytes: query.bytes,
        ...(query.from === undefined ? {} : { fromByte: query.from }),
      })),
    }));
    this.#serve(routes.injectFault, async ({ name, body }) => ({
      fault: body.fault,
      atNs: (await manager.injectFault(name, body.fault)).atNs,
    }));
    this.#serve(routes.guestExec, ({ name, body }) => manager.guestExec(name, body.command));
    this.#serve(routes.listShadows, () => ({ shadows: manager.listShadows() }));
    this.#serve(routes.createShadow, ({ name }, progress) => manager.createShadow(name, progress));
    this.#serve(routes.removeShadow, async ({ name }) => {
      await manager.removeShadow(name);
      return { removed: name };
    });
    this.#serve(routes.promoteShadow, ({ name, body }) => manager.promoteShadow(name, wantedOf(body)));
    this.#serve(routes.listEpochs, ({ name }) => ({ epochs: manager.listEpochs(name) }));
    this.#serve(routes.changeMode, ({ name, body }) => manager.changeMode(name, body.mode));
    this.#serve(routes.changeStandby, ({ name, body }) => manager.changeStandby(name, body.standby));
    this.#serve(routes.verifyShadow, ({ name }, progress) => manager.verifyShadow(name, progress));
    this.#serve(routes.listSnapshots, () => ({ snapshots: manager.listSnapshots() }));
    this.#serve(routes.importSnapshot, ({ body }, progress) =>
      manager.importSnapshot(body.path, body.name ?? null, progress),
    );
    this.#serve(routes.exportSnapshot, ({ name, body }, progress) => manager.exportSnapshot(name, body.path, progress));
    this.#serve(routes.verifySnapshot, ({ name }, progress) => manager.verifySnapshot(name, progress));
    serveUsage((route, handler) => this.#serve(route, handler), manager.usage);
    serveDisks((route, handler) => this.#serve(route, handler), manager.disks);
    this.#serve(routes.listNetworks, () => ({ networks: manager.listNetworks() }));
    this.#serve(routes.showNetwork, ({ name }) => manager.showNetwork(name));
    this.#serve(routes.createNetwork, ({ body }) => manager.createNetwork(body));
    this.#serve(routes.removeNetwork, async ({ name }) => {
      await manager.removeNetwork(name);
      return { removed: name };
    });
    this.#app.get(routes.listEvents.path, (request, reply) => this.#events(request, reply));
    this.#app.get(CONSOLE_PATH, (request, reply) =>
      this.#answerError(needsUpgrade(request.url), request, reply.header('upgrade', CONSOLE_PROTOCOL)),
    );
  }

  #serve<R extends Route>(route: R, handler: Handler<R>): void {
    this.#app.route({
      method: route.method,
      url: route.path,
      handler: async (request, reply) => {
        const hungUp = new AbortController();
        reply.raw.on('close', () => {
          if (!reply.raw.writableFinished) hungUp.abort();
        });
        const input: Input<R> = {
          name: nameIn(route, request),
          query: check<R['query']>(route.query, request.query, 'the query'),
          // All fields of a body may have defaults, and then the body may be left out.
          body: check<R['body']>(route.body, route.body === noBody ? undefined : (request.body ?? {}), 'the body'),
          hungUp: hungUp.signal,
        };
        const release = route.changes ? this.#admitChange(route) : () => {};
        try {
          if (route.long && request.headers.accept?.includes(NDJSON)) {
            reply.hijack();
            await this.#stream(route, handler, input, reply.raw);
            return reply;
          }
          const body = answer(route, await handler(input, () => {}));
          return await reply.code(route.status).type('application/json').send(body);
        } finally {
          release();
        }
      },
    });
  }

  #admitChange(route: Route): () => void {
    if (this.#stopping)
      throw new ShadowVmError('DAEMON_STOPPING', {
        attempted: route.attempted,
        reason: 'the daemon is stopping',
        remedy: 'Start it again with `shadowvm daemon` and repeat this',
      });
    if (this.#changes >= this.#limits.changes) throw tooMany(route.attempted, this.#limits.changes, 'other operations');
    this.#changes++;
    return () => this.#changes--;
  }

  async #stream<R extends Route>(route: R, handler: Handler<R>, input: Input<R>, out: ServerResponse): Promise<void> {
    out.on('error', () => {}); // The caller hung up; `hungUp` says so to whom it concerns.
    out.writeHead(200, { 'content-type': NDJSON, 'cache-control': 'no-store' });
    out.flushHeaders();
    const progress: OnProgress = (step) => {
      if (out.writable && out.writableLength < this.#limits.progressBytes)
        out.write(JSON.stringify({ progress: step }) + '\n');
    };
    try {
      const result = answer(route, await handler(input, progress));
      out.end(`{"result":${result}}\n`);
    } catch (error) {
      const told = toShadowVmError(error, route.attempted);
      this.#logDefect(told);
      out.end(JSON.stringify({ error: told }) + '\n');
    }
  }

  #events(request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const query = check(routes.listEvents.query, request.query, 'the query');
    const filter = {
      ...(query.since === undefined ? {} : { since: query.since }),
      ...(query.limit === undefined ? {} : { limit: query.limit }),
      ...(query.vm === undefined ? {} : { vm: query.vm }),
    };
    if (!query.follow)
      return reply
        .type('application/json')
        .send(answer(routes.listEvents, { events: this.#manager.listEvents(filter) }));

    if (this.#followers.size >= this.#limits.followers)
      throw tooMany('follow the events', this.#limits.followers, 'other followers');
    reply.hijack();
    const out = reply.raw;
    out.writeHead(200, { 'content-type': NDJSON, 'cache-control': 'no-store' });
    // At once, although nothing may happen for hours: whoever follows must know that it does.
    out.flushHeaders();
    const follower = new Follower(out, () =>
      this.#log.warn({ vm: query.vm }, 'a follower of the events read too slowly and was disconnected'),
    );
    this.#followers.add(follower);
    // The backlog and the subscription are taken in one turn of the event loop, so nothing falls between them.
    const backlog = query.since === undefined && query.limit === undefined ? [] : this.#manager.listEvents(filter);
    for (const event of backlog) follower.push(event);
    const unfollow = this.#manager.followEvents((event) => {
      if (query.vm === undefined || event.vm === query.vm) follower.push(event);
    });
    out.on('close', () => {
      unfollow();
      this.#followers.delete(follower);
    });
    return reply;
  }

  /** Not a route of fastify: after 101 there is no HTTP any more, only the socket. */
  async #openConsole(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    socket.on('error', () => {}); // Hanging up is how a console ends.
    try {
      const name = /^\/v1\/vms\/([^/?]+)\/console$/.exec(request.url ?? '')?.[1];
      if (name === undefined || request.method !== 'GET') throw noRoute(request);
      const params = check(nameParamsSchema, { name: decodeURIComponent(name) }, 'the name of the VM');
      if (request.headers.upgrade !== CONSOLE_PROTOCOL) throw needsUpgrade(request.url ?? '');
      if (this.#consoles.size >= this.#limits.consoles)
        throw tooMany('open the console', this.#limits.consoles, 'other consoles');
      this.#consoles.add(socket);
      socket.on('close', () => this.#consoles.delete(socket));
      const line = await this.#manager.openConsole(params.name);
      if (socket.destroyed) {
        line.destroy();
        return;
      }
      socket.write(`HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ${CONSOLE_PROTOCOL}\r\n\r\n`);
      if (head.length > 0) line.write(head);
      // Two pipelines rather than one duplex: either end's hang-up must take down the other whole.
      const hangUp = () => {
        socket.destroy();
        line.destroy();
      };
      pipeline(socket, line, hangUp);
      pipeline(line, socket, hangUp);
    } catch (error) {
      this.#consoles.delete(socket);
      const told = toShadowVmError(error, 'open the console');
      this.#logDefect(told);
      const body = JSON.stringify({ error: told });
      socket.end(
        `HTTP/1.1 ${ERROR_STATUS[told.code]} Error\r\ncontent-type: application/json\r\n` +
          `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
      );
    }
  }

  #answerError(error: ShadowVmError, request: FastifyRequest, reply: FastifyReply): void {
    this.#logDefect(error, request);
    void reply.code(ERROR_STATUS[error.code]).type('application/json').send(JSON.stringify({ error }));
  }

  /** Errors of the caller are the caller's; a defect of ours is looked for in the log. */
  #logDefect(error: ShadowVmError, request?: FastifyRequest): void {
    if (error.code === 'INTERNAL') this.#log.error({ err: error.cause ?? error, url: request?.url }, error.message);
  }
}

function nameIn(route: Route, request: FastifyRequest): string {
  if (!route.path.includes(':name')) return '';
  return route.path.startsWith('/v1/networks')
    ? check(networkNameParamsSchema, request.params, 'the name of the network').name
    : check(nameParamsSchema, request.params, 'the name of the VM').name;
}

/** The answer as JSON, held to its schema: what is not promised does not go out, and what is promised is there. */
function answer<R extends Route>(route: R, value: unknown): string {
  const parsed = route.response.safeParse(value);
  if (parsed.success) return JSON.stringify(parsed.data);
  throw new ShadowVmError('INTERNAL', {
    attempted: route.attempted,
    reason: `the manager's answer is not what the API promises: ${describeIssues(parsed.error)}`,
    remedy: 'This is a defect of ShadowVM; please report it with the log of the manager',
    cause: parsed.error,
  });
}

function tooMany(attempted: string, limit: number, what: string): ShadowVmError {
  return new ShadowVmError('QUEUE_FULL', {
    attempted,
    reason: `${limit} ${what} are under way already, which is the limit`,
    remedy: 'Wait for one of them to end and repeat this',
  });
}

function noRoute(request: IncomingMessage): ShadowVmError {
  return new ShadowVmError('NOT_FOUND', {
    attempted: 'answer the request',
    subject: `${request.method} ${request.url}`,
    reason: 'the API has no such route',
    remedy: 'Check the path, and that client and daemon are of the same version',
  });
}

function needsUpgrade(url: string): ShadowVmError {
  return new ShadowVmError('INVALID_ARGUMENT', {
    attempted: 'open the console',
    subject: url,
    reason: `the request does not ask for an upgrade to ${CONSOLE_PROTOCOL}`,
    remedy: 'Use `shadowvm vm console NAME`',
  });
}

/** Fastify's own refusals (body too big, not JSON, …) are the caller's fault; everything else it hands on is ours. */
function toApiError(error: unknown, request: FastifyRequest): ShadowVmError {
  if (error instanceof Error && 'statusCode' in error && Number(error.statusCode) < 500)
    return new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'read the request',
      subject: `${request.method} ${request.url}`,
      reason: error.message,
      remedy: 'Send a small JSON body with content-type application/json',
      cause: error,
    });
  return toShadowVmError(error, 'answer the request');
}
