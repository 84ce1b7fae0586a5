/** `shadowvm forecast …`: what is expected of a VM; and how good such forecasts are, in this process without a daemon. */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { type Command, Option } from 'commander';
import { ShadowVmError } from '../errors.js';
import type { BacktestOptions, SeriesScore } from '../forecast/backtest.js';
import type { LimitScore } from '../forecast/score.js';
import type { ForecastView } from '../vm/usage-view.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

const EXAMPLES = [
  'forecast show web',
  'forecast backtest vm-1.csv vm-2.csv --column cpu_avg_pct',
  'forecast backtest *.csv --column value --safety 0.95,0.99 --dump out --json',
];

interface BacktestArguments {
  column: string;
  interval: number;
  train: number;
  season: number;
  safety: number[];
  dump?: string;
}

interface FileScore extends SeriesScore {
  file: string;
  remarks: string[];
}

export function addForecastVerbs(program: Command): void {
  const forecast = addGroup(program, 'forecast', 'how well the future is known', EXAMPLES);
  addVerb(
    forecast,
    'show <vm>',
    { summary: 'show what is expected of a VM', examples: ['forecast show web', 'forecast show web --json'] },
    (command) => command,
    async (session, args) => {
      const forecasts = await session.client.forecasts(parse.vmName(args[0]!));
      session.result(
        { forecasts },
        forecasts.length === 0
          ? 'nothing is expected yet: the first interval has not ended\n'
          : forecasts.map(forecastTable).join('\n'),
      );
    },
  );

  addVerb<BacktestArguments>(
    forecast,
    'backtest <file...>',
    {
      summary: 'replay usage traces and score the forecasts and limits',
      description:
        'Replays each CSV file sample by sample, as the manager would have seen it, and scores the part after --train.\n' +
        'MASE is the mean absolute error in units of that of the one-season naive forecast on the training part.\n' +
        'A column of times (t_seconds, timestamp, time, date) is used to find gaps and clock jumps where it has the interval.\n' +
        '--dump writes one CSV per file: t,y,f1,f12,limit@…; NaN where nothing was forecast yet.',
      examples: EXAMPLES,
    },
    (command) => {
      const count = (flag: string, what: string, fallback: number, min = 1) =>
        new Option(flag, what).default(fallback).argParser(parse.wholeNumber(what, min, 10_000_000));
      return command
        .requiredOption('--column <name>', 'the column with the usage')
        .addOption(count('--interval <seconds>', 'seconds between samples', 300))
        .addOption(count('--train <samples>', 'samples before the scored part', 4032))
        .addOption(count('--season <samples>', 'samples of one season, mostly a day', 288, 2))
        .addOption(
          new Option('--safety <shares>', 'shares of samples that limits shall cover')
            .default([0.9, 0.95, 0.98, 0.99], '0.9,0.95,0.98,0.99')
            .argParser(safetyShares),
        )
        .option('--dump <dir>', 'write what was forecast, one CSV per file');
    },
    async (session, files, options) => {
      refuseSameNames(files);
      if (options.season >= options.train)
        throw parse.usageError('--train is not longer than --season', 'Train on at least one season and a sample');
      if (options.dump !== undefined) await mkdir(options.dump, { recursive: true });
      const scores: FileScore[] = [];
      await session.withProgress(async (report) => {
        for (const [i, file] of files.entries()) {
          report({ message: `replaying ${path.basename(file)}`, done: i / files.length });
          scores.push(await backtestFile(file, options));
        }
      });
      const mean = meanScore(scores);
      session.result({ series: scores, mean }, scoreTable(scores, mean));
    },
  );
}

function forecastTable({ metric, unit, intervalS, samples, last, limit, ahead }: ForecastView): string {
  const amount = (value: number) => show.amount(value, unit);
  const held = limit === null ? '' : `, held limit ${amount(limit)}`;
  return (
    `${metric}: highest second in each ${show.span(intervalS * 1000)}, learnt from ${samples}, last ${amount(last)}${held}\n` +
    show.table(
      [
        { title: 'UNTIL', value: (row) => show.time(row.at) },
        { title: 'EXPECTED', align: 'right', value: (row) => amount(row.expected) },
        { title: '80% BELOW', align: 'right', value: (row) => amount(row.upper80) },
        { title: '95% BELOW', align: 'right', value: (row) => amount(row.upper95) },
        { title: '99% BELOW', align: 'right', value: (row) => amount(row.upper99) },
      ],
      ahead,
    )
  );
}

async function backtestFile(file: string, options: BacktestArguments): Promise<FileScore> {
  const { readSeries } = await import('../forecast/series-file.js');
  const { dumpCsv, replay, scoreReplay } = await import('../forecast/backtest.js');
  const { rows, remarks } = await readSeries(file, options.column, options.interval);
  if (rows.length <= options.train)
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'backtest the trace',
      subject: file,
      reason: `it has ${rows.length} samples, and ${options.train} are for training`,
      remedy: 'Use a longer trace or a smaller --train',
    });
  const settings: BacktestOptions = { ...options, intervalS: options.interval };
  const startedAt = performance.now();
  const replayed = replay(rows, settings);
  const usPerSample = ((performance.now() - startedAt) * 1000) / rows.length;
  if (options.dump !== undefined)
    await writeFile(path.join(options.dump, path.basename(file)), dumpCsv(replayed, options.safety));
  return { file, ...scoreReplay(replayed, settings), usPerSample, remarks };
}

function safetyShares(text: string): number[] {
  const shares = text.split(',').map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  if (shares.every((share) => share >= 0.5 && share < 1)) return shares;
  throw parse.usageError(
    `${JSON.stringify(text)} is no list of shares`,
    'Write shares from 0.5 to below 1, such as 0.9,0.99',
  );
}

/** Dumps are named after their files; two of one name would overwrite each other. */
function refuseSameNames(files: string[]): void {
  const names = files.map((file) => path.basename(file));
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined)
    throw parse.usageError(`two files are named ${twice}`, 'Give them names of their own, or replay them one by one');
}

/** Means over the series: each counts the same, however large its numbers. */
function meanScore(scores: FileScore[]): Pick<SeriesScore, 'mase' | 'limits'> {
  const mean = (pick: (score: FileScore) => number) =>
    scores.reduce((sum, score) => sum + pick(score), 0) / scores.length;
  const safeties = Object.keys(scores[0]!.limits);
  const limit = (safety: string): LimitScore => ({
    coverage: mean((score) => score.limits[safety]!.coverage),
    breachedHours: mean((score) => score.limits[safety]!.breachedHours),
    unusedShare: mean((score) => score.limits[safety]!.unusedShare),
    changesPerDay: mean((score) => score.limits[safety]!.changesPerDay),
  });
  return {
    mase: { '1': mean((score) => score.mase['1']), '12': mean((score) => score.mase['12']) },
    limits: Object.fromEntries(safeties.map((safety) => [safety, limit(safety)])),
  };
}

function scoreTable(scores: FileScore[], mean: Pick<SeriesScore, 'mase' | 'limits'>): string {
  const safety = Object.keys(mean.limits).at(-1)!;
  const rows = [...scores.map((score) => ({ ...score, file: path.basename(score.file) })), { ...mean, file: 'mean' }];
  const percent = (share: number) => `${(100 * share).toFixed(1)}%`;
  const perSafety = Object.entries(mean.limits).map(([asked, limit]) => ({ asked, ...limit }));
  return (
    show.table(
      [
        { title: 'SERIES', value: (row) => row.file },
        { title: 'MASE 1', align: 'right', value: (row) => row.mase['1'].toFixed(3) },
        { title: 'MASE 12', align: 'right', value: (row) => row.mase['12'].toFixed(3) },
        { title: `COVERED @${safety}`, align: 'right', value: (row) => percent(row.limits[safety]!.coverage) },
        { title: 'UNUSED', align: 'right', value: (row) => percent(row.limits[safety]!.unusedShare) },
        { title: 'CHANGES/DAY', align: 'right', value: (row) => row.limits[safety]!.changesPerDay.toFixed(2) },
      ],
      rows,
    ) +
    '\n' +
    show.table(
      [
        { title: 'SAFETY', value: (row) => row.asked },
        { title: 'COVERED', align: 'right', value: (row) => percent(row.coverage) },
        { title: 'BREACHED HOURS', align: 'right', value: (row) => percent(row.breachedHours) },
        { title: 'UNUSED', align: 'right', value: (row) => percent(row.unusedShare) },
        { title: 'CHANGES/DAY', align: 'right', value: (row) => row.changesPerDay.toFixed(2) },
      ],
      perSafety,
    )
  );
}
