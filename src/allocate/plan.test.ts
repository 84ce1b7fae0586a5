import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MIB } from '../vm/spec.js';
import { type CpuNeed, cpuWeight, type MemoryNeed, plan, type VmNeed } from './plan.js';

const cpu = (more: Partial<CpuNeed> = {}): CpuNeed => ({
  ...{ min: 10, max: 100, now: 100, demand: 10, throttled: 0, outlook: { expected: 10, bound: 20 }, changedAtMs: null },
  ...more,
});
const memory = (more: Partial<MemoryNeed> = {}): MemoryNeed => ({
  ...{ minBytes: 64 * MIB, maxBytes: 256 * MIB, nowBytes: 256 * MIB, workingSetBytes: 60 * MIB },
  ...{ availableBytes: 150 * MIB, limitBytes: null, ranOut: false, changedAtMs: null },
  ...more,
});
const need = (vm: string, c: Partial<CpuNeed> = {}, m: Partial<MemoryNeed> = {}, priority = 5): VmNeed => ({
  ...{ vm, priority, cpu: cpu(c), memory: memory(m) },
});
const roomy = { cpuPercent: 400, memoryBytes: 4096 * MIB };
const COOL_MS = 10_000;
const decide = (needs: VmNeed[], capacity = roomy, nowMs = 100_000) =>
  plan(needs, capacity, COOL_MS, nowMs).map(({ vm, resource, to, cause }) => [vm, resource, to, cause]);

describe('CPU', () => {
  it('follows the bound, down and ahead of a peak', () => {
    const [down] = plan([need('a')], roomy, COOL_MS, 0);
    expect(down).toEqual({
      ...{ vm: 'a', resource: 'cpu', from: 100, to: 22, cause: 'forecast', forecast: { expected: 10, bound: 20 } },
      why: '10.0% is expected and at most 20.0%, it uses 10.0%',
    });
    expect(decide([need('a', { now: 22, outlook: { expected: 70, bound: 80 } })])).toEqual([
      ['a', 'cpu', 88, 'forecast'],
    ]);
  });

  it('keeps what it has where nothing is known, and what is used whatever is expected', () => {
    expect(decide([need('a', { outlook: null })])).toEqual([]);
    expect(decide([need('a', { outlook: { expected: Number.NaN, bound: Number.NaN } })])).toEqual([]);
    expect(decide([need('a', { demand: 70 })])).toEqual([['a', 'cpu', 77, 'forecast']]);
  });

  it('takes nothing away for a figure that can not be one', () => {
    for (const bad of [Number.NaN, -1, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e300])
      for (const more of [{ outlook: { expected: bad, bound: bad } }, { demand: bad }])
        for (const { to } of plan([need('a', { now: 60, demand: 60, ...more })], roomy, COOL_MS, 0))
          expect(to).toBeGreaterThanOrEqual(60);
  });

  it('changes once in a cool-down, but for pressure', () => {
    const changed = { now: 50, changedAtMs: 95_000 };
    expect(decide([need('a', changed)])).toEqual([]);
    expect(decide([need('a', changed)], roomy, 105_000)).toEqual([['a', 'cpu', 22, 'forecast']]);
    expect(decide([need('a', { ...changed, throttled: 60, demand: 95 })])).toEqual([['a', 'cpu', 100, 'pressure']]);
  });

  it('is not moved by little', () => {
    expect(decide([need('a', { now: 24 })])).toEqual([]);
    expect(decide([need('a', { now: 22, outlook: { expected: 20, bound: 20.9 } })])).toEqual([]);
  });

  it('divides what is short by priority, and takes before it gives', () => {
    const peak = { now: 30, outlook: { expected: 90, bound: 100 } };
    const needs = [need('a', peak, {}, 10), need('b', peak, {}, 5), need('c', { now: 60 })];
    const decisions = plan(needs, { ...roomy, cpuPercent: 132 }, COOL_MS, 0);
    expect(decisions.map(({ vm, to }) => [vm, to])).toEqual([
      ['c', 11],
      ['a', 77],
      ['b', 43],
    ]);
    expect(decisions[1]!.why).toMatch(/; the host has no more for it$/);
  });

  it('does not give to one what another keeps because a change is not worth it', () => {
    const pressed = need('a', { now: 27, demand: 0, throttled: 50, outlook: { expected: 0, bound: 0 } });
    const crumb = need('b', { now: 11, demand: 0, outlook: { expected: 0, bound: 0 } });
    expect(decide([pressed, crumb], { ...roomy, cpuPercent: 50 })).toEqual([['a', 'cpu', 39, 'pressure']]);
  });

  it('gives what is expected before what may be needed', () => {
    const peak = need('peak', { now: 40, outlook: { expected: 90, bound: 100 } });
    const unsure = (vm: string) => need(vm, { now: 40, outlook: { expected: 8, bound: 70 } });
    const decisions = decide([peak, unsure('b'), unsure('c')], { ...roomy, cpuPercent: 140 });
    expect(decisions).toEqual([
      ['b', 'cpu', 20, 'capacity'],
      ['c', 'cpu', 20, 'capacity'],
      ['peak', 'cpu', 100, 'forecast'],
    ]);
  });

  it('takes what is held and not needed from one that cools down when another one is pressed', () => {
    const pressed = need('a', { now: 40, throttled: 50, demand: 80 });
    const held = need('b', { now: 60, changedAtMs: 99_000 });
    expect(decide([pressed, held], { ...roomy, cpuPercent: 100 })).toEqual([
      ['b', 'cpu', 12, 'capacity'],
      ['a', 'cpu', 88, 'pressure'],
    ]);
    // Without pressure it keeps it, and the other one gets what is left.
    const wants = need('a', { now: 20, outlook: { expected: 70, bound: 80 } });
    expect(decide([wants, held], { ...roomy, cpuPercent: 100 })).toEqual([['a', 'cpu', 40, 'forecast']]);
  });

  it('weighs by need and priority', () => {
    expect(cpuWeight(100, 5)).toBe(100);
    expect(cpuWeight(50, 10)).toBe(100);
    expect(cpuWeight(1, 1)).toBe(2);
  });
});

describe('memory', () => {
  const still = { now: 22 };

  it('follows the held limit, never below what is used', () => {
    expect(decide([need('a', still, { limitBytes: 70 * MIB })])).toEqual([['a', 'memory', 128 * MIB, 'forecast']]);
    expect(decide([need('a', still, { limitBytes: 10 * MIB, workingSetBytes: 120 * MIB })])).toEqual([
      ['a', 'memory', 184 * MIB, 'forecast'],
    ]);
    expect(decide([need('a', still, { limitBytes: 10 * MIB, workingSetBytes: null })])).toEqual([]);
  });

  it('gives back at once when the guest has little left, and all of it when it ran out', () => {
    const tight = { nowBytes: 128 * MIB, limitBytes: 70 * MIB, changedAtMs: 99_000 };
    expect(decide([need('a', still, { ...tight, availableBytes: 5 * MIB })])).toEqual([
      ['a', 'memory', 160 * MIB, 'pressure'],
    ]);
    expect(decide([need('a', still, { ...tight, ranOut: true })])).toEqual([['a', 'memory', 256 * MIB, 'pressure']]);
  });

  it('on a host that is short, leaves everyone its working set', () => {
    const wide = { limitBytes: 200 * MIB, nowBytes: 256 * MIB, workingSetBytes: 60 * MIB };
    const decisions = plan(
      [need('a', still, wide), need('b', still, wide)],
      { ...roomy, memoryBytes: 300 * MIB },
      COOL_MS,
      0,
    );
    for (const { resource, to } of decisions) {
      expect(resource).toBe('memory');
      expect(to).toBeGreaterThanOrEqual(98 * MIB);
      expect(to).toBeLessThanOrEqual(150 * MIB);
    }
    expect(decisions).toHaveLength(2);
  });
});

it('never leaves minimum, maximum and what is used; and never gives more than there is beyond what it leaves', () => {
  const needs = fc.array(
    fc.record({
      now: fc.integer({ min: 10, max: 100 }),
      demand: fc.double({ min: 0, max: 100 }),
      throttled: fc.constantFrom(0, 0, 50),
      bound: fc.double({ min: 0, max: 300 }),
      known: fc.boolean(),
      cools: fc.boolean(),
      priority: fc.integer({ min: 1, max: 10 }),
      used: fc.integer({ min: 10, max: 200 }),
      limit: fc.option(fc.integer({ min: 0, max: 400 })),
      size: fc.integer({ min: 64, max: 256 }),
      low: fc.boolean(),
    }),
    { minLength: 1, maxLength: 8 },
  );
  fc.assert(
    fc.property(needs, fc.integer({ min: 50, max: 800 }), (list, cpuPercent) => {
      const all = list.map((each, i) =>
        need(
          `vm${i}`,
          {
            ...{ now: each.now, demand: each.demand, throttled: each.throttled },
            outlook: each.known ? { expected: each.bound, bound: each.bound } : null,
            changedAtMs: each.cools ? 99_999 : null,
          },
          {
            nowBytes: each.size * MIB,
            workingSetBytes: each.used * MIB,
            limitBytes: each.limit === null ? null : each.limit * MIB,
            availableBytes: each.low ? 0 : 200 * MIB,
          },
          each.priority,
        ),
      );
      const decisions = plan(all, { cpuPercent, memoryBytes: 1024 * MIB }, COOL_MS, 100_000);
      const granted = all.map((each) => each.cpu.now);
      for (const { vm, resource, to } of decisions) {
        const of = all.find((each) => each.vm === vm)!;
        if (resource === 'cpu') {
          expect(to).toBeGreaterThanOrEqual(of.cpu.min - 1);
          expect(to).toBeLessThanOrEqual(of.cpu.max);
          granted[all.indexOf(of)] = to;
        } else {
          expect(to).toBeLessThanOrEqual(of.memory.maxBytes);
          const floor = Math.min(of.memory.maxBytes, of.memory.workingSetBytes! * 1.1 + 24 * MIB);
          if (to < of.memory.nowBytes) expect(to).toBeGreaterThanOrEqual(floor);
        }
      }
      // A bound that is no number says nothing: nobody takes from such a VM, as from one without an outlook.
      const known = all.filter(({ cpu }) => cpu.outlook !== null && !Number.isNaN(cpu.outlook.bound));
      const before = known.reduce((sum, each) => sum + each.cpu.now, 0);
      const after = known.reduce((sum, each) => sum + granted[all.indexOf(each)]!, 0);
      const least = all.reduce((sum, each) => sum + each.cpu.min, 0);
      expect(after).toBeLessThanOrEqual(Math.max(before, cpuPercent, least) + 1e-6);
    }),
    { numRuns: 5000 },
  );
});
