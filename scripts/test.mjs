// Runs vitest, with any arguments given, and ends with one plain line that tools can count: `N passed, N failed`,
// and `, N skipped` when there are any.
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

/**
 * @typedef {{ numPassedTests: number, numFailedTests: number, numPendingTests: number, numTodoTests: number,
 *   testResults: { status: string, assertionResults: unknown[] }[] }} Report vitest's JSON report, as far as used here
 */

/**
 * @param {Report} report
 * @returns {string}
 */
export function closingLine(report) {
  // A file that could not even be loaded has no tests to fail: it counts as one.
  const broken = report.testResults.filter((file) => file.status === 'failed' && file.assertionResults.length === 0);
  const failed = report.numFailedTests + broken.length;
  const skipped = report.numPendingTests + report.numTodoTests;
  return `${report.numPassedTests} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`;
}

/** @param {string[]} args */
function main(args) {
  const root = fileURLToPath(new URL('..', import.meta.url));
  const reportFile = join(root, 'out/test.json');
  mkdirSync(join(root, 'out'), { recursive: true });
  // Of an earlier run: a crash of vitest must not be told with its numbers.
  rmSync(reportFile, { force: true });
  const vitest = join(root, 'node_modules/vitest/vitest.mjs');
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${reportFile}`];
  const child = spawn(process.execPath, [vitest, 'run', ...reporters, ...args], { cwd: root, stdio: 'inherit' });
  // Ctrl-C reaches vitest by itself, which then ends as it does and writes no report.
  process.on('SIGINT', () => {});
  process.on('SIGTERM', () => child.kill('SIGTERM'));
  child.on('exit', (code) => {
    process.exitCode = code ?? 1;
    try {
      process.stdout.write(`\n${closingLine(JSON.parse(readFileSync(reportFile, 'utf8')))}\n`);
    } catch (error) {
      process.stderr.write(`test: vitest left no report: ${/** @type {Error} */ (error).message}\n`);
      process.exitCode ||= 1;
    }
  });
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href)
  main(process.argv.slice(2));
