/** `shadowvm history`, `shadowvm analyze` */
import { type Command, Option } from 'commander';
import { METRICS, type Metric } from '../history/metrics.js';
import type { AnalysisView, HistoryView } from '../vm/usage-view.js';
import { chart } from './chart.js';
import * as parse from './parse.js';
import { addVerb } from './session.js';
import * as show from './table.js';

const CHART_COLUMNS_MAX = 120;
const CHART_ROWS = 8;
/** Scale and frame beside the drawing. */
const CHART_MARGIN = 16;
const HOUR_MS = 3_600_000;

interface PeriodOptions {
  metric: Metric;
  since?: string;
  until?: string;
}

export function addPeriodOptions(command: Command, since: string): Command {
  return command
    .addOption(new Option('--metric <name>', 'what was measured').choices([...METRICS]).default('cpu'))
    .addOption(
      new Option('--since <time>', `ago, or a moment; default: ${since}`).argParser((text) => parse.moment(text)),
    )
    .addOption(new Option('--until <time>', 'ago, or a moment; default: now').argParser((text) => parse.moment(text)));
}

export function addHistoryVerbs(program: Command): void {
  addVerb<PeriodOptions & { csv?: boolean }>(
    program,
    'history <vm>',
    {
      summary: 'show what a VM used',
      description:
        'Shows what a VM used: each second of the last hour, minutes of the last week, 5 minutes of the last 90 days. CPU\n' +
        'is in percent of one host CPU. Columns are means, dots what was higher.',
      examples: ['history web', 'history web --since 2h --metric memory', 'history web --since 24h --csv >web.csv'],
    },
    (command) => addPeriodOptions(command, '1h').option('--csv', 'all points as lines: at,mean,max'),
    async (session, args, options) => {
      if (options.csv === true && session.json)
        throw parse.usageError('--csv and --json are two forms of one answer', 'Leave one of them out');
      const untilMs = options.until === undefined ? Date.now() : Date.parse(options.until);
      const sinceMs = options.since === undefined ? untilMs - HOUR_MS : Date.parse(options.since);
      requireOrder(sinceMs, untilMs);
      const view = await session.client.history(parse.vmName(args[0]!), {
        metric: options.metric,
        since: new Date(sinceMs).toISOString(),
        until: new Date(untilMs).toISOString(),
      });
      session.result(view, options.csv === true ? csv(view) : drawn(view, sinceMs, untilMs));
    },
  );

  addVerb<PeriodOptions>(
    program,
    'analyze <vm>',
    {
      summary: 'tell what kind of load a VM has',
      description:
        'Tells what kind of load a VM has: idle, steady, periodic or bursty; what it repeats after, whether it grows, and\n' +
        'when its level changed for good.',
      examples: ['analyze web', 'analyze web --metric memory --since 24h --json'],
    },
    (command) => addPeriodOptions(command, 'a fortnight ago'),
    async (session, args, { metric, since, until }) => {
      if (since !== undefined) requireOrder(Date.parse(since), until === undefined ? Date.now() : Date.parse(until));
      const view = await session.client.analysis(parse.vmName(args[0]!), { metric, since, until });
      session.result(view, analysisText(view));
    },
  );
}

function requireOrder(sinceMs: number, untilMs: number): void {
  if (sinceMs < untilMs) return;
  throw parse.usageError(
    '--since is not before --until',
    'Write --since 2h --until 1h for the hour before the last one',
  );
}

function csv({ points }: HistoryView): string {
  return ['at,mean,max', ...points.map(({ at, mean, max }) => `${at},${mean},${max}`)].join('\n') + '\n';
}

function drawn({ vm, metric, unit, stepS, points }: HistoryView, sinceMs: number, untilMs: number): string {
  if (points.length === 0) return `nothing is known of ${metric} of ${vm} in that time\n`;
  const amount = (value: number) => show.amount(value, unit);
  const width = (process.stdout.columns ?? 80) - CHART_MARGIN;
  const fromMs = Math.max(sinceMs, Date.parse(points[0]!.at));
  const drawing = chart(
    points.map(({ at, mean, max }) => ({ atMs: Date.parse(at), mean, max })),
    {
      fromMs,
      toMs: Math.max(untilMs, fromMs + 1000),
      columns: Math.max(10, Math.min(CHART_COLUMNS_MAX, width)),
      rows: CHART_ROWS,
      label: amount,
    },
  );
  const mean = points.reduce((sum, point) => sum + point.mean, 0) / points.length;
  const highest = Math.max(...points.map((point) => point.max));
  return (
    `${metric} of ${vm}, ${show.time(new Date(fromMs).toISOString())} to ${show.time(new Date(untilMs).toISOString())}\n` +
    drawing +
    `mean ${amount(mean)}, highest ${amount(highest)}, last ${amount(points.at(-1)!.mean)}; ${points.length} points of ${stepS} s\n`
  );
}

function analysisText(view: AnalysisView): string {
  const amount = (value: number | null) => show.amount(value, view.unit);
  return show.details([
    ['in words', view.words],
    ['class', view.class],
    ['looked at', `${view.samples} samples of ${view.intervalS} s of ${view.metric}, since ${show.time(view.since)}`],
    ['median', amount(view.median)],
    ['99 % below', amount(view.p99)],
    ['mean', amount(view.mean)],
    ['burstiness', view.burstiness === null ? null : `${view.burstiness.toFixed(1)} (99 % over median)`],
    [
      'periods',
      view.periods
        .map(({ seconds, strength }) => `${show.span(seconds * 1000)} (${Math.round(100 * strength)} % alike)`)
        .join(', ') || 'none',
    ],
    ['trend', `${view.trendPerDay < 0 ? '−' : '+'}${amount(Math.abs(view.trendPerDay))} a day`],
    ...view.changePoints.map(({ at, before, after }): [string, string] => [
      'change',
      `${show.time(at)}: from ${amount(before)} to ${amount(after)}`,
    ]),
  ]);
}
