/**
 * Trains the trees that ship in trained.ts: `node dist/src/forecast/train/main.js OUT.ts COLUMN FILE.csv…`. The traces
 * are the 40 development VMs of the Azure Public Dataset (CC-BY 4.0, Cortez et al., SOSP 2017) beside synthetic loads.
 * Deterministic: the same traces give the same file. Takes some minutes on one core.
 */
import { writeFileSync } from 'node:fs';
import { readSeries } from '../series-file.js';
import { syntheticTraces, type Trace, trainAll } from './rows.js';

const INTERVAL_S = 300;

async function main([out, column, ...files]: string[]): Promise<void> {
  if (out === undefined || column === undefined || files.length === 0)
    throw new Error('usage: main.js OUT.ts COLUMN FILE.csv…');
  const traces: Trace[] = [];
  for (const file of files) {
    const { rows } = await readSeries(file, column, INTERVAL_S);
    traces.push({ values: rows.map((row) => row.value), weight: 1 });
  }
  const packed = trainAll([...traces, ...syntheticTraces(0)], (line) => process.stderr.write(`${line}\n`));
  const entries = [...packed].map(([steps, text]) => `  [${steps}, '${text}'],\n`);
  writeFileSync(
    out,
    '/** Written by train/main.ts: the trees of each horizon. Trained on traces of the Azure Public Dataset (CC-BY 4.0). */\n' +
      `export const TRAINED: readonly (readonly [number, string])[] = [\n${entries.join('')}];\n`,
  );
}

await main(process.argv.slice(2));
