/** The routes about usage: what they ask of the manager. */
import type { HistoryQuery, UsagePort } from '../manager/usage-port.js';
import { routes } from './routes.js';
import type { Serve } from './server.js';

const FORTNIGHT_MS = 14 * 86_400_000;

export function serveUsage(serve: Serve, usage: UsagePort): void {
  serve(routes.history, ({ name, query }) => usage.history(name, { ...period(query), pointsMax: query.points }));
  serve(routes.analysis, ({ name, query }) => usage.analysis(name, period(query)));
  serve(routes.forecasts, ({ name }) => ({ forecasts: usage.forecasts(name) }));
  serve(routes.thresholds, ({ name }) => ({ thresholds: usage.thresholds(name) }));
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
