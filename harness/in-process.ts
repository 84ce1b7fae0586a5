/** A manager in this process, for benchmarks and tests that look inside; the CLI and the demo use harness/daemon.ts. */
import { mkdtempSync, rmSync } from 'node:fs';
import pino from 'pino';
import { EventLog } from '../src/manager/events.js';
import type { HostOptions } from '../src/manager/host.js';
import { type Manager, openManager } from '../src/manager/manager.js';
import { StateDir } from '../src/manager/state-dir.js';
import type { QemuProcess } from '../src/qemu/process.js';
import type { VmSpecInput } from '../src/vm/spec.js';
import type { Event, PromotionView, VmView } from '../src/vm/view.js';
import { IMAGES_DIR } from './checkout.js';
import { statePrefix } from './killed-runs.js';

const TIMEOUT_MS = 60_000;

export class InProcessManager {
  private constructor(
    readonly port: Manager,
    readonly stateDir: StateDir,
    readonly events: EventLog,
  ) {}

  static async open(options: Partial<HostOptions> = {}): Promise<InProcessManager> {
    const stateDir = StateDir.open(mkdtempSync(statePrefix()));
    const log = pino({ level: 'error' }, pino.destination(2));
    const events = await EventLog.open(stateDir.eventsPath, { log });
    const port = await openManager({ stateDir, imagesDir: IMAGES_DIR, events, log, ...options });
    return new InProcessManager(port, stateDir, events);
  }

  runVm(spec: VmSpecInput): Promise<VmView> {
    return this.port.runVm(spec, () => {});
  }

  /** The QEMUs of a running VM. */
  processes(name: string): { primary: QemuProcess; shadow: QemuProcess | null } {
    const { primary, shadow } = this.port.vmForTest(name).processesForTest;
    if (primary === null) throw new Error(`${name} has no primary: ${this.recent()}`);
    return { primary, shadow };
  }

  /** Resolves when the VM runs and its shadow is ready, now or later. */
  async shadowReady(name: string): Promise<void> {
    await this.until(`a ready shadow of ${name}`, () => {
      const vm = this.port.showVm(name);
      return vm.state === 'running' && vm.shadow?.state === 'ready';
    });
  }

  /** Resolves when an epoch is committed that was cut after this moment. @returns its number */
  async epochFromNowOn(name: string): Promise<number> {
    const newest = () => this.port.showVm(name).shadow;
    const startMs = performance.now();
    await this.until('an epoch', () => (newest()?.lagMs ?? Number.POSITIVE_INFINITY) < performance.now() - startMs);
    return newest()?.epoch as number;
  }

  /** In strict mode from now on. */
  async makeStrict(name: string): Promise<void> {
    await this.port.changeMode(name, 'strict');
    await this.until(`strict mode of ${name}`, () => this.port.showVm(name).strict === 'active');
  }

  /** Nothing that a VM in strict mode sent has left before it was committed: it was never suspended. */
  wasStrict(name: string): boolean {
    const suspended = this.events.list({ vm: name }).some(({ type }) => type === 'strict.suspended');
    return this.port.showVm(name).strict !== null && !suspended;
  }

  /** Resolves with the next promotion that ends from now on. */
  async nextPromotion(name: string): Promise<PromotionView> {
    const event = await this.nextEvent(name, 'promotion.done');
    return event.data as PromotionView;
  }

  nextEvent(vm: string | null, type: string, timeoutMs = TIMEOUT_MS): Promise<Event> {
    return new Promise((resolve, reject) => {
      const off = this.events.follow((event) => {
        if (event.type !== type || (vm !== null && event.vm !== vm)) return;
        clearTimeout(timer);
        off();
        resolve(event);
      });
      const timer = setTimeout(() => {
        off();
        reject(new Error(`no event ${type} within ${timeoutMs} ms; the last ones: ${this.recent()}`));
      }, timeoutMs);
    });
  }

  async until(what: string, holds: () => boolean, timeoutMs = TIMEOUT_MS): Promise<void> {
    const until = performance.now() + timeoutMs;
    while (!holds()) {
      if (performance.now() > until) throw new Error(`${what} did not come within ${timeoutMs} ms: ${this.recent()}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  recent(): string {
    return this.events
      .list({ limit: 12 })
      .map(({ type, message }) => `${type} (${message})`)
      .join(', ');
  }

  async close(): Promise<void> {
    await this.port.close();
    await this.events.close();
    await this.stateDir.close();
    rmSync(this.stateDir.root, { recursive: true, force: true });
  }
}
