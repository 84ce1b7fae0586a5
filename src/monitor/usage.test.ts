import { describe, expect, it } from 'vitest';
import { usageBetween } from './usage.js';

const at = (atMs: number, cpuMs: number, networkBytes: number) => ({
  atMs,
  cpuMs,
  networkBytes,
  memTotalKiB: 1000,
  memAvailableKiB: 250,
});

describe('usage', () => {
  it('relates CPU time to the VM’s vCPUs, and memory to what the guest can still give', () => {
    expect(usageBetween(at(0, 0, 0), at(500, 500, 1000), 2)).toEqual({
      cpuPercent: 50,
      memoryPercent: 75,
      networkBytesPerSecond: 2000,
    });
  });

  it('says nothing where time stood still or a counter went back', () => {
    expect(usageBetween(at(5, 0, 0), at(5, 10, 0), 1)).toBeNull();
    expect(usageBetween(at(0, 100, 0), at(500, 10, 0), 1)).toBeNull();
    expect(usageBetween(at(0, 0, 100), at(500, 10, 0), 1)).toBeNull();
  });
});
