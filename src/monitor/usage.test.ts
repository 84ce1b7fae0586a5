import { describe, expect, it } from 'vitest';
import { parseCpuMs, usageBetween } from './usage.js';

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

  it('reads the CPU time of a process whose name has blanks and parentheses', () => {
    const rest = 'S 1 1 1 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0 12345';
    expect(parseCpuMs(`42 (a) b ( c) ${rest}`)).toBe(2000);
    expect(parseCpuMs('')).toBeNull();
  });
});
