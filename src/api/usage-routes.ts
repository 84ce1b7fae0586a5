/** The routes about usage: what they ask of the manager. */
import type { z } from 'zod';
import type { AllocationChange, HistoryQuery, UsagePort } from '../manager/usage-port.js';
import { routes } from './routes.js';
import type { Serve } from './server.js';
import type { allocationBodySchema } from './usage-schemas.js';

const FORTNIGHT_MS = 14 * 86_400_000;

export function serveUsage(serve: Serve, usage: UsagePort): void {
  serve(routes.history, ({ name, query }) => usage.history(name, { ...period(query), pointsMax: query.points }));
  serve(routes.analysis, ({ name, query }) => usage.analysis(name, period(query)));
  serve(routes.forecasts, ({ name }) => ({ forecasts: usage.forecasts(name) }));
  serve(routes.thresholds, ({ name }) => ({ thresholds: usage.thresholds(name) }));
  serve(routes.capacity, () => usage.capacity());
  serve(routes.allocations, () => ({ allocations: usage.allocations() }));
  serve(routes.allocate, ({ name, body }) => usage.allocate(name, said(body)));
}

/** Without what was not said. */
function said(body: z.output<typeof allocationBodySchema>): AllocationChange {
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));
}

function period(query: {
  metric: HistoryQuery['metric'];
  since?: string | undefined;
  until?: string | undefined;
}): Omit<HistoryQuery, 'pointsMax'> {
  const untilMs = query.until === undefined ? Date.now() : Date.parse(query.until);
  const sinceMs = query.since === undefined ? untilMs - FORTNIGHT_MS : Date.parse(query.since);
  return { metric: query.metric, sinceMs, untilMs };
}
