/**
 * Who gets what of the host, and why: pure. Quotas and balloons follow the forecast, ahead of the need; what presses now
 * goes before it, and what is given never leaves a VM's minimum and maximum, its working set and the host's capacity.
 *
 * What is not known is not lowered: without an outlook, or with one that says less than what is used now, a VM keeps
 * what it has. Two changes of one thing are a cool-down apart, unless it is pressure.
 */
import { bytes, percent } from '../vm/amount-text.js';
import { MIB } from '../vm/spec.js';
import { type Claim, divide } from './share.js';

export interface Expected {
  /** The highest that is expected in the time that the decision is for. */
  expected: number;
  /** What it will not exceed then. */
  bound: number;
}

export interface CpuNeed {
  /** Percent of one CPU. At `max` there is no need of a quota. */
  min: number;
  max: number;
  now: number;
  /** In the last second: with what the quota kept from it. */
  demand: number;
  /** Percent of that second's time that its threads were held back by the quota. */
  throttled: number;
  outlook: Expected | null;
  changedAtMs: number | null;
}

export interface MemoryNeed {
  minBytes: number;
  maxBytes: number;
  /** What the balloon leaves to the guest. */
  nowBytes: number;
  /** null: the guest does not tell. */
  workingSetBytes: number | null;
  availableBytes: number | null;
  /** The limit that is expected to hold 99 % of the time; null: not known yet. */
  limitBytes: number | null;
  /** Its kernel ended a program for want of memory, or took some back from the balloon, since the last look. */
  ranOut: boolean;
  changedAtMs: number | null;
}

export interface VmNeed {
  vm: string;
  /** 1–10: a VM of 10 gets twice as much of what is short as one of 5. */
  priority: number;
  cpu: CpuNeed;
  memory: MemoryNeed;
}

export interface Capacity {
  cpuPercent: number;
  memoryBytes: number;
}

export type Cause = 'forecast' | 'pressure' | 'capacity';

export interface Decision {
  vm: string;
  resource: 'cpu' | 'memory';
  from: number;
  to: number;
  cause: Cause;
  why: string;
  /** What was expected; null where it was not what decided. */
  forecast: Expected | null;
}

/** Above the bound, for what no bound covers. */
const CPU_MARGIN = 1.1;
/** Held back for so much of a second, a VM is under pressure, and gets at least so much more. */
const THROTTLED_PERCENT = 10;
const PRESSURE_FACTOR = 1.5;
/** Changes below these shares of what it has are not worth one: up to the margins, what it has is above the bound. */
const RAISE_WORTH = 0.1;
const LOWER_WORTH = 0.2;
/** Parts of what is short move with every VM's outlook. */
const CUT_WORTH = 0.2;

const MEMORY_MARGIN = 1.15;
/** Beside what programs use, for the kernel's caches. */
const MEMORY_SPARE = 40 * MIB;
const FLOOR_MARGIN = 1.1;
const FLOOR_SPARE = 32 * MIB;
/** A balloon moves in such steps. */
const MEMORY_STEP = 8 * MIB;
const LOW_SHARE = 0.05;
const LOW_BYTES = 12 * MIB;
const MEMORY_RAISE_SHARE = 0.25;
const MEMORY_RAISE_MIN = 32 * MIB;

/** What a VM should have, were it alone. */
interface Wish {
  /** What it keeps whatever is short. */
  least: number;
  /** What is expected to be needed: where the bounds of all are more than there is, this comes before them. */
  due: number;
  wanted: number;
  cause: Cause;
  why: string;
  forecast: Expected | null;
  /**
   * Why it keeps what it has. `cools`: it was changed a moment ago; only others' pressure takes from it. `small`: a change
   * is not worth one; a host that is short may take from it. `unknown`: nobody takes from it.
   */
  held: 'cools' | 'small' | 'unknown' | null;
  /** What it would want without being held. */
  free: number;
}

/** One resource of one host: what is asked for, what there is, and in which steps it is given. */
interface Division {
  resource: Decision['resource'];
  wishes: Wish[];
  now: number[];
  whole: number;
  step: number;
}

export function plan(needs: readonly VmNeed[], capacity: Capacity, coolDownMs: number, nowMs: number): Decision[] {
  const cools = (changedAtMs: number | null) => changedAtMs !== null && nowMs - changedAtMs < coolDownMs;
  const decisions = [
    ...decide(needs, {
      resource: 'cpu',
      wishes: needs.map(({ cpu }) => cpuWish(cpu, cools(cpu.changedAtMs))),
      now: needs.map(({ cpu }) => cpu.now),
      whole: capacity.cpuPercent,
      step: 1,
    }),
    ...decide(needs, {
      resource: 'memory',
      wishes: needs.map(({ memory }) => memoryWish(memory, cools(memory.changedAtMs))),
      now: needs.map(({ memory }) => memory.nowBytes),
      whole: capacity.memoryBytes,
      step: MEMORY_STEP,
    }),
  ];
  // What is taken comes before what is given, so that the sum never exceeds the capacity.
  return decisions.toSorted((a, b) => Number(a.to > a.from) - Number(b.to > b.from));
}

function decide(needs: readonly VmNeed[], { resource, wishes, now, whole, step }: Division): Decision[] {
  const pressed = wishes.some(({ cause }) => cause === 'pressure');
  // What nothing is known of counts by what it uses: at its maximum it would leave nothing to the others.
  const counted = wishes.map(({ held, wanted, free }) => (held === 'unknown' ? Math.min(wanted, free) : wanted));
  const short = counted.reduce((total, each) => total + each, 0) > whole;
  const claims = wishes.map(({ least, due, wanted, free, held }, i) => {
    const weight = needs[i]!.priority;
    if (held === 'cools' && !pressed) return { least: wanted, due: wanted, wanted, weight };
    const asked = held === null ? wanted : Math.min(wanted, Math.max(free, least));
    return { least, due: Math.min(asked, Math.max(due, least)), wanted: asked, weight };
  });
  const targets = (granted: readonly number[]) =>
    wishes.map(({ least, wanted }, i) => {
      const lowest = Math.ceil(Math.min(least, wanted) / step - 1e-6) * step;
      const to = Math.min(wanted, Math.max(lowest, Math.floor(granted[i]! / step + 1e-6) * step));
      return { to, cut: to < Math.floor(wanted / step) * step };
    });
  // Crumbs of what is short are not worth a change.
  const isCrumb = ({ to, cut }: { to: number; cut: boolean }, i: number) =>
    cut && wishes[i]!.cause !== 'pressure' && Math.abs(to - now[i]!) <= CUT_WORTH * now[i]!;
  let decided = targets(short ? divideTwice(claims, whole) : counted);
  // Who keeps a crumb has it: the others divide what is left.
  const keepCrumbs = (): boolean => {
    const has = (i: number) => ({ least: now[i]!, due: now[i]!, wanted: now[i]! });
    const isNew = (each: (typeof decided)[number], i: number) =>
      isCrumb(each, i) && each.to < now[i]! && claims[i]!.least !== now[i]!;
    const crumbs = decided.flatMap((each, i) => (isNew(each, i) ? [i] : []));
    for (const i of crumbs) claims[i] = { ...claims[i]!, ...has(i) };
    return crumbs.length > 0;
  };
  while (short && keepCrumbs()) decided = targets(divideTwice(claims, whole));
  return needs.flatMap((need, i) => {
    const { held, due, why, cause, forecast } = wishes[i]!;
    const { to, cut } = decided[i]!;
    const from = now[i]!;
    if (to === from || held === 'unknown' || (held === 'cools' && !pressed) || (held === 'small' && !short)) return [];
    // Who has what is expected needs no more of what is short: parts move each second, and a change begins a cool-down.
    if (short && cause !== 'pressure' && to > from && from >= due) return [];
    if (isCrumb(decided[i]!, i)) return [];
    const told = cut ? `${why}; the host has no more for it` : why;
    const because = cut && to < from ? 'capacity' : cause;
    return [{ vm: need.vm, resource, from, to, cause: because, why: told, forecast }];
  });
}

/** What is expected first, by what is left in any case; then what may be needed beyond that. */
function divideTwice(claims: readonly (Claim & { due: number })[], whole: number): number[] {
  const dues = claims.reduce((sum, { due }) => sum + due, 0);
  return dues > whole
    ? divide(
        claims.map((claim) => ({ ...claim, wanted: claim.due })),
        whole,
      )
    : divide(
        claims.map((claim) => ({ ...claim, least: claim.due })),
        whole,
      );
}

function cpuWish(cpu: CpuNeed, cools: boolean): Wish {
  const { min, max, now, throttled } = cpu;
  const outlook = cpu.outlook !== null && cpu.outlook.bound >= 0 ? cpu.outlook : null;
  // What was not measured may be all that it has.
  const demand = cpu.demand >= 0 ? cpu.demand : now;
  const within = (value: number) => Math.max(min, Math.min(max, Math.round(value)));
  const due = within(Math.max(outlook?.expected ?? 0, demand) * CPU_MARGIN);
  const keep = (held: Wish['held'], free: number, why: string): Wish => ({
    ...{ least: min, due, wanted: now, cause: 'forecast', why, forecast: outlook, held, free: within(free) },
  });
  if (throttled >= THROTTLED_PERCENT && now < max)
    return {
      least: min,
      due,
      wanted: within(Math.max(now * PRESSURE_FACTOR, demand * CPU_MARGIN, (outlook?.bound ?? 0) * CPU_MARGIN)),
      cause: 'pressure',
      why: `held back for ${percent(throttled)} of the last second, it wants ${percent(demand)}`,
      forecast: null,
      held: null,
      free: max,
    };
  if (outlook === null || Number.isNaN(outlook.bound))
    return keep('unknown', demand * CPU_MARGIN, 'nothing is expected of it yet');
  // A forecast that is below what it uses now is wrong at this moment.
  const wanted = within(Math.max(outlook.bound, demand) * CPU_MARGIN);
  const why = `${percent(outlook.expected)} is expected and at most ${percent(outlook.bound)}, it uses ${percent(demand)}`;
  if (cools) return keep('cools', wanted, why);
  if (isSmall(now, wanted)) return keep('small', wanted, why);
  return { least: min, due, wanted, cause: 'forecast', why, forecast: outlook, held: null, free: wanted };
}

function memoryWish(memory: MemoryNeed, cools: boolean): Wish {
  const { minBytes, maxBytes, nowBytes, workingSetBytes, availableBytes, limitBytes, ranOut } = memory;
  const floor = Math.min(
    maxBytes,
    Math.max(minBytes, workingSetBytes === null ? nowBytes : workingSetBytes * FLOOR_MARGIN + FLOOR_SPARE),
  );
  const within = (value: number) =>
    Math.min(maxBytes, Math.ceil(Math.max(floor, Math.min(maxBytes, value)) / MEMORY_STEP) * MEMORY_STEP);
  const keep = (held: Wish['held'], free: number, why: string): Wish => ({
    ...{ least: floor, due: floor, wanted: nowBytes, cause: 'forecast', why, forecast: null, held, free: within(free) },
  });
  const low = availableBytes !== null && availableBytes < Math.max(LOW_BYTES, LOW_SHARE * nowBytes);
  if ((low || ranOut) && nowBytes < maxBytes) {
    const raised = nowBytes + Math.max(MEMORY_RAISE_MIN, MEMORY_RAISE_SHARE * nowBytes);
    return {
      least: floor,
      due: floor,
      wanted: within(ranOut ? maxBytes : raised),
      cause: 'pressure',
      why: ranOut ? 'the guest ran out of memory' : `the guest has ${bytes(availableBytes)} left`,
      forecast: null,
      held: null,
      free: maxBytes,
    };
  }
  if (limitBytes === null || workingSetBytes === null)
    return keep('unknown', nowBytes, 'nothing is expected of it yet');
  const wanted = within(Math.max(limitBytes, workingSetBytes) * MEMORY_MARGIN + MEMORY_SPARE);
  const why = `at most ${bytes(limitBytes)} are expected to be used, and ${bytes(workingSetBytes)} are`;
  if (cools) return keep('cools', wanted, why);
  if (isSmall(nowBytes, wanted)) return keep('small', wanted, why);
  const forecast = { expected: workingSetBytes, bound: limitBytes };
  return { least: floor, due: floor, wanted, cause: 'forecast', why, forecast, held: null, free: wanted };
}

function isSmall(now: number, wanted: number): boolean {
  return wanted > now ? wanted - now <= RAISE_WORTH * now : now - wanted <= LOWER_WORTH * now;
}

/** Of a busy host, a VM's share by what it needs and how important it is: 100 for one CPU at the usual priority. */
export function cpuWeight(cpuPercent: number, priority: number): number {
  return Math.max(1, Math.min(10_000, Math.round(Math.max(10, cpuPercent) * (priority / 5))));
}
