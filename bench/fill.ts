/** Fills guest RAM with bytes that are no zeros, so that no page is a hole. */

import { randomBytes } from 'node:crypto';
import { writeSync } from 'node:fs';
import type { GuestRam } from '../src/native/memory.js';
import { MIB } from '../src/vm/spec.js';

export function fillRam(ram: GuestRam): void {
  const block = randomBytes(4 * MIB);
  for (let at = 0; at < ram.bytes; at += block.length)
    writeSync(ram.fd, block, 0, Math.min(block.length, ram.bytes - at), at);
}
