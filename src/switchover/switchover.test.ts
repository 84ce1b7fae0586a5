/** The shell around the machine: what is called when, and who is told. The effects are the test's. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Switchover, type SwitchoverActions } from './switchover.js';

type Asynchronous = 'hand-over' | 'fence' | 'record-generation' | 'load-state' | 'resume';

/** Effects that are done when the test says so. */
class Script {
  readonly calls: string[] = [];
  readonly failures: string[] = [];
  readonly pending = new Map<Asynchronous, { resolve: () => void; reject: (error: Error) => void }>();
  throwing = new Set<string>();

  readonly actions: SwitchoverActions = {
    'hand-over': () => this.begin('hand-over'),
    fence: () => this.begin('fence'),
    'raise-limits': () => this.call('raise-limits'),
    'record-generation': (generation) => this.begin('record-generation', generation),
    'load-state': () => this.begin('load-state'),
    resume: () => this.begin('resume'),
    connect: () => this.call('connect'),
    'protect-again': (reason, generation) => this.call(`protect-again(${reason}, ${generation})`),
    'declare-lost': (reason) => this.call(`declare-lost(${reason})`),
    'resume-primary': (reason) => this.call(`resume-primary(${reason})`),
    onFailure: (effect) => void this.failures.push(effect),
  };

  private call(what: string): void {
    this.calls.push(what);
    if (this.throwing.has(what)) throw new Error('injected');
  }

  private begin(effect: Asynchronous, generation?: number): Promise<void> {
    this.call(generation === undefined ? effect : `${effect}(${generation})`);
    return new Promise((resolve, reject) => this.pending.set(effect, { resolve, reject }));
  }

  async done(...effects: Asynchronous[]): Promise<void> {
    for (const effect of effects) {
      this.pending.get(effect)?.resolve();
      this.pending.delete(effect);
      await turns();
    }
  }

  async fail(effect: Asynchronous): Promise<void> {
    this.pending.get(effect)?.reject(new Error('injected'));
    this.pending.delete(effect);
    await turns();
  }

  get line(): string {
    return this.calls.join(' ');
  }
}

const turns = () => new Promise((resolve) => setImmediate(resolve));
const outcome = (promise: Promise<void>) =>
  promise.then(
    () => 'resolved',
    (error: { code: string }) => error.code,
  );

function start(generation = 4) {
  const script = new Script();
  return { script, machine: new Switchover('web', generation, script.actions) };
}

describe('a promotion', () => {
  test('by hand goes through all its steps in order, and whoever asked hears of the end', async () => {
    const { script, machine } = start();
    machine.dispatch({ type: 'shadow-ready' });
    const asked = outcome(machine.request('by hand'));
    expect([machine.phase, machine.underWay]).toEqual(['handing-over', true]);
    await script.done('hand-over', 'fence', 'load-state');
    expect(script.line).toBe('hand-over fence raise-limits record-generation(5) load-state');
    await script.done('record-generation');
    expect(machine.generation).toBe(4);
    await script.done('resume');
    expect(script.line.endsWith('load-state resume connect protect-again(by hand, 5)')).toBe(true);
    expect([await asked, machine.phase, machine.generation, machine.underWay]).toEqual([
      'resolved',
      'watching',
      5,
      false,
    ]);
  });

  test('by a failure goes the same way, without the hand-over', async () => {
    const { script, machine } = start(0);
    machine.dispatch({ type: 'shadow-ready' });
    machine.dispatch({ type: 'primary-died', reason: 'process-died' });
    machine.dispatch({ type: 'primary-died', reason: 'monitor-ended' });
    await script.done('fence', 'record-generation', 'load-state', 'resume');
    expect(script.line).toBe(
      'fence raise-limits record-generation(1) load-state resume connect protect-again(process-died, 1)',
    );
  });

  test('is refused while another is under way, and only who came second is', async () => {
    const { script, machine } = start();
    machine.dispatch({ type: 'shadow-ready' });
    const first = outcome(machine.request('by hand'));
    expect(await outcome(machine.request('by hand'))).toBe('PROMOTION_IN_PROGRESS');
    await script.done('hand-over', 'fence');
    expect(await outcome(machine.request('by hand'))).toBe('PROMOTION_IN_PROGRESS');
    await script.done('record-generation', 'load-state', 'resume');
    expect(await first).toBe('resolved');
    expect(await outcome(machine.request('by hand'))).toBe('SHADOW_NOT_READY');
  });

  test('asked for while the primary dies ends as the failover does', async () => {
    const { script, machine } = start();
    machine.dispatch({ type: 'shadow-ready' });
    const asked = outcome(machine.request('by hand'));
    machine.dispatch({ type: 'primary-died', reason: 'process-died' });
    await script.fail('hand-over');
    await script.done('fence', 'record-generation', 'load-state', 'resume');
    expect(await asked).toBe('resolved');
    expect(script.failures).toEqual(['hand-over']);
  });
});

describe('a step that fails', () => {
  test('in the hand-over lets the primary go on, and the next attempt may succeed', async () => {
    const { script, machine } = start();
    machine.dispatch({ type: 'shadow-ready' });
    const asked = outcome(machine.request('by hand'));
    await script.fail('hand-over');
    expect([await asked, machine.phase]).toEqual(['PROMOTION_FAILED', 'watching']);
    expect(script.line).toBe('hand-over resume-primary(injected)');
    const again = outcome(machine.request('by hand'));
    await script.done('hand-over', 'fence', 'record-generation', 'load-state', 'resume');
    expect(await again).toBe('resolved');
  });

  test.each(['fence', 'record-generation', 'load-state', 'resume'] as const)(
    '%s: the VM is lost rather than run twice',
    async (step) => {
      const { script, machine } = start();
      machine.dispatch({ type: 'shadow-ready' });
      const asked = outcome(machine.request('by hand'));
      await script.done('hand-over');
      for (const each of ['fence', 'record-generation', 'load-state', 'resume'] as const)
        await (each === step ? script.fail(each) : script.done(each));
      expect(await asked).toBe('PROMOTION_FAILED');
      expect([machine.phase, script.failures]).toEqual(['lost', [step]]);
      expect(script.calls.filter((call) => call.startsWith('declare-lost'))).toEqual([
        `declare-lost(${step}: injected)`,
      ]);
      expect(script.line).not.toContain('connect');
      expect(await outcome(machine.request('by hand'))).toBe('SHADOW_NOT_READY');
    },
  );

  test.each(['raise-limits', 'connect'])('%s: it is told, and the guest runs all the same', async (step) => {
    const { script, machine } = start();
    script.throwing.add(step);
    machine.dispatch({ type: 'shadow-ready' });
    machine.dispatch({ type: 'primary-died', reason: 'x' });
    await script.done('fence', 'record-generation', 'load-state', 'resume');
    expect([machine.phase, machine.generation, script.failures]).toEqual(['watching', 5, [step]]);
  });
});

test('of a VM that is given up, what is under way ends without consequences, and whoever waits is told', async () => {
  for (const upTo of [[], ['hand-over'], ['hand-over', 'fence'], ['hand-over', 'fence', 'load-state']] as const) {
    const { script, machine } = start();
    machine.dispatch({ type: 'shadow-ready' });
    const asked = outcome(machine.request('by hand'));
    await script.done(...upTo);
    const before = script.line;
    machine.close();
    machine.close();
    expect([await asked, machine.underWay]).toEqual(['PROMOTION_FAILED', false]);
    await script.done('hand-over', 'fence', 'load-state');
    await script.fail('record-generation');
    machine.dispatch({ type: 'primary-died', reason: 'late' });
    expect(await outcome(machine.request('late'))).toBe('PROMOTION_FAILED');
    expect([script.line, script.failures]).toEqual([before, []]);
  }
});

test('whatever happens in whatever order, every request is answered and nothing runs before it may', () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.oneof(
          fc.constantFrom('ready', 'lost', 'died', 'request'),
          fc.constantFrom<Asynchronous[]>('hand-over', 'fence', 'record-generation', 'load-state', 'resume'),
          fc
            .constantFrom<Asynchronous[]>('hand-over', 'fence', 'record-generation', 'load-state', 'resume')
            .map((effect) => `fail ${effect}` as const),
        ),
        { maxLength: 40 },
      ),
      async (steps) => {
        const { script, machine } = start(0);
        const requests: Promise<string>[] = [];
        const finished = new Set<string>();
        for (const each of steps) {
          if (each === 'ready') machine.dispatch({ type: 'shadow-ready' });
          else if (each === 'lost') machine.dispatch({ type: 'shadow-lost' });
          else if (each === 'died') machine.dispatch({ type: 'primary-died', reason: 'died' });
          else if (each === 'request') requests.push(outcome(machine.request('by hand')));
          else if (each.startsWith('fail ')) await script.fail(each.slice(5) as Asynchronous);
          else {
            if (script.pending.has(each as Asynchronous)) finished.add(each);
            await script.done(each as Asynchronous);
          }
          const resumes = script.calls.filter((call) => call === 'resume').length;
          if (resumes > 0)
            expect([...finished]).toEqual(expect.arrayContaining(['fence', 'record-generation', 'load-state']));
        }
        // Whatever is still open ends; then nobody may be left waiting.
        for (let i = 0; i < 8; i++)
          await script.done('hand-over', 'fence', 'record-generation', 'load-state', 'resume');
        const silent = new Promise<string>((resolve) => setTimeout(() => resolve('silence'), 1000));
        for (const request of requests) expect(await Promise.race([request, silent])).not.toBe('silence');
        expect(script.calls.filter((call) => call.startsWith('declare-lost')).length).toBeLessThanOrEqual(1);
        const generations = script.calls.flatMap((call) => /^record-generation\((\d+)\)$/.exec(call)?.[1] ?? []);
        expect(generations).toEqual(generations.map((_, i) => `${i + 1}`));
      },
    ),
    { numRuns: 150 },
  ));
