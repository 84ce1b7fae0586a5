/** `shadowvm vm …` */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { check, type Fault, runVmBodySchema } from '../api/schemas.js';
import { parseDisk } from '../vm/disk-text.js';
import { type ProbeCheck, parseProbe } from '../vm/probe.js';
import { formatBitsPerSecond, formatBytesExact } from '../vm/quantity-text.js';
import {
  type DiskCache,
  type DiskSpec,
  type Durability,
  type Mode,
  type StandbyLevel,
  type Trigger,
  VCPUS_MAX,
  type VmSpecInput,
} from '../vm/spec.js';
import { parseStandby } from '../vm/standby-text.js';
import { formatTrigger, parseTrigger } from '../vm/trigger-text.js';
import type { OnProgress, VmView } from '../vm/view.js';
import { type AllocationOptions, addAllocationOptions, allocationOf } from './allocation.js';
import * as parse from './parse.js';
import { addGroup, addVerb, type Session } from './session.js';
import { addEpochOptions, shadowDetails } from './shadow.js';
import * as show from './table.js';
import { attachConsole } from './vm-console.js';
import { printLog } from './vm-logs.js';

interface RunOptions extends AllocationOptions {
  image?: string;
  ram?: number;
  vcpus?: number;
  network?: VmSpecInput['network'];
  net?: string;
  bandwidth?: number;
  probe?: ProbeCheck[];
  probePeriod?: number;
  probeTimeout?: number;
  probeFailures?: number;
  publish?: parse.PublishedPort[];
  disk?: DiskSpec[];
  prefetch?: number;
  cache?: DiskCache;
  accelerator?: VmSpecInput['accelerator'];
  tracking?: VmSpecInput['tracking'];
  shadow?: 'manual' | 'always';
  shadowWhen?: Trigger[];
  mode?: Mode;
  standby?: StandbyLevel;
  durability?: Durability;
  keep?: number;
  maxBytes?: number;
  boot?: boolean;
  maxLag?: number;
  maxPaused?: number;
  cpuBudget?: number;
}

const nameOf = (args: string[]): string => parse.vmName(args[0]!);

export function addVmVerbs(program: Command): void {
  const vm = addGroup(program, 'vm', 'run, watch and end VMs', ['vm run web', 'vm ls', 'vm console web']);
  addRun(vm);

  addVerb(
    vm,
    'ls',
    { summary: 'list the VMs', examples: ['vm ls', "vm ls --json | jq '.vms[].address'"] },
    (command) => command,
    async (session) => {
      const vms = await session.client.listVms();
      session.result({ vms }, vms.length === 0 ? 'no VMs; run one with `shadowvm vm run NAME`\n' : vmTable(vms));
    },
  );

  addVerb(
    vm,
    'show <name>',
    { summary: 'show all about a VM', examples: ['vm show web', 'vm show web --json'] },
    (command) => command,
    async (session, args) => {
      const view = await session.client.showVm(nameOf(args));
      session.result(view, vmDetails(view));
    },
  );

  addVerb<{ timeout?: number; suspend?: boolean; snapshot?: boolean }>(
    vm,
    'stop <name>',
    {
      summary: 'save the newest state and end the VM',
      description:
        'Saves the newest state of the guest as a snapshot, from which `vm start` goes on, and asks the guest to power off.\n' +
        'It is killed when it has not done so after the timeout. With --suspend it is stopped as it is.',
      examples: ['vm stop web', 'vm stop web --suspend', 'vm stop web --no-snapshot --timeout 1m'],
    },
    (command) =>
      command
        .addOption(new Option('--timeout <time>', 'default: 10s').argParser(parse.timeoutMs))
        .option('--suspend', 'do not shut the guest down')
        .option('--no-snapshot', 'save nothing: the VM can only boot again'),
    async (session, args, options) => {
      const view = await session.withProgress((onProgress) =>
        session.client.stopVm(nameOf(args), {
          onProgress,
          how: options.suspend === true ? 'suspend' : 'shutdown',
          snapshot: options.snapshot !== false,
          ...(options.timeout === undefined ? {} : { timeoutMs: options.timeout }),
        }),
      );
      const saved = view.snapshot === null ? '' : `; its snapshot takes ${show.bytes(view.snapshot.bytesOnDisk)}`;
      session.result(view, `${view.name} is ${view.state}${saved}\n`);
    },
  );

  addVerb<{ boot?: boolean }>(
    vm,
    'start <name>',
    {
      summary: 'let a stopped VM go on from its snapshot',
      description:
        'Lets a stopped VM go on from its snapshot. Its memory is filled while it runs already. With --boot it begins at\n' +
        'power-on instead.',
      examples: ['vm start web', 'vm start web --boot'],
    },
    (command) => command.option('--boot', 'from power-on'),
    async (session, args, options) => {
      const view = await untilInterrupted(session, `${args[0]} is stopped again`, (signal, onProgress) =>
        session.client.startVm(nameOf(args), { onProgress, signal, boot: options.boot === true }),
      );
      if (view !== null) session.result(view, cameUp(view));
    },
  );

  addVerb<{ epoch?: number; before?: string }>(
    vm,
    'clone <name> <clone>',
    {
      summary: 'run a copy of a VM that goes on by itself',
      description:
        'Runs a new VM from the newest epoch of another one, or from an older epoch, with a name and addresses of its own.\n' +
        'The other VM needs a shadow or a snapshot, and goes on.',
      examples: ['vm clone web web-2', 'vm clone web web-before --before 30s'],
    },
    (command) => addEpochOptions(command),
    async (session, args, options) => {
      const clone = parse.vmName(args[1]!);
      const view = await untilInterrupted(session, `${clone} is taken away again`, (signal, onProgress) =>
        session.client.cloneVm(nameOf(args), clone, {
          onProgress,
          signal,
          epoch: options.epoch,
          before: options.before,
        }),
      );
      if (view !== null) session.result(view, cameUp(view));
    },
  );

  addVerb(
    vm,
    'mode <name> <mode>',
    {
      summary: 'change between async and strict',
      description:
        'async: what the guest sends leaves at once, and a failover rolls back at most the lag.\n' +
        'strict: it leaves when the epoch in which it was sent is committed, some ms later; what anybody outside has seen\n' +
        'is never rolled back, and connections survive a failover. On a tap, with a shadow.',
      examples: ['vm mode web strict', 'vm mode web async'],
    },
    (command) => command,
    async (session, args) => {
      const view = await session.client.changeMode(nameOf(args), parse.mode(args[1]!));
      session.result(view, `the mode of ${view.name} is ${modeWords(view)}\n`);
    },
  );

  addVerb(
    vm,
    'kill <name>',
    {
      summary: 'stop a VM at once',
      description: 'Stops a VM at once, like pulling the plug. It is meant, so its shadow does not take over.',
      examples: ['vm kill web'],
    },
    (command) => command,
    async (session, args) => {
      const view = await session.client.killVm(nameOf(args));
      session.result(view, `${view.name} is ${view.state}\n`);
    },
  );

  addVerb<{ force?: boolean }>(
    vm,
    'rm <name>',
    { summary: 'forget a stopped VM', examples: ['vm rm web', 'vm rm --force web'] },
    (command) => command.option('--force', 'kill it first if it runs'),
    async (session, args, options) => {
      const name = nameOf(args);
      await session.client.removeVm(name, { force: options.force === true });
      session.result({ removed: name }, `${name} is removed\n`);
    },
  );

  addVerb<{ qemu?: boolean; bytes?: number; follow?: boolean }>(
    vm,
    'logs <name>',
    {
      summary: "print the guest's console, or what QEMU said",
      examples: ['vm logs web', 'vm logs web --follow', 'vm logs web --qemu --bytes 1M'],
    },
    (command) =>
      command
        .option('--qemu', "QEMU's own messages instead of the console")
        .addOption(new Option('--bytes <size>', 'the last so many; default: 64K').argParser(parse.logBytes))
        .option('-f, --follow', 'go on with what is added, until the VM ends or Ctrl-C'),
    (session, args, options) => printLog(session, nameOf(args), options),
  );

  addVerb(
    vm,
    'console <name>',
    {
      summary: "attach to the guest's serial console",
      description:
        "Attaches to the guest's serial console and stays attached when the shadow takes over. Leave with Ctrl-].\n" +
        'When the input is no terminal it is sent as it is, and the output goes on after its end until Ctrl-C.',
      examples: ['vm console web', 'vm console web </dev/null | tee boot.log'],
    },
    (command) => command,
    (session, args) => attachConsole(session, nameOf(args)),
  );

  addVerb(
    vm,
    'exec <name> <command...>',
    {
      summary: 'run a shell command in the guest',
      description:
        'Runs a shell command in the guest and waits for it. The words are joined by spaces, as ssh does. What it prints\n' +
        'goes to the console; the exit code is 1 when the command ends with another one than 0.',
      examples: ['vm exec web -- redis-cli set key value', "vm exec web 'sync && echo done > /dev/console'"],
    },
    (command) => command,
    async (session, args) => {
      const result = await session.client.guestExec(nameOf(args), args.slice(1).join(' '));
      session.result(result, '');
      if (result.exitCode === 0) return;
      session.remark(`the command ended with exit code ${result.exitCode}`);
      process.exitCode = 1;
    },
  );

  addVerb(
    vm,
    'fault <name> <fault>',
    {
      hidden: true,
      summary: 'make a VM fail, as a drill',
      description:
        'Makes a VM fail, as a drill: `kill` ends QEMU with SIGKILL, `hang` stops it with SIGSTOP, `panic` makes the guest\n' +
        'kernel panic. With a shadow that is ready the VM goes on from there; without one this is the end of it.',
      examples: ['vm fault web kill', 'vm fault web hang --json'],
    },
    (command) => command,
    async (session, args) => {
      const name = nameOf(args);
      const fault = ['kill', 'hang', 'panic'].find((each): each is Fault => each === args[1]);
      if (fault === undefined)
        throw parse.usageError(`"${args[1]}" is not a fault`, 'The faults are kill, hang and panic');
      const result = await session.client.injectFault(name, fault);
      session.result(result, `${name}: ${fault}; see \`shadowvm events --vm ${name}\` for what came of it\n`);
    },
  );
}

function addRun(vm: Command): void {
  addVerb<RunOptions>(
    vm,
    'run <name>',
    {
      summary: 'boot a VM and wait until it answers',
      description: 'Boots a VM and waits until the guest answers. Ctrl-C before that takes the VM away again.',
      examples: [
        'vm run web',
        'vm run db --ram 1G --vcpus 2 --shadow always --max-lag 200ms',
        'vm run store --disk data=8G --disk base=/srv/debian.img,ro --shadow always',
        'vm run cache --net backend --publish 6379:6379 --bandwidth 100M',
        'vm run db --shadow always --probe redis:6379 --probe-period 1s',
        "vm run api --shadow-when 'cpu>60%/5s' --shadow-when 'network>10MB/s/3s'",
      ],
    },
    (command) =>
      addAllocationOptions(command)
        .option('--image <name>', 'default: default')
        .addOption(new Option('--ram <size>', 'default: 256M').argParser(parse.ramBytes))
        .addOption(
          new Option('--vcpus <n>', 'default: 1').argParser(parse.wholeNumber('the number of vCPUs', 1, VCPUS_MAX)),
        )
        .addOption(
          new Option('--network <mode>', 'default: auto, a tap where permitted').choices([
            'auto',
            'tap',
            'user',
            'none',
          ]),
        )
        .addOption(
          new Option('--net <name>', 'the network that its tap is on; default: default').argParser(parse.networkName),
        )
        .addOption(
          new Option('--publish <host:guest>', 'a port of this host that leads to it; repeatable').argParser(
            parse.collect(parse.publishedPort),
          ),
        )
        .addOption(
          new Option('--disk <name=what>', 'SIZE, PATH (copied) or PATH,ro (used as it is); repeatable').argParser(
            parse.collect(parseDisk),
          ),
        )
        .addOption(
          new Option('--cache <mode>', 'of its disks, see docs/disks.md; default: writeback').choices([
            'writeback',
            'none',
            'unsafe',
          ]),
        )
        .addOption(
          new Option(
            '--prefetch <size>',
            "of what it uses of its disks, kept in this host's page cache for a promotion, or off; default: 256M",
          ).argParser(parse.prefetchBytes),
        )
        .addOption(
          new Option('--bandwidth <rate>', 'bits per second in each direction; default: no limit').argParser(
            parse.bandwidth,
          ),
        )
        .addOption(new Option('--accelerator <which>', 'default: auto').choices(['auto', 'kvm', 'tcg']))
        .addOption(
          new Option('--tracking <how>', 'how changed pages are found; default: auto').choices([
            'auto',
            'write',
            'checksum',
          ]),
        )
        .addOption(new Option('--shadow <rule>', 'default: manual').choices(['manual', 'always']))
        .addOption(
          new Option('--shadow-when <trigger>', "make one when this holds, such as 'cpu>60%/5s'; repeatable")
            .argParser(parse.collect(parseTrigger))
            .conflicts('shadow'),
        )
        .addOption(
          new Option('--probe <what>', 'tcp:PORT, http:PORT/PATH, redis:PORT or exec:COMMAND; repeatable').argParser(
            parse.collect(parseProbe),
          ),
        )
        .addOption(new Option('--probe-period <time>', 'of all probes; default: 2s').argParser(parse.probeTime))
        .addOption(new Option('--probe-timeout <time>', 'of all probes; default: 1s').argParser(parse.probeTime))
        .addOption(
          new Option('--probe-failures <n>', 'in a row, and the guest counts as failed; default: 3').argParser(
            parse.wholeNumber('the number of failures', 1, 100),
          ),
        )
        .addOption(
          new Option('--mode <mode>', 'when packets leave: at once, or when committed; default: async').choices([
            'async',
            'strict',
          ]),
        )
        .addOption(
          new Option('--standby <level>', 'image, process, or resident[=PERCENT]; default: process').argParser(
            parseStandby,
          ),
        )
        .addOption(
          new Option('--durability <when>', 'when an epoch is surely on the disk; default: interval, a second').choices(
            ['none', 'interval', 'epoch'],
          ),
        )
        .addOption(new Option('--keep <time>', 'how far back the VM can go; default: 60s').argParser(parse.keepMs))
        .addOption(
          new Option('--max-bytes <size>', 'of the shadow image; default: twice the RAM and 512M').argParser(
            parse.imageBytes,
          ),
        )
        .option('--boot', 'from power-on, not from the golden snapshot of the image')
        .addOption(
          new Option('--max-lag <time>', 'what a failover may roll back; default: 500ms').argParser(parse.lagMs),
        )
        .addOption(
          new Option('--max-paused <share>', 'time the guest may stand still; default: 3%').argParser(
            parse.pausedShare,
          ),
        )
        .addOption(
          new Option('--cpu-budget <share>', 'of one host CPU, for its shadow; default: 15%').argParser(parse.cpuShare),
        ),
    async (session, args, options) => {
      // Checked here as well as in the daemon: what is malformed is told also when no daemon runs.
      const spec = check(runVmBodySchema, specOf(nameOf(args), options), 'the options of the VM');
      const view = await untilInterrupted(session, `the daemon takes ${spec.name} away again`, (signal, onProgress) =>
        session.client.runVm(spec, { onProgress, signal }),
      );
      if (view !== null) session.result(view, cameUp(view));
    },
  );
}

/** Waits for a VM to come up; Ctrl-C gives that up, which is told and is null. */
async function untilInterrupted(
  session: Session,
  consequence: string,
  work: (signal: AbortSignal, onProgress: OnProgress) => Promise<VmView>,
): Promise<VmView | null> {
  const giveUp = new AbortController();
  const interrupt = () => giveUp.abort();
  process.once('SIGINT', interrupt).once('SIGTERM', interrupt);
  try {
    return await session.withProgress((onProgress) => work(giveUp.signal, onProgress));
  } catch (error) {
    if (!giveUp.signal.aborted) throw error;
    session.remark(`interrupted: ${consequence}`);
    process.exitCode = 1;
    return null;
  } finally {
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
  }
}

const CAME_UP = {
  boot: 'booted',
  golden: 'up from the golden snapshot of its image',
  snapshot: 'up from its snapshot',
  clone: 'up from the epoch of the other VM',
};

function cameUp(view: VmView): string {
  return `${view.name} runs${at(view)}, ${CAME_UP[view.origin]} in ${show.ms(view.bootMs)}\n`;
}

function specOf(name: string, options: RunOptions): VmSpecInput {
  const { image, vcpus, network, net, publish, accelerator, tracking } = options;
  const pacing = {
    ...(options.maxLag === undefined ? {} : { maxLagMs: options.maxLag }),
    ...(options.maxPaused === undefined ? {} : { maxPausedShare: options.maxPaused }),
    ...(options.cpuBudget === undefined ? {} : { cpuBudget: options.cpuBudget }),
  };
  return {
    name,
    image,
    vcpus,
    network,
    net,
    publish,
    disks: options.disk?.map((disk) => ({ ...disk, path: disk.path === null ? null : resolve(disk.path) })),
    diskCache: options.cache,
    prefetchBytes: options.prefetch,
    accelerator,
    tracking,
    ramBytes: options.ram,
    bandwidthBitsPerSecond: options.bandwidth,
    probes: options.probe?.map((check) => ({
      check,
      periodMs: options.probePeriod,
      timeoutMs: options.probeTimeout,
      failures: options.probeFailures,
    })),
    pacing,
    mode: options.mode,
    standby: options.standby,
    durability: options.durability,
    retention: {
      ...(options.keep === undefined ? {} : { keepMs: options.keep }),
      ...(options.maxBytes === undefined ? {} : { maxBytes: options.maxBytes }),
    },
    start: options.boot === true ? 'boot' : 'golden',
    allocation: allocationOf(options),
    ...(options.shadow === undefined ? {} : { shadow: { kind: options.shadow } }),
    ...(options.shadowWhen === undefined ? {} : { shadow: { kind: 'when', triggers: options.shadowWhen } }),
  };
}

function at(view: VmView): string {
  if (view.address !== null) return ` at ${view.address}`;
  const ports = view.spec.publish.map(({ hostPort, guestPort }) => `${hostPort} → ${guestPort}`);
  return ports.length === 0 ? '' : ` with ports ${ports.join(', ')}`;
}

function vmTable(vms: VmView[]): string {
  return show.table(
    [
      { title: 'NAME', value: (vm) => vm.name },
      { title: 'STATE', value: (vm) => vm.state },
      { title: 'GEN', align: 'right', value: (vm) => String(vm.generation) },
      { title: 'IMAGE', value: (vm) => vm.spec.image },
      { title: 'VCPUS', align: 'right', value: (vm) => String(vm.spec.vcpus) },
      { title: 'RAM', align: 'right', value: (vm) => formatBytesExact(vm.spec.ramBytes) },
      { title: 'ADDRESS', value: (vm) => vm.address ?? show.NONE },
      { title: 'CPU', align: 'right', value: (vm) => show.percent(vm.usage?.cpuPercent) },
      { title: 'MEM', align: 'right', value: (vm) => show.percent(vm.usage?.memoryPercent) },
      { title: 'SHADOW', value: (vm) => vm.shadow?.state ?? show.NONE },
      { title: 'LAG', align: 'right', value: (vm) => show.ms(vm.shadow?.lagMs) },
    ],
    vms,
  );
}

/** What somebody who was woken up asks, in that order: how is it, would it survive, how close is the shadow, what is it. */
function vmDetails(vm: VmView): string {
  const { guest, usage, spec } = vm;
  const on = vm.networkMode === 'tap' ? `network ${spec.net}` : vm.networkMode;
  const network = [on, vm.tap, vm.mac].filter((part) => part !== null).join(' ');
  const { bandwidthBitsPerSecond: bandwidth } = spec;
  return show.details([
    ['name', vm.name],
    ['state', `${vm.state}, generation ${vm.generation}`],
    ['failure', vm.failure],
    ['uptime', guest === null ? null : `${show.span(guest.uptimeMs)}, ${CAME_UP[vm.origin]} in ${show.ms(vm.bootMs)}`],
    ['address', `${[vm.address ?? show.NONE, vm.address6].filter((each) => each !== null).join(', ')} (${network})`],
    ['bandwidth', bandwidth === null ? null : `${formatBitsPerSecond(bandwidth)}bit/s in each direction`],
    ['disks', spec.disks.map(diskWords).join(', ') || null],
    ['ports', spec.publish.map((port) => `${port.hostPort} → ${port.guestPort}`).join(', ') || null],
    ['process', vm.pid === null ? null : `${vm.pid} on ${vm.accelerator}`],
    [
      'usage',
      usage === null || vm.pid === null
        ? null
        : `CPU ${show.percent(usage.cpuPercent)}, memory ${show.percent(usage.memoryPercent)}, network ${show.bytesPerSecond(usage.networkBytesPerSecond)}`,
    ],
    ['says', guest === null || guest.app === show.NONE ? null : guest.app],
    ...vm.probes.map(({ probe, health, reason }): [string, string] => [
      'probe',
      `${probe} ${health}${reason === null ? '' : `: ${reason}`}`,
    ]),
    ['mode', spec.mode === 'async' && vm.strict === null ? null : modeWords(vm)],
    ['snapshot', vm.snapshot === null ? null : snapshotWords(vm)],
    ...(vm.shadow === null ? noShadow(vm) : shadowDetails(vm.shadow, spec.pacing.maxLagMs)),
    [
      'declared',
      `${vcpus(spec.vcpus)}, ${formatBytesExact(spec.ramBytes)} RAM, image ${spec.image}, shadow ${rule(vm)}`,
    ],
    ['created', show.time(vm.createdAt)],
  ]);
}

function diskWords({ name, sizeBytes, path, readOnly }: DiskSpec): string {
  return readOnly ? `${name} (${path}, read-only)` : `${name} (${formatBytesExact(sizeBytes ?? 0)})`;
}

function modeWords({ spec, strict }: VmView): string {
  return strict === 'suspended' ? 'strict, suspended: packets leave before they are committed' : spec.mode;
}

function snapshotWords({ name, snapshot }: VmView): string | null {
  if (snapshot === null) return null;
  return `epoch ${snapshot.epoch} of ${show.time(snapshot.cutAt)}, ${show.bytes(snapshot.bytesOnDisk)}; \`shadowvm vm start ${name}\` goes on from it`;
}

const vcpus = (count: number): string => `${count} vCPU${count === 1 ? '' : 's'}`;

function rule({ spec }: VmView): string {
  return spec.shadow.kind === 'when'
    ? `when ${spec.shadow.triggers.map(formatTrigger).join(' or ')}`
    : spec.shadow.kind;
}

function noShadow(vm: VmView): [string, string][] {
  if (vm.state === 'stopped' || vm.state === 'failed') return [];
  const how = {
    manual: `make one with \`shadowvm shadow create ${vm.name}\``,
    when: `one is made ${rule(vm)}`,
    always: 'one is on its way',
  }[vm.spec.shadow.kind];
  return [['shadow', `none, a failure would be the end of this VM; ${how}`]];
}
