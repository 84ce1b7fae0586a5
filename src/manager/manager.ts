/** The ShadowVM Manager: the VMs of one host, by name. It implements what the API may ask. */
import fs from 'node:fs';
import type { Duplex } from 'node:stream';
import type { z } from 'zod';
import { ShadowVmError } from '../errors.js';
import { findImage } from '../image/store.js';
import { lowestFreeAddress } from '../network/address.js';
import { PortHold } from '../network/ports.js';
import { probeTarget } from '../switchover/probe-target.js';
import { type NetworkSpecInput, type NetworkView, networkSpecSchema } from '../vm/network.js';
import type { VmSpecInput } from '../vm/spec.js';
import { vmSpecSchema } from '../vm/spec.js';
import type { Event, OnProgress, PromotionView, ShadowView, VmView } from '../vm/view.js';
import { ConsoleStream } from './console.js';
import { Host, type HostOptions } from './host.js';
import { readLogPart } from './log-file.js';
import type { LogPart, LogText, ManagerPort } from './port.js';
import { ManagedVm } from './vm.js';

/** How long guests may take to shut down when the manager ends. */
const CLOSE_TIMEOUT_MS = 5000;
const VMS_MAX = 512;

/** Opens the manager of a state directory and takes away what an earlier one left. @throws QEMU_MISSING, QEMU_TOO_OLD */
export async function openManager(options: HostOptions): Promise<Manager> {
  const host = await Host.open(options);
  const manager = new Manager(host);
  await manager.recover();
  return manager;
}

export class Manager implements ManagerPort {
  private readonly vms = new Map<string, ManagedVm>();
  private closing: Promise<void> | null = null;

  constructor(private readonly host: Host) {
    host.networks.vmsOn = (network) =>
      [...this.vms.values()]
        .filter((vm) => !vm.ended && vm.address !== null && vm.spec.net === network)
        .map((vm) => vm.spec.name);
  }

  /**
   * VMs of a manager that was killed: their processes end, what they left is taken away, they are listed as failed.
   * (To adopt them while they run on is not built yet.)
   */
  async recover(): Promise<void> {
    const { stateDir, events } = this.host.options;
    const records = await stateDir.loadVmRecords(events);
    const known = records.flatMap((record) =>
      record.process.filter(isRunning).map((process) => ({ vm: record.spec.name, ...process })),
    );
    // Killed between the start of a QEMU and the record of it, the manager left one that no record has.
    const unknown = qemusIn(stateDir.runDir).filter(({ pid }) => !known.some((process) => process.pid === pid));
    const orphans = [...known, ...unknown.map((process) => ({ vm: null, role: 'QEMU', ...process }))];
    for (const { vm, pid, role } of orphans) {
      process.kill(pid, 'SIGKILL');
      events.append('warn', 'vm.orphan-killed', vm, `killed the ${role} (pid ${pid}) that an earlier manager left`, {
        pid,
        role,
      });
    }
    for (const orphan of orphans) await gone(orphan);
    const swept = await this.host.sweep();
    if (swept.length > 0)
      events.append('warn', 'host.swept', null, `took away what an earlier manager left: ${swept.join(', ')}`, {
        swept,
      });
    for (const record of records) {
      const ended = record.state === 'stopped' || record.state === 'failed';
      const failure = ended ? null : 'the manager ended without stopping it';
      this.vms.set(record.spec.name, ManagedVm.ended(this.host, record, failure));
    }
  }

  listVms(): VmView[] {
    return [...this.vms.values()].map((vm) => vm.view());
  }

  showVm(name: string): VmView {
    return this.get(name, 'show the VM').view();
  }

  async runVm(input: VmSpecInput, progress: OnProgress, signal?: AbortSignal): Promise<VmView> {
    const attempted = 'run the VM';
    this.requireOpen(attempted);
    const spec = parseSpec(vmSpecSchema, input, attempted);
    // Told before anything is made; a second time below, as it may be gone by then.
    const onTap = this.host.tapNetwork(spec) !== null;
    const hold = await PortHold.take(
      spec.publish.map((port) => port.hostPort),
      onTap ? '0.0.0.0' : '127.0.0.1',
      spec.name,
    );
    await hold.release();
    const image = await findImage(this.host.options.imagesDir, spec.image);
    // Nothing waits from here to the entry in the map: of two runs with one name, one is refused, and a manager that
    // closes finds every VM in it.
    this.requireOpen(attempted);
    const taken = this.vms.get(spec.name);
    if (taken !== undefined)
      throw new ShadowVmError('VM_EXISTS', {
        attempted,
        subject: spec.name,
        reason: `a VM of this name exists and is ${taken.state}`,
        remedy: `Choose another name, or remove it: shadowvm vm rm ${spec.name}`,
      });
    if (this.vms.size >= VMS_MAX)
      throw new ShadowVmError('QUEUE_FULL', {
        attempted,
        subject: spec.name,
        reason: `the manager has ${VMS_MAX} VMs`,
      });
    const network = this.host.tapNetwork(spec);
    const addresses = new Set([...this.vms.values()].map((vm) => vm.address).filter((a) => a !== null));
    const address = network === null ? null : lowestFreeAddress(network.subnet, addresses);
    probeTarget(spec, address);
    const vm = new ManagedVm(this.host, spec, image, address);
    this.vms.set(spec.name, vm);
    const hungUp = () => void vm.cancelRun('who asked for it did not wait until it ran');
    signal?.addEventListener('abort', hungUp);
    try {
      const running = vm.run(progress);
      if (signal?.aborted) hungUp();
      await running;
    } catch (error) {
      this.vms.delete(spec.name);
      await this.host.options.stateDir.removeVmRecord(spec.name);
      throw error;
    } finally {
      signal?.removeEventListener('abort', hungUp);
    }
    return vm.view();
  }

  async stopVm(name: string, options: { timeoutMs: number }, progress: OnProgress): Promise<VmView> {
    const vm = this.get(name, 'stop the VM');
    await vm.stop(options.timeoutMs, progress);
    return vm.view();
  }

  async killVm(name: string): Promise<VmView> {
    const vm = this.get(name, 'kill the VM');
    await vm.kill();
    return vm.view();
  }

  async removeVm(name: string, options: { force: boolean }): Promise<void> {
    const vm = this.get(name, 'remove the VM');
    if (!vm.ended) {
      if (!options.force)
        throw new ShadowVmError('VM_BUSY', {
          attempted: 'remove the VM',
          subject: name,
          reason: `it is ${vm.state}`,
          remedy: `Stop it first (shadowvm vm stop ${name}), or use --force`,
        });
      await vm.kill();
    }
    this.vms.delete(name);
    await this.host.options.stateDir.removeVmRecord(name);
    this.host.options.events.append('info', 'vm.removed', name, 'the VM was removed', {});
  }

  readLog(name: string, which: 'console' | 'qemu', part: LogPart): Promise<LogText> {
    this.get(name, 'read the log');
    const { stateDir } = this.host.options;
    return readLogPart(which === 'console' ? stateDir.consoleLogPath(name) : stateDir.qemuLogPath(name), part);
  }

  async openConsole(name: string): Promise<Duplex> {
    const vm = this.get(name, 'open the console');
    vm.requireRunning('open the console');
    return new ConsoleStream(() => vm.consolePath());
  }

  injectFault(name: string, fault: 'kill' | 'hang' | 'panic'): Promise<{ atNs: string }> {
    return this.get(name, 'inject a fault').injectFault(fault);
  }

  async guestExec(name: string, command: string): Promise<{ exitCode: number }> {
    return { exitCode: await this.get(name, 'run a command in the guest').guestExec(command) };
  }

  listShadows(): ShadowView[] {
    return [...this.vms.values()].flatMap((vm) => vm.shadow?.view() ?? []);
  }

  async createShadow(name: string, progress: OnProgress): Promise<ShadowView> {
    this.requireOpen('create a shadow');
    const vm = this.get(name, 'create a shadow');
    await vm.createShadow(progress);
    const view = vm.shadow?.view();
    if (view === undefined)
      throw new ShadowVmError('SHADOW_NOT_FOUND', {
        attempted: 'create a shadow',
        subject: name,
        reason: 'it was removed or used up as soon as it was ready',
      });
    return view;
  }

  async promoteShadow(name: string): Promise<PromotionView> {
    this.requireOpen('promote the shadow');
    return this.get(name, 'promote the shadow').promote();
  }

  removeShadow(name: string): Promise<void> {
    return this.get(name, 'remove the shadow').removeShadow();
  }

  listNetworks(): NetworkView[] {
    return this.host.networks.list();
  }

  showNetwork(name: string): NetworkView {
    return this.host.networks.show(name);
  }

  async createNetwork(input: NetworkSpecInput): Promise<NetworkView> {
    this.requireOpen('create the network');
    return this.host.networks.create(parseSpec(networkSpecSchema, input, 'create the network'));
  }

  async removeNetwork(name: string): Promise<void> {
    this.requireOpen('remove the network');
    await this.host.networks.remove(name);
  }

  listEvents(filter: { since?: number; limit?: number; vm?: string }): Event[] {
    return this.host.options.events.list(filter);
  }

  followEvents(listener: (event: Event) => void): () => void {
    return this.host.options.events.follow(listener);
  }

  /** For tests and benchmarks in this process. @throws VM_NOT_FOUND */
  vmForTest(name: string): ManagedVm {
    return this.get(name, 'look at the VM');
  }

  close(): Promise<void> {
    this.closing ??= this.closeAll();
    return this.closing;
  }

  private async closeAll(): Promise<void> {
    const { log } = this.host.options;
    await Promise.all(
      [...this.vms.values()].map(async (vm) => {
        try {
          await vm.cancelRun('the manager is shutting down');
          if (vm.state === 'running') await vm.stop(CLOSE_TIMEOUT_MS, () => {});
        } catch (error) {
          log.warn({ err: error, vm: vm.spec.name }, 'stopping a VM at the end');
        }
        await vm.release(); // also what was not running but promoting
      }),
    );
    await this.host.close();
  }

  private get(name: string, attempted: string): ManagedVm {
    const vm = this.vms.get(name);
    if (vm === undefined)
      throw new ShadowVmError('VM_NOT_FOUND', {
        attempted,
        subject: name,
        reason: 'no VM has this name',
        remedy: 'See which there are: shadowvm vm ls',
      });
    return vm;
  }

  private requireOpen(attempted: string): void {
    if (this.closing !== null)
      throw new ShadowVmError('DAEMON_STOPPING', { attempted, reason: 'the manager is shutting down' });
  }
}

function parseSpec<T>(schema: z.ZodType<T>, input: unknown, attempted: string): T {
  const parsed = schema.safeParse(input);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted,
    subject: issue?.path.join('.') || 'specification',
    reason: issue?.message ?? 'it is not a specification',
  });
}

interface RecordedProcess {
  pid: number;
  startTicks: number;
}

/** Fields of /proc/PID/stat from the state (the third) on; null when there is no such process. */
function statFields(pid: number): string[] | null {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  } catch {
    return null;
  }
}

/** Whether it is still the process of the record, and not a later one with its number. */
function isRunning({ pid, startTicks }: RecordedProcess): boolean {
  const fields = statFields(pid);
  return fields !== null && Number(fields[19]) === startTicks && fields[0] !== 'Z';
}

/** Processes whose command line has a QMP socket in this folder, which only managers of this state directory use. */
function qemusIn(runDir: string): RecordedProcess[] {
  const mark = `socket,id=qmp,path=${runDir}/`;
  return fs
    .readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && readText(`/proc/${pid}/cmdline`).includes(mark))
    .map((pid) => ({ pid, startTicks: Number(statFields(pid)?.[19]) }))
    .filter(isRunning);
}

/** Empty when it went away. */
function readText(path: string): string {
  try {
    return fs.readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

async function gone(process: RecordedProcess): Promise<void> {
  for (let i = 0; i < 500 && isRunning(process); i++) await new Promise((resolve) => setTimeout(resolve, 10));
}
