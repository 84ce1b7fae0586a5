/** The API from the other side: one method per route, for the CLI, the demo, the benchmarks and the tests. */
import http from 'node:http';
import type { Duplex } from 'node:stream';
import { text } from 'node:stream/consumers';
import type { z } from 'zod';
import { type ErrorBody, ShadowVmError } from '../errors.js';
import type { Metric } from '../history/metrics.js';
import type { DiskExportView, DiskHeatView, DiskView } from '../vm/disk-view.js';
import type { NetworkSpecInput, NetworkView } from '../vm/network.js';
import type { AllocationSpec, Mode, StandbyLevel, VmSpecInput } from '../vm/spec.js';
import type {
  AllocationView,
  AnalysisView,
  CapacityView,
  ForecastView,
  HistoryView,
  ThresholdView,
} from '../vm/usage-view.js';
import {
  type EpochView,
  type Event,
  type ExportView,
  eventSchema,
  type OnProgress,
  type PromotionView,
  type ShadowView,
  type SnapshotView,
  type VerifyView,
  type VmView,
} from '../vm/view.js';
import { readLines } from './lines.js';
import { CONSOLE_PATH, type Route, routes } from './routes.js';
import {
  CONSOLE_PROTOCOL,
  describeIssues,
  errorResponseSchema,
  type Fault,
  type HealthResponse,
  LINE_BYTES_MAX,
  NDJSON,
  operationLineSchema,
  type VersionResponse,
} from './schemas.js';

/** A question is answered out of memory; a daemon that says nothing for so long hangs. */
const QUESTION_TIMEOUT_MS = 15_000;

interface CallInput<R extends Route> {
  name?: string;
  query?: z.input<R['query']>;
  body?: z.input<R['body']>;
  onProgress?: OnProgress | undefined;
  signal?: AbortSignal | undefined;
}

/** What every method that may take long accepts. */
export interface CallOptions {
  onProgress?: OnProgress;
  /** Gives up waiting. `runVm` is taken back by the daemon then; everything else goes on there. */
  signal?: AbortSignal;
}

/** An epoch by its number, or the newest before a moment (ISO 8601); neither is the newest of all. */
export interface EpochName {
  epoch?: number | undefined;
  before?: string | undefined;
}

/** Which metric, over which time; ISO 8601. */
export interface UsageQuery {
  metric?: Metric | undefined;
  since?: string | undefined;
  until?: string | undefined;
}

/** Holds no connection between calls, so there is nothing to close. Every method throws ShadowVmError only. */
export class Client {
  constructor(readonly socketPath: string) {}

  version(): Promise<VersionResponse> {
    return this.#call(routes.version, {});
  }
  health(): Promise<HealthResponse> {
    return this.#call(routes.health, {});
  }

  async listVms(): Promise<VmView[]> {
    return (await this.#call(routes.listVms, {})).vms;
  }
  showVm(name: string): Promise<VmView> {
    return this.#call(routes.showVm, { name });
  }
  /** Resolves when the guest beats. */
  runVm(spec: VmSpecInput, options: CallOptions = {}): Promise<VmView> {
    return this.#call(routes.runVm, { body: spec, ...options });
  }
  /** Resolves when the guest answers; given up, it is stopped again. */
  startVm(name: string, options: CallOptions & { boot?: boolean } = {}): Promise<VmView> {
    const { boot, ...rest } = options;
    return this.#call(routes.startVm, { name, body: { boot }, ...rest });
  }
  cloneVm(name: string, clone: string, options: CallOptions & EpochName = {}): Promise<VmView> {
    const { epoch, before, ...rest } = options;
    return this.#call(routes.cloneVm, { name, body: { name: clone, epoch, before }, ...rest });
  }
  stopVm(
    name: string,
    options: CallOptions & { timeoutMs?: number; how?: 'shutdown' | 'suspend'; snapshot?: boolean } = {},
  ): Promise<VmView> {
    const { timeoutMs, how, snapshot, ...rest } = options;
    return this.#call(routes.stopVm, { name, body: { timeoutMs, how, snapshot }, ...rest });
  }
  killVm(name: string): Promise<VmView> {
    return this.#call(routes.killVm, { name });
  }
  async removeVm(name: string, options: { force?: boolean } = {}): Promise<void> {
    await this.#call(routes.removeVm, { name, query: { force: options.force === true ? 'true' : 'false' } });
  }
  /** The last bytes of the log, or those from `fromByte` on; at most 1 MiB, 64 KiB unless said. */
  readLog(
    name: string,
    which: 'console' | 'qemu' = 'console',
    part: { maxBytes?: number; fromByte?: number } = {},
  ): Promise<{ text: string; nextByte: number }> {
    const { maxBytes, fromByte } = part;
    return this.#call(routes.readLog, {
      name,
      query: {
        which,
        ...(maxBytes === undefined ? {} : { bytes: String(maxBytes) }),
        ...(fromByte === undefined ? {} : { from: String(fromByte) }),
      },
    });
  }
  injectFault(name: string, fault: Fault): Promise<{ fault: Fault; atNs: string }> {
    return this.#call(routes.injectFault, { name, body: { fault } });
  }
  guestExec(name: string, command: string): Promise<{ exitCode: number }> {
    return this.#call(routes.guestExec, { name, body: { command } });
  }

  async listShadows(): Promise<ShadowView[]> {
    return (await this.#call(routes.listShadows, {})).shadows;
  }
  /** Resolves when the shadow is ready. */
  createShadow(name: string, options: CallOptions = {}): Promise<ShadowView> {
    return this.#call(routes.createShadow, { name, ...options });
  }
  promoteShadow(name: string, wanted: EpochName = {}): Promise<PromotionView> {
    const { epoch, before } = wanted;
    return this.#call(routes.promoteShadow, { name, body: { epoch, before } });
  }
  async listEpochs(name: string): Promise<EpochView[]> {
    return (await this.#call(routes.listEpochs, { name })).epochs;
  }
  changeMode(name: string, mode: Mode): Promise<VmView> {
    return this.#call(routes.changeMode, { name, body: { mode } });
  }
  changeStandby(name: string, standby: StandbyLevel): Promise<ShadowView> {
    return this.#call(routes.changeStandby, { name, body: { standby } });
  }
  verifyShadow(name: string, options: CallOptions = {}): Promise<VerifyView> {
    return this.#call(routes.verifyShadow, { name, ...options });
  }

  async listSnapshots(): Promise<SnapshotView[]> {
    return (await this.#call(routes.listSnapshots, {})).snapshots;
  }
  exportSnapshot(name: string, path: string, options: CallOptions = {}): Promise<ExportView> {
    return this.#call(routes.exportSnapshot, { name, body: { path }, ...options });
  }
  importSnapshot(path: string, options: CallOptions & { name?: string } = {}): Promise<SnapshotView> {
    const { name, ...rest } = options;
    return this.#call(routes.importSnapshot, { body: { path, name }, ...rest });
  }
  verifySnapshot(name: string, options: CallOptions = {}): Promise<VerifyView> {
    return this.#call(routes.verifySnapshot, { name, ...options });
  }
  async removeShadow(name: string): Promise<void> {
    await this.#call(routes.removeShadow, { name });
  }

  /** A metric's past, at most `points` of it. `since`, `until`: ISO 8601. */
  history(name: string, query: UsageQuery & { points?: number } = {}): Promise<HistoryView> {
    const { points, ...period } = query;
    const asked = points === undefined ? {} : { points: String(points) };
    return this.#call(routes.history, { name, query: { ...defined(period), ...asked } });
  }
  analysis(name: string, query: UsageQuery = {}): Promise<AnalysisView> {
    return this.#call(routes.analysis, { name, query: defined(query) });
  }
  async forecasts(name: string): Promise<ForecastView[]> {
    return (await this.#call(routes.forecasts, { name })).forecasts;
  }
  async thresholds(name: string): Promise<ThresholdView[]> {
    return (await this.#call(routes.thresholds, { name })).thresholds;
  }
  capacity(): Promise<CapacityView> {
    return this.#call(routes.capacity, {});
  }
  async allocations(): Promise<AllocationView[]> {
    return (await this.#call(routes.allocations, {})).allocations;
  }
  allocate(name: string, change: Partial<AllocationSpec>): Promise<AllocationView> {
    return this.#call(routes.allocate, { name, body: change });
  }

  async listDisks(): Promise<DiskView[]> {
    return (await this.#call(routes.listDisks, {})).disks;
  }
  async diskHeat(name: string): Promise<DiskHeatView[]> {
    return (await this.#call(routes.diskHeat, { name })).disks;
  }
  /** Resolves when its shadow, if it has one, has begun anew. */
  resizeDisk(name: string, disk: string, sizeBytes: number, options: CallOptions = {}): Promise<DiskView> {
    return this.#call(routes.resizeDisk, { name, body: { disk, sizeBytes }, ...options });
  }
  /** @param path on the daemon's host, absolute */
  exportDisk(
    name: string,
    disk: string,
    path: string,
    options: CallOptions & { epoch?: number | undefined } = {},
  ): Promise<DiskExportView> {
    const { epoch, ...rest } = options;
    return this.#call(routes.exportDisk, { name, body: { disk, path, epoch }, ...rest });
  }

  async listNetworks(): Promise<NetworkView[]> {
    return (await this.#call(routes.listNetworks, {})).networks;
  }
  showNetwork(name: string): Promise<NetworkView> {
    return this.#call(routes.showNetwork, { name });
  }
  createNetwork(spec: NetworkSpecInput): Promise<NetworkView> {
    return this.#call(routes.createNetwork, { body: spec });
  }
  async removeNetwork(name: string): Promise<void> {
    await this.#call(routes.removeNetwork, { name });
  }

  async listEvents(filter: { since?: number; limit?: number; vm?: string } = {}): Promise<Event[]> {
    return (await this.#call(routes.listEvents, { query: eventsQuery(filter) })).events;
  }

  /**
   * New events as they happen, after those that `since` or `limit` ask for. Ends when the daemon does, or when
   * `signal` is aborted; a reader that is too slow is cut off by the daemon, which is an error here.
   */
  async *followEvents(
    filter: { since?: number; limit?: number; vm?: string; signal?: AbortSignal } = {},
  ): AsyncGenerator<Event> {
    const { signal, ...rest } = filter;
    const attempted = 'follow the events';
    const query = { ...eventsQuery(rest), follow: 'true' };
    let response: http.IncomingMessage | undefined;
    try {
      response = await this.#open('GET', pathOf(routes.listEvents, undefined, query), { attempted, signal });
      if (response.statusCode !== 200) throw await errorOf(response, attempted);
      for await (const line of readLines(response, LINE_BYTES_MAX))
        yield parseAs(eventSchema, parseJson(line, attempted), attempted);
    } catch (error) {
      if (signal?.aborted) return;
      throw cutShort(error, attempted);
    } finally {
      response?.destroy();
    }
  }

  /** The live serial console as a raw duplex; destroying it hangs up. */
  openConsole(name: string): Promise<Duplex> {
    const attempted = 'open the console';
    return new Promise((resolve, reject) => {
      const request = http.request({
        socketPath: this.socketPath,
        path: CONSOLE_PATH.replace(':name', encodeURIComponent(name)),
        headers: { connection: 'Upgrade', upgrade: CONSOLE_PROTOCOL },
        agent: false,
      });
      request.on('upgrade', (_response, socket, head) => {
        if (head.length > 0) socket.unshift(head);
        resolve(socket);
      });
      request.on('response', (response) => {
        errorOf(response, attempted).then(reject, reject);
      });
      request.on('error', (error) => reject(unreachable(error, attempted, this.socketPath)));
      request.end();
    });
  }

  async #call<R extends Route>(route: R, input: CallInput<R>): Promise<z.output<R['response']>> {
    const { attempted } = route;
    const streams = route.long && input.onProgress !== undefined;
    const response = await this.#open(route.method, pathOf(route, input.name, input.query), {
      attempted,
      body: input.body,
      accept: streams ? NDJSON : 'application/json',
      signal: input.signal,
      timeoutMs: route.changes ? 0 : QUESTION_TIMEOUT_MS,
    });
    try {
      if (response.statusCode !== route.status && response.headers['content-type'] !== NDJSON)
        throw await errorOf(response, attempted);
      const value = streams
        ? await resultOf(response, attempted, input.onProgress!)
        : parseJson(await text(response), attempted);
      return parseAs(route.response, value, attempted) as z.output<R['response']>;
    } catch (error) {
      throw cutShort(error, attempted);
    } finally {
      response.destroy();
    }
  }

  #open(
    method: Route['method'],
    path: string,
    options: {
      attempted: string;
      body?: unknown;
      accept?: string;
      signal?: AbortSignal | undefined;
      timeoutMs?: number;
    },
  ): Promise<http.IncomingMessage> {
    return new Promise((resolve, reject) => {
      const body = options.body === undefined ? undefined : JSON.stringify(options.body);
      const request = http.request({
        socketPath: this.socketPath,
        method,
        path,
        headers: {
          accept: options.accept ?? 'application/json',
          ...(body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
        },
        // A connection of its own for each call: on a Unix socket that costs nothing, and nothing is left to close.
        agent: false,
        ...(options.signal === undefined ? {} : { signal: options.signal }),
        ...(options.timeoutMs ? { timeout: options.timeoutMs } : {}),
      });
      request.on('timeout', () => request.destroy(new Error(`no answer within ${options.timeoutMs} ms`)));
      request.on('response', resolve);
      request.on('error', (error) => reject(unreachable(error, options.attempted, this.socketPath)));
      request.end(body);
    });
  }
}

/** Without what is undefined, which a query would have as text. */
function defined<T extends object>(query: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(query).filter(([, value]) => value !== undefined)) as never;
}

function eventsQuery(filter: { since?: number; limit?: number; vm?: string }): Record<string, string> {
  return Object.fromEntries(
    Object.entries(filter)
      .filter(([, value]) => value !== undefined)
      .map(([key, value]) => [key, String(value)]),
  );
}

function pathOf(route: Route, name: string | undefined, query: unknown): string {
  const path = route.path.replace(':name', encodeURIComponent(name ?? ''));
  const search = new URLSearchParams((query ?? {}) as Record<string, string>).toString();
  return search === '' ? path : `${path}?${search}`;
}

/** Reads the lines of a long operation up to its result. */
async function resultOf(response: http.IncomingMessage, attempted: string, onProgress: OnProgress): Promise<unknown> {
  for await (const line of readLines(response, LINE_BYTES_MAX)) {
    const parsed = parseAs(operationLineSchema, parseJson(line, attempted), attempted);
    if ('progress' in parsed) {
      const { message, done } = parsed.progress;
      onProgress(done === undefined ? { message } : { message, done });
    } else if ('error' in parsed) throw fromBody(parsed.error);
    else return parsed.result;
  }
  throw endedEarly(attempted);
}

function parseJson(textOfIt: string, attempted: string): unknown {
  try {
    return JSON.parse(textOfIt);
  } catch (error) {
    // Half a line is what a daemon that was killed while it answered leaves.
    throw endedEarly(attempted, error);
  }
}

function parseAs<S extends z.ZodType>(schema: S, value: unknown, attempted: string): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new ShadowVmError('INTERNAL', {
    attempted,
    reason: `the daemon's answer can not be read: ${describeIssues(parsed.error)}`,
    remedy: 'Check with `shadowvm version` that client and daemon are of the same version',
    cause: parsed.error,
  });
}

async function errorOf(response: http.IncomingMessage, attempted: string): Promise<ShadowVmError> {
  const body = parseAs(errorResponseSchema, parseJson(await text(response), attempted), attempted);
  return fromBody(body.error);
}

/** The daemon's error, as if it had been thrown here. */
function fromBody(body: ErrorBody): ShadowVmError {
  return new ShadowVmError(body.code, {
    attempted: body.attempted,
    reason: body.reason,
    ...(body.subject === undefined ? {} : { subject: body.subject }),
    ...(body.remedy === undefined ? {} : { remedy: body.remedy }),
  });
}

function unreachable(error: NodeJS.ErrnoException, attempted: string, socketPath: string): ShadowVmError {
  const detail = { attempted, subject: socketPath, cause: error };
  switch (error.code) {
    case 'ENOENT':
    case 'ECONNREFUSED':
      return new ShadowVmError('DAEMON_NOT_RUNNING', {
        ...detail,
        reason: 'no daemon answers on this socket',
        remedy: 'Start one with `shadowvm daemon`, or say with --state where the one you mean keeps its state',
      });
    case 'EACCES':
    case 'EPERM':
      return new ShadowVmError('NOT_ROOT', {
        ...detail,
        reason: 'the socket belongs to another user',
        remedy: 'Run this as the user who runs the daemon',
      });
    case 'ABORT_ERR':
      return new ShadowVmError('DAEMON_NOT_RUNNING', { ...detail, reason: 'the caller gave up waiting' });
    default:
      return endedEarly(attempted, error);
  }
}

/** What is thrown while an answer is read: ours as it is, the socket's as the end of the daemon that it is. */
function cutShort(error: unknown, attempted: string): ShadowVmError {
  return error instanceof ShadowVmError ? error : endedEarly(attempted, error);
}

function endedEarly(attempted: string, cause?: unknown): ShadowVmError {
  const why = cause instanceof Error ? ` (${cause.message})` : '';
  return new ShadowVmError('DAEMON_NOT_RUNNING', {
    attempted,
    reason: `the daemon hung up before its answer was complete${why}`,
    remedy: 'See in log/manager.log of the state directory why, and in `shadowvm vm ls` how things are now',
    cause,
  });
}
