/** `shadowvm allocation …`, `shadowvm capacity`, and the options of `vm run` about what a VM is given. */
import { type Command, Option } from 'commander';
import {
  ALLOCATION_MODES,
  type AllocationMode,
  type AllocationSpec,
  CPU_PERCENT_MAX,
  PRIORITY_MAX,
} from '../vm/spec.js';
import type { AllocationView, CapacityView } from '../vm/usage-view.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

export interface AllocationOptions {
  allocate?: AllocationMode;
  priority?: number;
  cpuMin?: number;
  cpuMax?: number;
  memoryMin?: number;
  memoryMax?: number;
}

const EXAMPLES = ['allocation ls', 'allocation show web', 'allocation set web --allocate auto --cpu-max 80%'];

export function addAllocationOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--allocate <mode>', 'what follows the forecasts; default: recommend').choices([...ALLOCATION_MODES]),
    )
    .addOption(
      new Option('--priority <n>', 'of what is short; default: 5').argParser(
        parse.wholeNumber('the priority', 1, PRIORITY_MAX),
      ),
    )
    .addOption(new Option('--cpu-min <share>', 'of one CPU; default: 10%').argParser(cpuPercent))
    .addOption(new Option('--cpu-max <share>', 'of one CPU; default: all that its vCPUs can use').argParser(cpuPercent))
    .addOption(new Option('--memory-min <size>', 'left by the balloon; default: 64M').argParser(parse.memoryBytes))
    .addOption(new Option('--memory-max <size>', 'left by the balloon; default: its RAM').argParser(parse.memoryBytes));
}

export function allocationOf(options: AllocationOptions): Partial<AllocationSpec> {
  const { allocate, priority, cpuMin, cpuMax, memoryMin, memoryMax } = options;
  return {
    ...(allocate === undefined ? {} : { mode: allocate }),
    ...(priority === undefined ? {} : { priority }),
    ...(cpuMin === undefined ? {} : { cpuMinPercent: cpuMin }),
    ...(cpuMax === undefined ? {} : { cpuMaxPercent: cpuMax }),
    ...(memoryMin === undefined ? {} : { memoryMinBytes: memoryMin }),
    ...(memoryMax === undefined ? {} : { memoryMaxBytes: memoryMax }),
  };
}

const cpuPercent = parse.cpuPercent(CPU_PERCENT_MAX);

export function addAllocationVerbs(program: Command): void {
  const group = addGroup(program, 'allocation', 'what VMs are given of the host, and why', EXAMPLES);
  addVerb(
    group,
    'ls',
    { summary: 'list what the VMs are given', examples: ['allocation ls', 'allocation ls --json'] },
    (command) => command,
    async (session) => {
      const allocations = await session.client.allocations();
      session.result({ allocations }, allocations.length === 0 ? 'no VMs run\n' : allocationTable(allocations));
    },
  );

  addVerb(
    group,
    'show <vm>',
    { summary: 'show what a VM is given, and what was decided last', examples: ['allocation show web'] },
    (command) => command,
    async (session, args) => {
      const name = parse.vmName(args[0]!);
      await session.client.showVm(name); // tells whether there is such a VM
      const view = (await session.client.allocations()).find(({ vm }) => vm === name);
      session.result(view ?? null, view === undefined ? `${name} does not run\n` : allocationDetails(view));
    },
  );

  addVerb<AllocationOptions>(
    group,
    'set <vm>',
    {
      summary: 'change who decides what a VM is given, and within which limits',
      description:
        'Changes who decides what a VM is given, and within which limits. With `auto` its CPU quota and weight, its balloon\n' +
        'and the readiness of its shadow follow the forecasts; with `recommend` that is only told; with `off` it has all.',
      examples: ['allocation set web --allocate auto', 'allocation set db --priority 9 --memory-min 512M'],
    },
    (command) => addAllocationOptions(command),
    async (session, args, options) => {
      const change = allocationOf(options);
      if (Object.keys(change).length === 0)
        throw parse.usageError('nothing is said that is to change', 'See `shadowvm allocation set --help`');
      const view = await session.client.allocate(parse.vmName(args[0]!), change);
      session.result(view, allocationDetails(view));
    },
  );

  addVerb(
    program,
    'capacity',
    {
      summary: 'tell whether the host has enough for all its VMs',
      description:
        'Tells whether the host has enough for all its VMs: what they are given, what they are expected to need together\n' +
        'in the next hour, and the chance that it is not there. New VMs are admitted by it.',
      examples: ['capacity', 'capacity --json'],
    },
    (command) => command,
    async (session) => {
      const view = await session.client.capacity();
      session.result(view, capacityText(view));
    },
  );
}

function allocationTable(allocations: AllocationView[]): string {
  return show.table(
    [
      { title: 'VM', value: ({ vm }) => vm },
      { title: 'MODE', value: ({ mode }) => mode },
      { title: 'PRIO', align: 'right', value: ({ priority }) => String(priority) },
      { title: 'CPU USED', align: 'right', value: ({ cpu }) => show.percent(cpu.usedPercent) },
      { title: 'QUOTA', align: 'right', value: ({ cpu }) => show.percent(cpu.quotaPercent) },
      { title: 'EXPECTED', align: 'right', value: ({ cpu }) => show.percent(cpu.forecast?.bound) },
      { title: 'MEM USED', align: 'right', value: ({ memory }) => show.bytes(memory.workingSetBytes) },
      { title: 'MEMORY', align: 'right', value: ({ memory }) => show.bytes(memory.bytes) },
      { title: 'STANDBY', value: ({ shadow }) => shadow?.standby ?? show.NONE },
      { title: 'RISK', align: 'right', value: ({ risk }) => show.percent(100 * risk.score) },
    ],
    allocations,
  );
}

function allocationDetails(view: AllocationView): string {
  const { cpu, memory, shadow, risk, decisions } = view;
  const quota = cpu.quotaPercent === null ? 'no quota' : `quota ${show.percent(cpu.quotaPercent)}`;
  const forecast =
    cpu.forecast === null
      ? 'nothing is expected yet'
      : `${show.percent(cpu.forecast.expected)} is expected and at most ${show.percent(cpu.forecast.bound)}`;
  return show.details([
    ['vm', view.vm],
    ['mode', `${view.mode}, priority ${view.priority}`],
    ['cpu', `${quota}, weight ${cpu.weight}; from ${show.percent(cpu.minPercent)} to ${show.percent(cpu.maxPercent)}`],
    ['', `uses ${show.percent(cpu.usedPercent)}, held back ${show.percent(cpu.throttledPercent)}; ${forecast}`],
    ['memory', `${show.bytes(memory.bytes)}; from ${show.bytes(memory.minBytes)} to ${show.bytes(memory.maxBytes)}`],
    ['', `working set ${show.bytes(memory.workingSetBytes)}, held limit ${show.bytes(memory.limitBytes)}`],
    [
      'shadow',
      shadow === null
        ? null
        : `${shadow.standby}, ${show.percent(shadow.cpuPercent)} of a CPU, ${show.bytes(shadow.memoryBytes)}`,
    ],
    ['risk', [show.percent(100 * risk.score), ...risk.reasons].join(', ')],
    ...decisions.map(({ at, resource, from, to, cause, why, applied }): [string, string] => [
      applied ? 'changed' : 'recommended',
      `${show.time(at)} ${resource} from ${from} to ${to} (${cause}): ${why}`,
    ]),
  ]);
}

function capacityText({ horizonS, vms, unknown, cpu, memory }: CapacityView): string {
  const chance = (share: number) => (share === 0 ? 'below 0.3%' : show.percent(100 * share));
  const rows = [
    { what: 'CPU', amount: show.percent, ...cpu },
    { what: 'memory', amount: show.bytes, ...memory },
  ];
  return (
    show.table(
      [
        { title: '', value: ({ what }) => what },
        { title: 'CAPACITY', align: 'right', value: ({ amount, capacity }) => amount(capacity) },
        { title: 'GIVEN', align: 'right', value: ({ amount, limits }) => amount(limits) },
        { title: 'USED', align: 'right', value: ({ amount, used }) => amount(used) },
        { title: 'EXPECTED', align: 'right', value: ({ amount, expected }) => amount(Math.round(expected)) },
        { title: 'ALL PEAKS', align: 'right', value: ({ amount, peaks }) => amount(Math.round(peaks)) },
        { title: 'SHORT', align: 'right', value: ({ shortChance }) => chance(shortChance) },
      ],
      rows,
    ) +
    `${vms} VMs${unknown === 0 ? '' : `, ${unknown} of them not known yet`}; SHORT is the chance that there is not enough in the next ${show.span(horizonS * 1000)}\n`
  );
}
