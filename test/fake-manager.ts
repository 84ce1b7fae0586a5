/**
 * A ManagerPort without VMs behind it, for tests of what is between a user and the manager: the protocol and the command
 * line. It keeps names and states, and does what the test put into its hooks. Everything about VMs is tested with QEMU.
 */
import { Duplex } from 'node:stream';
import { ShadowVmError } from '../src/errors.js';
import type { LogPart, LogText, ManagerPort, StopOptions } from '../src/manager/port.js';
import type { NetworkSpecInput, NetworkView } from '../src/vm/network.js';
import { type Mode, type StandbyLevel, type VmSpecInput, vmSpecSchema } from '../src/vm/spec.js';
import { formatStandby } from '../src/vm/standby-text.js';
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
} from '../src/vm/view.js';
import { FakeDisks } from './fake-disks.js';
import { FakeUsage } from './fake-usage.js';

const noQuantiles = { count: 0, p50: null, p99: null, max: null };

export function vmView(name: string, more: Partial<VmView> = {}): VmView {
  return {
    name,
    state: 'running',
    generation: 1,
    spec: vmSpecSchema.parse({ name }),
    accelerator: 'tcg',
    pid: 4711,
    address: '10.77.0.2',
    address6: null,
    mac: '52:54:00:00:00:02',
    tap: 'svt0',
    networkMode: 'tap',
    createdAt: '2026-01-01T00:00:00.000Z',
    origin: 'boot',
    bootMs: 1234.5,
    guest: { beats: 10, uptimeMs: 61_000, memTotalKiB: 250_000, memAvailableKiB: 200_000, app: '-' },
    usage: { cpuPercent: 12.34, memoryPercent: 20, networkBytesPerSecond: 1500 },
    strict: null,
    probes: [],
    shadow: null,
    snapshot: null,
    failure: null,
    ...more,
  };
}

export function shadowView(vm: string, more: Partial<ShadowView> = {}): ShadowView {
  return {
    vm,
    state: 'ready',
    standby: 'process',
    createdBecause: 'by hand',
    pid: 4712,
    tracking: 'write',
    epoch: 42,
    lagMs: 37.25,
    pauseMs: { count: 42, p50: 1.5, p99: 3.25, max: 4 },
    lagMsAtCommit: noQuantiles,
    pagesScanned: 1000,
    pagesChanged: 100,
    diskPagesChanged: 0,
    pagesDroppedByChecksum: 10,
    pagesRepaired: 0,
    bytesCopied: 409_600,
    bytesStored: 100_000,
    epochsAborted: 0,
    intervalMs: 50,
    image: { bytesOnDisk: 3_000_000, liveBytes: 2_000_000, indexBytes: 1_048_576, oldestEpoch: 7, headEpoch: 42 },
    ...more,
  };
}

function networkView(name: string, more: Partial<NetworkView> = {}): NetworkView {
  return {
    name,
    subnet: '10.77.0.0/24',
    subnet6: null,
    nat: false,
    bridge: 'shadowvm0',
    hostAddress: '10.77.0.1',
    hostAddress6: null,
    up: true,
    vms: [],
    ...more,
  };
}

export function epochView(epoch: number): EpochView {
  const cutAt = new Date(Date.UTC(2026, 0, 1) + 100 * epoch).toISOString();
  return { epoch, generation: 1, cutAt, changedPages: 100, storedBytes: 120_000, durable: epoch < 42 };
}

export function snapshotView(vm: string): SnapshotView {
  return { vm, epoch: 42, cutAt: '2026-01-01T00:00:04.200Z', bytesOnDisk: 9_000_000, storedPages: 20_000 };
}

export class FakeManager implements ManagerPort {
  readonly vms = new Map<string, VmView>();
  readonly networks = new Map([['default', networkView('default')]]);
  readonly events: Event[] = [];
  readonly calls: string[] = [];
  readonly usage = new FakeUsage((name) => this.showVm(name));
  readonly disks = new FakeDisks((name) => this.showVm(name));
  /** What the logs of all VMs have got since they booted. */
  logged = '';
  readonly #listeners = new Set<(event: Event) => void>();
  /** Awaited in the middle of `runVm` and `createShadow`. */
  midway: (progress: OnProgress) => Promise<void> = async () => {};

  get followerCount(): number {
    return this.#listeners.size;
  }

  emit(type: string, vm: string | null = null, data: Record<string, unknown> = {}): void {
    const event: Event = {
      seq: this.events.length + 1,
      at: '2026-01-01T00:00:00.000Z',
      atNs: '1000000000',
      level: 'info',
      type,
      vm,
      message: `it was ${type}`,
      data,
    };
    this.events.push(event);
    for (const listener of this.#listeners) listener(event);
  }

  #find(name: string): VmView {
    const vm = this.vms.get(name);
    if (vm !== undefined) return vm;
    throw new ShadowVmError('VM_NOT_FOUND', {
      attempted: 'find the VM',
      subject: name,
      reason: 'there is no VM of this name',
      remedy: 'See `shadowvm vm ls`',
    });
  }

  listVms(): VmView[] {
    return [...this.vms.values()];
  }
  showVm(name: string): VmView {
    return this.#find(name);
  }
  async runVm(input: VmSpecInput, progress: OnProgress, signal?: AbortSignal): Promise<VmView> {
    this.calls.push(`run ${input.name}`);
    if (this.vms.has(input.name))
      throw new ShadowVmError('VM_EXISTS', {
        attempted: 'run the VM',
        subject: input.name,
        reason: 'there is a VM of this name already',
        remedy: 'Choose another name, or remove that one with `shadowvm vm rm`',
      });
    const vm = vmView(input.name, { spec: vmSpecSchema.parse(input), state: 'booting' });
    this.vms.set(input.name, vm);
    progress({ message: 'starting QEMU', done: 0.1 });
    const hungUp = new Promise<never>((_, reject) => {
      signal?.addEventListener('abort', () => {
        this.calls.push(`take ${input.name} back`);
        this.vms.delete(input.name);
        reject(new ShadowVmError('CANCELLED', { attempted: 'run the VM', subject: input.name, reason: 'hung up' }));
      });
    });
    await Promise.race([this.midway(progress), hungUp]);
    progress({ message: 'the guest boots', done: 0.5 });
    vm.state = 'running';
    return vm;
  }
  async startVm(name: string, options: { boot: boolean }, progress: OnProgress): Promise<VmView> {
    this.calls.push(`start ${name} ${options.boot}`);
    const vm = this.#find(name);
    progress({ message: 'the guest wakes up' });
    vm.state = 'running';
    return vm;
  }
  async cloneVm(name: string, clone: { name: string; wanted: WantedEpoch | null }): Promise<VmView> {
    this.calls.push(`clone ${name} ${clone.name} ${JSON.stringify(clone.wanted)}`);
    const vm = vmView(clone.name, { origin: 'clone', spec: this.#find(name).spec });
    this.vms.set(clone.name, vm);
    return vm;
  }
  async stopVm(name: string, options: StopOptions, progress: OnProgress): Promise<VmView> {
    this.calls.push(`stop ${name} ${options.timeoutMs} ${options.how} ${options.snapshot}`);
    const vm = this.#find(name);
    progress({ message: 'waiting for the guest' });
    vm.state = 'stopped';
    return vm;
  }
  async killVm(name: string): Promise<VmView> {
    const vm = this.#find(name);
    vm.state = 'stopped';
    return vm;
  }
  async removeVm(name: string, options: { force: boolean }): Promise<void> {
    this.calls.push(`remove ${name} ${options.force}`);
    const vm = this.#find(name);
    if (vm.state === 'running' && !options.force)
      throw new ShadowVmError('VM_BUSY', {
        attempted: 'remove the VM',
        subject: name,
        reason: 'it runs',
        remedy: 'Stop it first, or use --force',
      });
    this.vms.delete(name);
  }
  async readLog(name: string, which: 'console' | 'qemu', { maxBytes, fromByte }: LogPart): Promise<LogText> {
    this.#find(name);
    const log = `${which} of ${name}\nlogin:\n${this.logged}`;
    const text = fromByte === undefined ? log.slice(-maxBytes) : log.slice(fromByte, fromByte + maxBytes);
    return { text, nextByte: fromByte === undefined ? log.length : fromByte + text.length };
  }
  async openConsole(name: string): Promise<Duplex> {
    this.#find(name);
    // Answers each input with its upper case, as no terminal does by itself.
    const line: Duplex = new Duplex({
      read() {},
      write: (chunk: Buffer, _encoding, done) => {
        line.push(chunk.toString().toUpperCase());
        done();
      },
      destroy: (error, done) => {
        this.calls.push(`console of ${name} closed`);
        done(error);
      },
    });
    line.push(`console of ${name}\r\n`);
    return line;
  }
  async injectFault(name: string, fault: 'kill' | 'hang' | 'panic'): Promise<{ atNs: string }> {
    this.#find(name);
    this.calls.push(`fault ${name} ${fault}`);
    return { atNs: '12345' };
  }
  async guestExec(name: string, command: string): Promise<{ exitCode: number }> {
    this.#find(name);
    this.calls.push(`exec ${name} ${command}`);
    return { exitCode: command === 'false' ? 1 : 0 };
  }
  listShadows(): ShadowView[] {
    return this.listVms().flatMap((vm) => vm.shadow ?? []);
  }
  async createShadow(name: string, progress: OnProgress): Promise<ShadowView> {
    const vm = this.#find(name);
    if (vm.shadow !== null)
      throw new ShadowVmError('SHADOW_EXISTS', { attempted: 'create the shadow', subject: name, reason: 'it has one' });
    progress({ message: 'first copy', done: 0.25 });
    await this.midway(progress);
    vm.shadow = shadowView(name);
    return vm.shadow;
  }
  async promoteShadow(name: string, wanted: WantedEpoch | null): Promise<PromotionView> {
    this.calls.push(`promote ${name} ${JSON.stringify(wanted)}`);
    const vm = this.#find(name);
    if (vm.shadow === null)
      throw new ShadowVmError('SHADOW_NOT_FOUND', { attempted: 'promote the shadow', subject: name, reason: 'none' });
    if (vm.shadow.state !== 'ready')
      throw new ShadowVmError('SHADOW_NOT_READY', {
        attempted: 'promote the shadow',
        subject: name,
        reason: `it is ${vm.shadow.state}`,
      });
    vm.generation++;
    return {
      vm: name,
      reason: 'by hand',
      planned: true,
      generation: vm.generation,
      epoch: 42,
      cutAtNs: '1',
      decidedAtNs: '2',
      fencedAtNs: '3',
      resumedAtNs: '4',
      resumeMs: 8.5,
      lagMs: 0,
    };
  }
  async removeShadow(name: string): Promise<void> {
    this.#find(name).shadow = null;
  }
  listEpochs(name: string): EpochView[] {
    this.#find(name);
    return [epochView(41), epochView(42)];
  }
  async changeMode(name: string, mode: Mode): Promise<VmView> {
    this.calls.push(`mode ${name} ${mode}`);
    const vm = this.#find(name);
    Object.assign(vm, { spec: { ...vm.spec, mode }, strict: mode === 'strict' ? 'suspended' : null });
    return vm;
  }
  async changeStandby(name: string, level: StandbyLevel): Promise<ShadowView> {
    this.calls.push(`standby ${name} ${formatStandby(level)}`);
    return shadowView(name, { standby: formatStandby(level) });
  }
  async verifyShadow(name: string): Promise<VerifyView> {
    this.#find(name);
    return { vm: name, epoch: 42, pages: 65_536, damagedPages: 0, firstBeatMs: 55.5, ms: 900 };
  }
  listSnapshots(): SnapshotView[] {
    return this.listVms().flatMap((vm) => vm.snapshot ?? []);
  }
  async exportSnapshot(name: string, path: string): Promise<ExportView> {
    this.calls.push(`export ${name} ${path}`);
    return { vm: name, path, epoch: 42, bytes: 10_000_000, pages: 20_000 };
  }
  async importSnapshot(path: string, name: string | null): Promise<SnapshotView> {
    this.calls.push(`import ${path} ${name}`);
    return { ...snapshotView(name ?? 'web') };
  }
  async verifySnapshot(name: string): Promise<VerifyView> {
    this.#find(name);
    return { vm: name, epoch: 42, pages: 65_536, damagedPages: 0, firstBeatMs: null, ms: 90 };
  }
  listNetworks(): NetworkView[] {
    return [...this.networks.values()];
  }
  showNetwork(name: string): NetworkView {
    const network = this.networks.get(name);
    if (network !== undefined) return network;
    throw new ShadowVmError('NETWORK_NOT_FOUND', {
      attempted: 'find the network',
      subject: name,
      reason: 'there is no network of this name',
    });
  }
  async createNetwork(input: NetworkSpecInput): Promise<NetworkView> {
    this.calls.push(`create ${JSON.stringify(input)}`);
    this.networks.set(input.name, networkView(input.name, { subnet: input.subnet, nat: input.nat === true }));
    return this.showNetwork(input.name);
  }
  async removeNetwork(name: string): Promise<void> {
    this.showNetwork(name);
    this.networks.delete(name);
  }
  listEvents(filter: { since?: number; limit?: number; vm?: string }): Event[] {
    const found = this.events.filter(
      (event) => event.seq > (filter.since ?? 0) && (filter.vm === undefined || event.vm === filter.vm),
    );
    return filter.limit === undefined ? found : found.slice(-filter.limit);
  }
  followEvents(listener: (event: Event) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
  async close(): Promise<void> {}
}
