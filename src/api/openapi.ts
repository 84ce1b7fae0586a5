/** The API as OpenAPI 3.1, made of the table of routes: what is in it is what the server checks. */
import { z } from 'zod';
import { networkViewSchema } from '../vm/network.js';
import { vmSpecSchema } from '../vm/spec.js';
import {
  eventSchema,
  promotionViewSchema,
  shadowViewSchema,
  snapshotViewSchema,
  verifyViewSchema,
  vmViewSchema,
} from '../vm/view.js';
import { CONSOLE_PATH, noBody, type Route, routes } from './routes.js';
import { CONSOLE_PROTOCOL, errorResponseSchema, NDJSON, nameParamsSchema, operationLineSchema } from './schemas.js';

type Json = Record<string, unknown>;

/** What several routes answer with; everything else is written where it is used. */
const shared = z.registry<{ id: string }>();
shared.add(vmSpecSchema, { id: 'VmSpec' });
shared.add(vmViewSchema, { id: 'Vm' });
shared.add(networkViewSchema, { id: 'Network' });
shared.add(shadowViewSchema, { id: 'Shadow' });
shared.add(promotionViewSchema, { id: 'Promotion' });
shared.add(snapshotViewSchema, { id: 'Snapshot' });
shared.add(verifyViewSchema, { id: 'Verification' });
shared.add(eventSchema, { id: 'Event' });
shared.add(errorResponseSchema, { id: 'Error' });
shared.add(operationLineSchema, { id: 'OperationLine' });

export function openApi(version: string): Json {
  const components: Json = {};
  const convert = (schema: z.ZodType, io: 'input' | 'output'): Json => toJson(schema, io, components);
  const paths: Record<string, Json> = {};
  for (const [operationId, route] of Object.entries(routes) as [string, Route][]) {
    const path = pathOf(route.path);
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: { operationId, ...operation(route, convert) } };
  }
  paths[pathOf(CONSOLE_PATH)] = {
    get: {
      operationId: 'openConsole',
      summary: 'open the console',
      description: `With "Upgrade: ${CONSOLE_PROTOCOL}". After 101, both directions are raw bytes of the serial line.`,
      parameters: parameters(CONSOLE_PATH, undefined, convert),
      responses: { 101: { description: 'connected' }, default: failure(convert) },
    },
  };
  return {
    openapi: '3.1.0',
    info: {
      title: 'ShadowVM Manager',
      version,
      description: 'HTTP over the Unix socket shadowvm.sock of the state directory. Fields and routes are only added.',
    },
    servers: [{ url: '/' }],
    paths,
    components: { schemas: components },
  };
}

type Convert = (schema: z.ZodType, io: 'input' | 'output') => Json;

function operation(route: Route, convert: Convert): Json {
  const answer: Json = { 'application/json': { schema: convert(route.response, 'output') } };
  if (route.long) answer[NDJSON] = { schema: convert(operationLineSchema, 'output') };
  if (route.path === routes.listEvents.path) answer[NDJSON] = { schema: convert(eventSchema, 'output') };
  return {
    summary: route.attempted,
    parameters: parameters(route.path, route.query, convert),
    ...(route.body === noBody
      ? {}
      : {
          requestBody: {
            // All fields of a body may have defaults, and then it may be left out.
            required: !route.body.safeParse({}).success,
            content: { 'application/json': { schema: convert(route.body, 'input') } },
          },
        }),
    responses: { [route.status]: { description: 'done', content: answer }, default: failure(convert) },
  };
}

function failure(convert: Convert): Json {
  return {
    description: 'could not be done; the error says why and what to do',
    content: { 'application/json': { schema: convert(errorResponseSchema, 'output') } },
  };
}

function parameters(path: string, query: z.ZodType | undefined, convert: Convert): Json[] {
  const name = convert(nameParamsSchema.shape.name, 'input');
  const inPath = path.includes(':name') ? [{ name: 'name', in: 'path', required: true, schema: name }] : [];
  if (query === undefined) return inPath;
  const { properties = {} } = convert(query, 'input') as { properties?: Record<string, Json> };
  return [...inPath, ...Object.entries(properties).map(([name, schema]) => ({ name, in: 'query', schema }))];
}

function pathOf(path: string): string {
  return path.replace(':name', '{name}');
}

/** What is shared goes into `components` and is referred to there. */
function toJson(schema: z.ZodType, io: 'input' | 'output', components: Json): Json {
  const json = z.toJSONSchema(schema, {
    io,
    metadata: shared,
    // Answers get more fields with time, and who reads them must not mind.
    override: ({ jsonSchema }) => {
      if (io === 'output') delete jsonSchema.additionalProperties;
    },
  });
  const text = JSON.stringify(json).replaceAll('"#/$defs/', '"#/components/schemas/');
  const { $schema: _, $defs, id, ...rest } = JSON.parse(text) as Json & { $defs?: Json };
  Object.assign(components, $defs);
  if (typeof id !== 'string') return rest;
  components[id] = rest;
  return { $ref: `#/components/schemas/${id}` };
}
