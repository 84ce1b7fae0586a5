/** The history's thread: SQLite's fsync and the forecasts' arithmetic must not stand in the way of an epoch's pause. */
import fs from 'node:fs';
import os from 'node:os';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { toShadowVmError } from '../errors.js';
import { Archive } from './archive.js';
import type { Answer, Call, Setup, Told } from './service.js';

const NICE = 5;

serve(parentPort as MessagePort, workerData as Setup);

function serve(port: MessagePort, setup: Setup): void {
  yieldToGuests();
  let archive: Archive | null = null;
  const answerTo = (id: number, work: () => unknown) => {
    let answer: Answer;
    try {
      answer = { id, result: work() };
    } catch (error) {
      answer = { id, error: toShadowVmError(error, 'keep the usage history').toJSON() };
    }
    port.postMessage(answer);
    return 'error' in answer;
  };
  // The first answer tells whether there is a history at all.
  answerTo(0, () => {
    archive = new Archive({ ...setup, onOutlook: (vm, outlooks) => port.postMessage({ vm, outlooks } satisfies Told) });
  });
  port.on('message', ({ id, method, args }: Call) => {
    const failed = answerTo(id, () =>
      (archive?.[method] as ((...all: unknown[]) => unknown) | undefined)?.apply(archive, args),
    );
    // After a write that failed (a full disk), libsql's connection commits nothing any more: this thread is started anew.
    if (method === 'close' || (method === 'take' && failed && archive !== null)) port.close();
    else if (method === 'take') learnOn();
  });
  // Between the messages: new seconds and questions do not wait for what is learnt of the past.
  let learns = false;
  const learnOn = () => {
    if (learns || archive === null) return;
    learns = true;
    setImmediate(() => {
      learns = false;
      if (archive?.learn() === true) learnOn();
    });
  };
}

/** The manager runs ahead of all others, and this is the part of it that nobody waits for. */
function yieldToGuests(): void {
  try {
    const tid = Number(fs.readlinkSync('/proc/thread-self').split('/').at(-1));
    os.setPriority(tid, NICE);
  } catch {
    // Then it competes with them.
  }
}
