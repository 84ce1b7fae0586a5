/** Reads a stream of text line by line. */
import type { Readable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import { ShadowVmError } from '../errors.js';

/** The lines without their line feeds. A last line without one is given too. @throws INTERNAL when a line has no end */
export async function* readLines(stream: Readable, lineCharsMax: number): AsyncGenerator<string> {
  const decoder = new StringDecoder('utf8');
  let rest = '';
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    rest += decoder.write(chunk);
    let start = 0;
    for (let end = rest.indexOf('\n'); end !== -1; end = rest.indexOf('\n', start)) {
      yield rest.slice(start, end);
      start = end + 1;
    }
    rest = rest.slice(start);
    if (rest.length > lineCharsMax)
      throw new ShadowVmError('INTERNAL', {
        attempted: 'read the answer of the daemon',
        reason: `a line of it is longer than ${lineCharsMax} characters`,
        remedy: 'Check that client and daemon are of the same version',
      });
  }
  rest += decoder.end();
  if (rest !== '') yield rest;
}
