/** Makes the probes of a VM when they are due, and keeps what came of them. The decisions are in probe.ts. */
import { formatProbe, type Probe, type ProbeView } from '../vm/probe.js';
import { initialProbeState, type ProbeEvent, type ProbeHealth, type ProbeState, stepProbe } from './probe.js';
import type { ProbeOutcome } from './probe-call.js';

export interface ProberOptions {
  probes: readonly Probe[];
  call: (check: Probe['check'], signal: AbortSignal) => Promise<ProbeOutcome>;
  nowMs: () => number;
  /** Called when a probe begins; what it returns tells how much of the time since then explains a missing answer. */
  excuses: () => () => number;
  onHealth: (probe: string, health: ProbeHealth, reason: string | null) => void;
}

interface Running {
  readonly probe: Probe;
  readonly name: string;
  state: ProbeState;
  abort: AbortController;
  excusedMs: () => number;
}

export class Prober {
  private readonly all: Running[];
  private closed = false;

  constructor(private readonly options: ProberOptions) {
    const nowMs = options.nowMs();
    this.all = options.probes.map((probe) => ({
      probe,
      name: formatProbe(probe.check),
      state: initialProbeState(nowMs),
      abort: new AbortController(),
      excusedMs: () => 0,
    }));
  }

  /** As often as results are to be timely. */
  tick(): void {
    const nowMs = this.options.nowMs();
    for (const one of this.all) {
      const { startedAtMs } = one.state;
      // What excuses is asked of the kernel: only when it matters.
      const due = startedAtMs !== null && nowMs - startedAtMs >= one.probe.timeoutMs;
      this.step(one, { type: 'tick', nowMs, excusedMs: due ? one.excusedMs() : 0 });
    }
  }

  /** What has failed, in words, and when the guest was last known to be well; null when nothing has. */
  get failure(): { evidence: string; wellAtMs: number | null } | null {
    const one = this.all.find(({ state }) => state.health === 'failed');
    if (one === undefined) return null;
    const { failuresInRow, reason, wellAtMs } = one.state;
    const evidence = `the probe ${one.name} failed ${failuresInRow} times in a row: ${reason}`;
    return { evidence, wellAtMs };
  }

  views(): ProbeView[] {
    return this.all.map(({ name, state: { health, failuresInRow, reason } }) => ({
      probe: name,
      health,
      failuresInRow,
      reason,
    }));
  }

  /** Nothing is called back after this. */
  close(): void {
    this.closed = true;
    for (const one of this.all) one.abort.abort();
  }

  private step(one: Running, event: ProbeEvent): void {
    const { state, effects } = stepProbe(one.state, event, one.probe);
    one.state = state;
    for (const effect of effects) {
      if (effect.type === 'start') this.start(one);
      if (effect.type === 'abandon') one.abort.abort();
      if (effect.type === 'tell') this.options.onHealth(one.name, effect.health, state.reason);
    }
  }

  private start(one: Running): void {
    const abort = new AbortController();
    one.abort = abort;
    one.excusedMs = this.options.excuses();
    void this.options.call(one.probe.check, abort.signal).then((outcome) => {
      if (this.closed || abort.signal.aborted) return;
      const nowMs = this.options.nowMs();
      this.step(
        one,
        outcome.kind === 'failed' ? { type: 'failed', nowMs, reason: outcome.reason } : { type: outcome.kind, nowMs },
      );
    });
  }
}
