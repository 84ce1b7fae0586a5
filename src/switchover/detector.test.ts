import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DETECTOR_LIMITS, judge, type Observation } from './detector.js';

const calm: Observation = {
  nowMs: 10_000,
  processDied: false,
  monitorEnded: false,
  unannouncedReset: false,
  lastBeatMs: 9_950,
  qmpUnansweredSinceMs: null,
  processState: 'S',
  excusedMs: 0,
  probeFailure: null,
};
const silentFor = (ms: number, more: Partial<Observation> = {}): Observation => ({
  ...calm,
  lastBeatMs: calm.nowMs - ms,
  ...more,
});

describe('failure detector', () => {
  it('believes the kernel at once', () => {
    expect(judge({ ...calm, processDied: true })).toMatchObject({ kind: 'dead', cause: 'process-died' });
  });

  it('takes a reset that was not announced for a panic', () => {
    expect(judge({ ...calm, unannouncedReset: true })).toMatchObject({ kind: 'dead', cause: 'guest-reset' });
  });

  it('finds a stopped process within half a second of silence', () => {
    expect(judge(silentFor(250, { processState: 'T' }))).toMatchObject({ kind: 'dead', cause: 'process-stopped' });
  });

  it('takes silence of guest and monitor for a hang, of one alone only for a suspicion', () => {
    const asked = { qmpUnansweredSinceMs: calm.nowMs - 200 };
    expect(judge(silentFor(450, asked))).toMatchObject({ kind: 'dead', cause: 'qemu-hung' });
    expect(judge(silentFor(450))).toMatchObject({ kind: 'suspect' });
    expect(judge({ ...calm, ...asked })).toEqual({ kind: 'alive' });
  });

  it('takes long silence of the guest alone for a hung kernel', () => {
    expect(judge(silentFor(DETECTOR_LIMITS.guestHungAfterMs + 1))).toMatchObject({ kind: 'dead', cause: 'guest-hung' });
  });

  it('believes the probes of a guest that beats, and rather what it sees itself of one that does not', () => {
    const probeFailure = 'the probe tcp:80 failed 3 times in a row';
    expect(judge({ ...calm, probeFailure })).toEqual({ kind: 'dead', cause: 'probe-failed', evidence: probeFailure });
    expect(judge({ ...calm, lastBeatMs: null, probeFailure })).toMatchObject({ cause: 'probe-failed' });
    expect(judge(silentFor(250, { probeFailure }))).toMatchObject({ cause: 'probe-failed' });
    expect(judge(silentFor(250, { probeFailure, processState: 'T' }))).toMatchObject({ cause: 'process-stopped' });
    expect(judge({ ...calm, probeFailure, processDied: true })).toMatchObject({ cause: 'process-died' });
  });

  it('concludes nothing from the silence of a guest that never spoke', () => {
    expect(judge({ ...calm, lastBeatMs: null, processState: 'T' })).toEqual({ kind: 'alive' });
  });

  it('never takes explained silence for death, whatever else is seen', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 100_000 }),
        fc.integer({ min: 0, max: DETECTOR_LIMITS.suspectAfterMs - 1 }),
        fc.option(fc.integer({ min: 0, max: 10_000 })),
        fc.constantFrom('R', 'S', 'D', 'T', null),
        (excusedMs, unexplainedMs, qmpUnansweredSinceMs, processState) => {
          const seen = { ...calm, nowMs: 200_000, lastBeatMs: 200_000 - excusedMs - unexplainedMs };
          expect(judge({ ...seen, excusedMs, qmpUnansweredSinceMs, processState }).kind).toBe('alive');
        },
      ),
    );
  });
});
