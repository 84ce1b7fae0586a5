/** The ShadowVM Manager: the VMs of one host, by name. It implements what the API may ask. */
import type { Duplex } from 'node:stream';
import type { z } from 'zod';
import { resolveDisks } from '../disk/source-file.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { findImage } from '../image/store.js';
import { lowestFreeAddress } from '../network/address.js';
import { PortHold } from '../network/ports.js';
import { noSnapshot } from '../shadow/snapshot.js';
import { probeTarget } from '../switchover/probe-target.js';
import { type NetworkSpecInput, type NetworkView, networkSpecSchema } from '../vm/network.js';
import type { Mode, StandbyLevel, VmSpec, VmSpecInput } from '../vm/spec.js';
import { vmSpecSchema } from '../vm/spec.js';
import type {
  EpochView,
  Event,
  ExportView,
  OnProgress,
  PromotionView,
  ShadowView,
  SnapshotView,
  VerifyView,
  VmView,
  WantedEpoch,
} from '../vm/view.js';
import { recoverVms } from './adoption.js';
import { ConsoleStream } from './console.js';
import { DiskDesk } from './disk-desk.js';
import { Host, type HostOptions } from './host.js';
import { readLogPart } from './log-file.js';
import { Origins } from './origins.js';
import type { LogPart, LogText, ManagerPort, StopOptions } from './port.js';
import type { StartFrom } from './primary-start.js';
import { exportSnapshot, importSnapshot, verifySnapshot } from './snapshots.js';
import { requireTap } from './strict-mode.js';
import { UsageDesk, vmNotFound } from './usage-desk.js';
import { verifyByStart } from './verify-start.js';
import { ManagedVm } from './vm.js';

/** How long guests may take to shut down when the manager ends. */
const CLOSE_TIMEOUT_MS = 5000;
const VMS_MAX = 512;

/** Opens the manager of a state directory and goes on with what an earlier one left. @throws QEMU_MISSING, QEMU_TOO_OLD */
export async function openManager(options: HostOptions): Promise<Manager> {
  const host = await Host.open(options);
  const manager = new Manager(host);
  await manager.recover();
  return manager;
}

export class Manager implements ManagerPort {
  private readonly vms = new Map<string, ManagedVm>();
  private closing: Promise<void> | null = null;

  private readonly origins: Origins;
  readonly usage: UsageDesk;
  readonly disks: DiskDesk;

  constructor(private readonly host: Host) {
    this.origins = new Origins(host);
    this.usage = new UsageDesk(host, this.vms);
    this.disks = new DiskDesk(this.vms);
    host.networks.vmsOn = (network) =>
      [...this.vms.values()]
        .filter((vm) => !vm.ended && vm.address !== null && vm.spec.net === network)
        .map((vm) => vm.spec.name);
  }

  /** Takes over the VMs of a manager that was killed, and wakes those up whose QEMU has died since. */
  async recover(): Promise<void> {
    const recovered = await recoverVms(this.host);
    for (const { vm } of recovered) this.vms.set(vm.spec.name, vm);
    // In the background: the API is there meanwhile, and one VM that can not be woken up keeps no other from it.
    for (const { vm, revive } of recovered) if (revive) void this.revive(vm);
    this.usage.start();
  }

  /** A VM that died while no manager was there goes on from its newest epoch, as after any death. */
  private async revive(dead: ManagedVm): Promise<void> {
    const { name } = dead.spec;
    const { events } = this.host.options;
    events.append('error', 'failure.detected', name, 'its QEMU died while no manager was there', {
      cause: 'process-died',
    });
    const record = { ...dead.core.record(), generation: dead.core.generation + 1 };
    try {
      const vm = new ManagedVm(this.host, dead.spec, this.freeAddress(dead.spec, dead.core.lastAddress), record);
      this.vms.set(name, vm);
      const start = (giveUp: AbortSignal) => this.origins.snapshot(vm.core, () => {}, giveUp);
      await this.bringUp(vm, start, () => {}, undefined, dead);
    } catch (error) {
      const why = messageOf(error);
      events.append('error', 'vm.lost', name, `the VM is dead and its shadow image could not take over: ${why}`, {});
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
    const parsed = parseSpec(vmSpecSchema, input, attempted);
    const spec = { ...parsed, disks: resolveDisks(parsed.disks) };
    await this.requireFreePorts(spec);
    const image = await findImage(this.host.options.imagesDir, spec.image);
    this.requireRoom(spec, attempted);
    const vm = this.admit(spec, attempted);
    return this.bringUp(vm, (giveUp) => this.origins.fresh(vm.core, image, progress, giveUp), progress, signal);
  }

  async startVm(name: string, options: { boot: boolean }, progress: OnProgress, signal?: AbortSignal): Promise<VmView> {
    const attempted = 'start the VM';
    this.requireOpen(attempted);
    const before = this.get(name, attempted);
    if (!before.ended)
      throw new ShadowVmError('VM_BUSY', { attempted, subject: name, reason: `it is ${before.state}` });
    if (!options.boot && before.core.snapshot === null) throw noSnapshot(attempted, name);
    await this.requireFreePorts(before.spec);
    this.requireRoom(before.spec, attempted);
    this.requireOpen(attempted);
    const vm = new ManagedVm(
      this.host,
      before.spec,
      this.freeAddress(before.spec, before.core.lastAddress),
      before.core,
    );
    vm.core.snapshot = before.core.snapshot;
    this.vms.set(name, vm);
    const start = (giveUp: AbortSignal) =>
      options.boot ? this.origins.again(vm.core, progress) : this.origins.snapshot(vm.core, progress, giveUp);
    // What fails leaves the VM as it was, with its snapshot.
    return this.bringUp(vm, start, progress, signal, before);
  }

  async cloneVm(
    name: string,
    clone: { name: string; wanted: WantedEpoch | null },
    progress: OnProgress,
    signal?: AbortSignal,
  ): Promise<VmView> {
    const attempted = 'clone the VM';
    this.requireOpen(attempted);
    const source = this.get(name, attempted);
    const spec = parseSpec(vmSpecSchema, { ...source.spec, name: clone.name, publish: [] }, attempted);
    this.requireRoom(spec, attempted);
    const vm = this.admit(spec, attempted);
    const start = (giveUp: AbortSignal) => this.origins.clone(vm.core, source, clone.wanted, progress, giveUp);
    return this.bringUp(vm, start, progress, signal);
  }

  /** Now, and as it is expected in the next hour. @throws NO_SPACE */
  private requireRoom(spec: VmSpec, attempted: string): void {
    this.host.requireMemory(spec.ramBytes, attempted, spec.name);
    this.usage.allocation.requireRoom(spec, attempted);
  }

  /** Nothing waits in here: of two VMs with one name, one is refused, and a manager that closes finds every VM. */
  private admit(spec: VmSpec, attempted: string): ManagedVm {
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
    const address = this.freeAddress(spec, null);
    requireTap(spec.mode, address !== null ? 'tap' : spec.network === 'none' ? 'none' : 'user', spec.name);
    probeTarget(spec, address);
    const vm = new ManagedVm(this.host, spec, address);
    this.vms.set(spec.name, vm);
    return vm;
  }

  private freeAddress(spec: VmSpec, wanted: string | null): string | null {
    const network = this.host.tapNetwork(spec);
    if (network === null) return null;
    const others = [...this.vms.values()].filter((vm) => vm.spec.name !== spec.name);
    const taken = new Set(others.map((vm) => vm.address).filter((address) => address !== null));
    return wanted !== null && !taken.has(wanted) ? wanted : lowestFreeAddress(network.subnet, taken);
  }

  /** Told before anything is made; it may be otherwise by the time of the start. @throws INVALID_ARGUMENT */
  private async requireFreePorts(spec: VmSpec): Promise<void> {
    const onTap = this.host.tapNetwork(spec) !== null;
    const hold = await PortHold.take(
      spec.publish.map((port) => port.hostPort),
      onTap ? '0.0.0.0' : '127.0.0.1',
      spec.name,
    );
    await hold.release();
  }

  /** Runs a VM that is in the map already. `before`: what is put back when that fails; without it the VM is forgotten. */
  private async bringUp(
    vm: ManagedVm,
    prepare: (giveUp: AbortSignal) => Promise<StartFrom>,
    progress: OnProgress,
    signal: AbortSignal | undefined,
    before: ManagedVm | null = null,
  ): Promise<VmView> {
    const { name } = vm.spec;
    const hungUp = () => void vm.cancelRun('who asked for it did not wait until it ran');
    signal?.addEventListener('abort', hungUp);
    try {
      const running = vm.run(prepare, progress);
      if (signal?.aborted) hungUp();
      await running;
    } catch (error) {
      if (before === null) {
        this.vms.delete(name);
        await this.host.options.stateDir.removeVmRecord(name);
      } else {
        this.vms.set(name, before);
        await before.core.save();
      }
      throw error;
    } finally {
      signal?.removeEventListener('abort', hungUp);
    }
    return vm.view();
  }

  async stopVm(name: string, options: StopOptions, progress: OnProgress): Promise<VmView> {
    const vm = this.get(name, 'stop the VM');
    await vm.stop(options, progress);
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
    this.usage.forget(name);
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
    return this.shadowView(vm, 'create a shadow');
  }

  private shadowView(vm: ManagedVm, attempted: string): ShadowView {
    const view = vm.shadow?.view();
    if (view !== undefined) return view;
    throw new ShadowVmError('SHADOW_NOT_FOUND', {
      attempted,
      subject: vm.spec.name,
      reason: 'it was removed or used up meanwhile',
    });
  }

  async promoteShadow(name: string, wanted: WantedEpoch | null): Promise<PromotionView> {
    this.requireOpen('promote the shadow');
    return this.get(name, 'promote the shadow').promote(wanted);
  }

  listEpochs(name: string): EpochView[] {
    return this.get(name, 'list the epochs').listEpochs();
  }

  async changeStandby(name: string, level: StandbyLevel): Promise<ShadowView> {
    const vm = this.get(name, 'change the standby');
    await vm.changeStandby(level);
    return this.shadowView(vm, 'change the standby');
  }

  async changeMode(name: string, mode: Mode): Promise<VmView> {
    const vm = this.get(name, 'change the mode');
    await vm.changeMode(mode);
    return vm.view();
  }

  async verifyShadow(name: string, progress: OnProgress): Promise<VerifyView> {
    this.requireOpen('verify the shadow');
    return verifyByStart(this.get(name, 'verify the shadow').core, this.host, progress);
  }

  listSnapshots(): SnapshotView[] {
    return [...this.vms.values()].flatMap((vm) => vm.view().snapshot ?? []);
  }

  exportSnapshot(name: string, path: string, progress: OnProgress): Promise<ExportView> {
    return exportSnapshot(this.get(name, 'export the snapshot').core, path, progress);
  }

  async importSnapshot(path: string, name: string | null, progress: OnProgress): Promise<SnapshotView> {
    const attempted = 'import the snapshot';
    this.requireOpen(attempted);
    const record = await importSnapshot(this.host, path, {
      name,
      taken: (wanted) => this.vms.has(wanted),
      progress,
    });
    const vm = ManagedVm.ended(this.host, record, null);
    this.vms.set(record.spec.name, vm);
    return record.snapshot as SnapshotView;
  }

  verifySnapshot(name: string, progress: OnProgress): Promise<VerifyView> {
    return verifySnapshot(this.get(name, 'verify the snapshot'), progress);
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
          // What was protected is kept as it is, and can be started again; what was not is shut down.
          const kept = vm.shadow !== null;
          const how = kept ? 'suspend' : 'shutdown';
          if (vm.state === 'running') await vm.stop({ timeoutMs: CLOSE_TIMEOUT_MS, how, snapshot: kept }, () => {});
        } catch (error) {
          log.warn({ err: error, vm: vm.spec.name }, 'stopping a VM at the end');
        }
        await vm.release(); // also what was not running but promoting
      }),
    );
    await this.usage.close();
    await this.host.close();
  }

  private get(name: string, attempted: string): ManagedVm {
    const vm = this.vms.get(name);
    if (vm === undefined) throw vmNotFound(name, attempted);
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
