/** How fast pages are scanned and checksummed, against a plain memcpy of the same bytes. */
import { GuestRam, measureScan } from '../src/native/memory.js';
import { MIB } from '../src/vm/spec.js';
import { fillRam } from './fill.js';
import { p50, round } from './statistics.js';

export interface ScanResult {
  checksumGiBPerS: number;
  memcpyGiBPerS: number;
  /** checksum ÷ memcpy, 1 is equal. */
  ratio: number;
}

export function benchScan(ramMiB: number, rounds: number): ScanResult {
  const ram = new GuestRam('shadowvm-bench', ramMiB * MIB);
  try {
    fillRam(ram);
    const results = Array.from({ length: rounds }, () => measureScan(ram));
    const gib = ramMiB / 1024;
    const checksum = p50(results.map((r) => gib / (r.checksumMs / 1000)));
    const memcpy = p50(results.map((r) => gib / (r.copyMs / 1000)));
    return {
      checksumGiBPerS: checksum,
      memcpyGiBPerS: memcpy,
      ratio: round(p50(results.map((r) => r.copyMs / r.checksumMs))),
    };
  } finally {
    ram.close();
  }
}
