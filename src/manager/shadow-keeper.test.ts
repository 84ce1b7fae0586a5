/** When shadows are made and made anew. Time and the shadows are the test's; what a shadow is, is tested with real ones. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Shadow } from '../shadow/shadow.js';
import type { ShadowRule } from '../vm/spec.js';
import { ShadowKeeper } from './shadow-keeper.js';

interface FakeShadow {
  because: string;
  disposed: boolean;
  /** Ends a dispose() that was made to take its time. */
  gone: (() => void) | null;
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'hrtime'] });
});
afterEach(() => {
  vi.useRealTimers();
});

function keep(rule: ShadowRule, slowDispose = false) {
  const made: FakeShadow[] = [];
  const remakes: number[] = [];
  const keeper = new ShadowKeeper({
    rule,
    moving: () => 60,
    make: (because) => {
      const shadow: FakeShadow & { dispose: () => Promise<void> } = {
        because,
        disposed: false,
        gone: null,
        dispose: async () => {
          shadow.disposed = true;
          if (slowDispose)
            await new Promise<void>((resolve) => {
              shadow.gone = resolve;
            });
        },
      };
      made.push(shadow);
      return shadow as unknown as Shadow;
    },
    onRemake: (delayMs) => remakes.push(delayMs),
  });
  return { keeper, made, remakes };
}

const usage = (cpuPercent: number) => ({ cpuPercent, memoryPercent: 10, networkBytesPerSecond: 0 });
const onCpu: ShadowRule = { kind: 'when', triggers: [{ metric: 'cpu', above: 60, heldMs: 1000 }] };

test('always: one is made as soon as there is a primary, and one only', () => {
  const { keeper, made } = keep({ kind: 'always' });
  expect(made).toEqual([]);
  keeper.resume();
  keeper.resume();
  expect(made.map(({ because }) => because)).toEqual(['always']);
});

test('by hand: none is made before it is asked for', () => {
  const { keeper, made } = keep({ kind: 'manual' });
  keeper.resume();
  keeper.observe(usage(100), 0);
  keeper.observe(usage(100), 60_000);
  expect(made).toEqual([]);
  expect(keeper.want('by hand')).toBe(keeper.shadow);
  expect(keeper.want('by hand again')).toBe(keeper.shadow);
  expect(made).toHaveLength(1);
});

test('by a trigger: with what was measured as the reason; not while there is no primary', () => {
  const { keeper, made } = keep(onCpu);
  keeper.observe(usage(100), 0);
  keeper.observe(usage(100), 5000);
  expect(made).toEqual([]);
  keeper.resume();
  keeper.observe(usage(97.4), 6000);
  keeper.observe(usage(50), 6500);
  keeper.observe(usage(97.4), 7000);
  expect(made).toEqual([]);
  keeper.observe(usage(97.4), 8000);
  keeper.observe(usage(97.4), 9000);
  expect(made.map(({ because }) => because)).toEqual(['cpu at 97 %, trigger cpu>60%/1s']);
});

test('one that fails is made anew, each time later, up to half a minute; one that was sound for long begins anew', async () => {
  const { keeper, made, remakes } = keep({ kind: 'always' });
  keeper.resume();
  for (let i = 0; i < 8; i++) {
    await keeper.replace();
    expect(made.at(-1)?.disposed).toBe(true);
    expect(keeper.shadow).toBeNull();
    vi.advanceTimersByTime(remakes.at(-1)! - 1);
    expect(keeper.shadow).toBeNull();
    vi.advanceTimersByTime(1);
    expect(keeper.shadow).not.toBeNull();
  }
  expect(remakes).toEqual([500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
  vi.advanceTimersByTime(60_001);
  await keeper.replace();
  expect(remakes.at(-1)).toBe(500);
});

test('removed by hand it stays away: no rule, no remake and no trigger brings it back', async () => {
  for (const rule of [{ kind: 'always' }, onCpu] satisfies ShadowRule[]) {
    const { keeper, made } = keep(rule);
    keeper.resume();
    if (rule.kind === 'when') keeper.want('by hand');
    await keeper.replace(); // a remake is due
    await keeper.unwant();
    vi.advanceTimersByTime(60_000);
    keeper.suspend();
    keeper.resume();
    for (let ms = 0; ms < 10_000; ms += 500) keeper.observe(usage(100), ms);
    expect(made).toHaveLength(1);
    keeper.want('by hand after all');
    expect(made).toHaveLength(2);
  }
});

test('in a switchover nothing is made; after it the new primary gets one', async () => {
  const { keeper, made } = keep({ kind: 'always' });
  keeper.resume();
  await keeper.replace();
  keeper.suspend(); // the remake is due, and must not come in the middle
  vi.advanceTimersByTime(60_000);
  expect(made).toHaveLength(1);
  keeper.resume();
  keeper.suspend();
  keeper.forget();
  expect(made.at(-1)?.disposed).toBe(false); // it is the primary now
  keeper.resume();
  expect(made.map(({ because }) => because)).toEqual(['always', 'always', 'protect again after a promotion']);
});

test('one that was made by hand while a remake was due is the only one', async () => {
  const { keeper, made } = keep({ kind: 'always' });
  keeper.resume();
  await keeper.replace();
  keeper.want('by hand');
  vi.advanceTimersByTime(60_000);
  expect(made).toHaveLength(2);
});

test('closing waits for shadows that are still going, and makes none any more', async () => {
  const { keeper, made, remakes } = keep({ kind: 'always' }, true);
  keeper.resume();
  const replacing = keeper.replace();
  let closed = false;
  const closing = keeper.close().then(() => {
    closed = true;
  });
  await Promise.resolve();
  expect([made[0]?.disposed, closed]).toEqual([true, false]);
  made[0]?.gone?.();
  await Promise.all([replacing, closing]);
  vi.advanceTimersByTime(60_000);
  expect([made.length, remakes]).toEqual([1, []]);
});
