/** The steps of what takes long, on stderr: one line rewritten on a terminal, one line a step elsewhere. */
import type { OnProgress, Progress } from '../vm/view.js';
import { printable } from './table.js';

export interface ProgressLine {
  report: OnProgress;
  /** Takes the line away, so that the result or the error begins on a clean one. Also when nothing was reported. */
  end: () => void;
}

type Output = Pick<NodeJS.WriteStream, 'write'> & { isTTY?: boolean; columns?: number };

/** What is over sooner needs no progress; a line that flashes up only unsettles. */
const SILENT_MS = 400;
const REDRAW_MS = 1000;

export function progressLine(stderr: Output, json: boolean): ProgressLine {
  if (json) return { report: (step) => void stderr.write(JSON.stringify({ progress: step }) + '\n'), end: () => {} };
  return stderr.isTTY === true ? rewrittenLine(stderr) : lineByLine(stderr);
}

function lineByLine(stderr: Output): ProgressLine {
  let last = '';
  return {
    report: (step) => {
      // A step that reports its percents would fill a log file; each step is told once.
      if (step.message === last) return;
      last = step.message;
      stderr.write(`${printable(step.message)}\n`);
    },
    end: () => {},
  };
}

function rewrittenLine(stderr: Output): ProgressLine {
  const startMs = performance.now();
  let step: Progress | undefined;
  let shown = false;
  const draw = () => {
    const elapsedMs = performance.now() - startMs;
    if (step === undefined || elapsedMs < SILENT_MS) return;
    const done = step.done === undefined ? '' : `${String(Math.floor(step.done * 100)).padStart(3)}%  `;
    const text = `${done}${printable(step.message)} (${Math.floor(elapsedMs / 1000)} s)`;
    stderr.write(`\r\u001b[K${text.slice(0, (stderr.columns ?? 80) - 1)}`);
    shown = true;
  };
  // The seconds go on counting while a step says nothing: that is how waiting is told from hanging.
  const timer = setInterval(draw, REDRAW_MS);
  const first = setTimeout(draw, SILENT_MS + 1);
  timer.unref();
  first.unref();
  return {
    report: (next) => {
      step = next;
      draw();
    },
    end: () => {
      clearInterval(timer);
      clearTimeout(first);
      if (shown) stderr.write('\r\u001b[K');
      shown = false;
      step = undefined;
    },
  };
}
