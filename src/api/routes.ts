/**
 * Every route of the API once, for server and client both: what one sends is what the other reads, by type and at run
 * time. The two that are not request and answer, following events and the console, are at the end.
 */
import { z } from 'zod';
import * as d from './disk-schemas.js';
import * as s from './schemas.js';
import * as u from './usage-schemas.js';

export interface Route {
  method: 'GET' | 'POST' | 'DELETE';
  /** `:name` stands for a VM, below /v1/networks for a network. */
  path: `/v1/${string}`;
  /** Said in errors: "stop the VM". */
  attempted: string;
  query: z.ZodType;
  body: z.ZodType;
  response: z.ZodType;
  status: 200 | 201;
  /** Changes something: refused while the daemon stops, and limited in number. */
  changes: boolean;
  /** Takes long enough for NDJSON of its steps to be offered. */
  long: boolean;
}

export const noBody = z.undefined();
const noQuery = z.strictObject({});

function query<R extends z.ZodType, Q extends z.ZodType = typeof noQuery>(
  path: Route['path'],
  attempted: string,
  response: R,
  querySchema?: Q,
) {
  const query = (querySchema ?? noQuery) as Q;
  const rest = { body: noBody, status: 200, changes: false, long: false } as const;
  return { method: 'GET', path, attempted, query, response, ...rest } as const;
}

function change<
  M extends 'POST' | 'DELETE',
  R extends z.ZodType,
  B extends z.ZodType = typeof noBody,
  Q extends z.ZodType = typeof noQuery,
>(
  method: M,
  path: Route['path'],
  attempted: string,
  response: R,
  more: { body?: B; query?: Q; status?: 201; long?: true } = {},
) {
  return {
    method,
    path,
    attempted,
    response,
    query: (more.query ?? noQuery) as Q,
    body: (more.body ?? noBody) as B,
    status: more.status ?? 200,
    changes: true,
    long: more.long ?? false,
  } as const;
}

export const routes = {
  version: query('/v1/version', 'ask for the version', s.versionResponseSchema),
  openApi: query('/v1/openapi.json', 'describe the API', s.openApiResponseSchema),
  health: query('/v1/health', 'ask for the health', s.healthResponseSchema),

  listVms: query('/v1/vms', 'list the VMs', s.vmsResponseSchema),
  showVm: query('/v1/vms/:name', 'show the VM', s.vmViewSchema),
  /** A caller that hangs up before the VM runs takes it back: nobody is left who knows that it is there. */
  runVm: change('POST', '/v1/vms', 'run the VM', s.vmViewSchema, { body: s.runVmBodySchema, status: 201, long: true }),
  startVm: change('POST', '/v1/vms/:name/start', 'start the VM', s.vmViewSchema, {
    body: s.startVmBodySchema,
    long: true,
  }),
  cloneVm: change('POST', '/v1/vms/:name/clone', 'clone the VM', s.vmViewSchema, {
    body: s.cloneVmBodySchema,
    status: 201,
    long: true,
  }),
  stopVm: change('POST', '/v1/vms/:name/stop', 'stop the VM', s.vmViewSchema, { body: s.stopVmBodySchema, long: true }),
  killVm: change('POST', '/v1/vms/:name/kill', 'kill the VM', s.vmViewSchema),
  removeVm: change('DELETE', '/v1/vms/:name', 'remove the VM', s.removedResponseSchema, {
    query: s.removeVmQuerySchema,
  }),
  readLog: query('/v1/vms/:name/logs', 'read the log of the VM', s.logsResponseSchema, s.logsQuerySchema),
  injectFault: change('POST', '/v1/vms/:name/fault', 'inject a fault into the VM', s.faultResponseSchema, {
    body: s.faultBodySchema,
  }),
  guestExec: change('POST', '/v1/vms/:name/exec', 'run a command in the VM', s.execResponseSchema, {
    body: s.execBodySchema,
  }),

  listShadows: query('/v1/shadows', 'list the shadows', s.shadowsResponseSchema),
  createShadow: change('POST', '/v1/vms/:name/shadow', 'create the shadow', s.shadowViewSchema, {
    status: 201,
    long: true,
  }),
  removeShadow: change('DELETE', '/v1/vms/:name/shadow', 'remove the shadow', s.removedResponseSchema),
  promoteShadow: change('POST', '/v1/vms/:name/promote', 'promote the shadow', s.promotionViewSchema, {
    body: s.promoteBodySchema,
  }),
  listEpochs: query('/v1/vms/:name/shadow/epochs', 'list the epochs', s.epochsResponseSchema),
  changeMode: change('POST', '/v1/vms/:name/mode', 'change the mode', s.vmViewSchema, { body: s.modeBodySchema }),
  changeStandby: change('POST', '/v1/vms/:name/shadow/standby', 'change the standby', s.shadowViewSchema, {
    body: s.standbyBodySchema,
  }),
  verifyShadow: change('POST', '/v1/vms/:name/shadow/verify', 'verify the shadow', s.verifyViewSchema, { long: true }),

  listSnapshots: query('/v1/snapshots', 'list the snapshots', s.snapshotsResponseSchema),
  importSnapshot: change('POST', '/v1/snapshots', 'import the snapshot', s.snapshotViewSchema, {
    body: s.importBodySchema,
    status: 201,
    long: true,
  }),
  exportSnapshot: change('POST', '/v1/vms/:name/snapshot/export', 'export the snapshot', s.exportViewSchema, {
    body: s.exportBodySchema,
    long: true,
  }),
  verifySnapshot: change('POST', '/v1/vms/:name/snapshot/verify', 'verify the snapshot', s.verifyViewSchema, {
    long: true,
  }),

  listDisks: query('/v1/disks', 'list the disks', d.disksResponseSchema),
  diskHeat: query('/v1/vms/:name/disks/heat', 'show what is used of the disks', d.diskHeatResponseSchema),
  resizeDisk: change('POST', '/v1/vms/:name/disks/resize', 'resize the disk', d.diskViewSchema, {
    body: d.resizeDiskBodySchema,
    long: true,
  }),
  exportDisk: change('POST', '/v1/vms/:name/disks/export', 'export the disk', d.diskExportViewSchema, {
    body: d.exportDiskBodySchema,
    long: true,
  }),

  history: query('/v1/vms/:name/history', 'show the history of the VM', u.historyViewSchema, u.historyQuerySchema),
  analysis: query('/v1/vms/:name/analysis', 'analyze the VM', u.analysisViewSchema, u.analysisQuerySchema),
  forecasts: query('/v1/vms/:name/forecasts', 'show the forecasts of the VM', u.forecastsResponseSchema),
  thresholds: query('/v1/vms/:name/thresholds', 'show the thresholds of the VM', u.thresholdsResponseSchema),
  capacity: query('/v1/capacity', 'show the capacity of the host', u.capacityViewSchema),
  allocations: query('/v1/allocations', 'show what the VMs are given', u.allocationsResponseSchema),
  allocate: change('POST', '/v1/vms/:name/allocation', 'change what the VM is given', u.allocationViewSchema, {
    body: u.allocationBodySchema,
  }),

  listNetworks: query('/v1/networks', 'list the networks', s.networksResponseSchema),
  showNetwork: query('/v1/networks/:name', 'show the network', s.networkViewSchema),
  createNetwork: change('POST', '/v1/networks', 'create the network', s.networkViewSchema, {
    body: s.createNetworkBodySchema,
    status: 201,
  }),
  removeNetwork: change('DELETE', '/v1/networks/:name', 'remove the network', s.removedResponseSchema),

  /** With `follow=true` the answer is NDJSON without end, one event a line. */
  listEvents: query('/v1/events', 'list the events', s.eventsResponseSchema, s.eventsQuerySchema),
} satisfies Record<string, Route>;

/** GET with `Upgrade: shadowvm-console`. */
export const CONSOLE_PATH = '/v1/vms/:name/console';
