/** A manager that is killed and started again on the same state, and its one VM. */
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { Daemon } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import type { Client } from '../src/api/client.js';
import type { VmView } from '../src/vm/view.js';

const TIMEOUT_MS = 30_000;

export const isProtected = (vm: VmView): boolean => vm.state === 'running' && vm.shadow?.state === 'ready';

export class MortalDaemon {
  private daemon: Daemon | undefined;
  private stateDir: string | undefined;

  constructor(
    private readonly network: { bridge: string; subnet: string },
    private readonly vm = 'web',
  ) {}

  /** @param fault where it is to end, as SHADOWVM_FAULT has it */
  async start(fault = ''): Promise<void> {
    const env = { ...process.env, SHADOWVM_FAULT: fault };
    const state = this.stateDir === undefined ? {} : { stateDir: this.stateDir };
    this.daemon = await Daemon.start({ ...this.network, ...state, env });
    this.stateDir = this.daemon.stateDir;
  }

  async kill(): Promise<void> {
    await this.daemon?.kill();
  }

  get client(): Client {
    return (this.daemon as Daemon).client;
  }

  look(): Promise<VmView> {
    return this.client.showVm(this.vm);
  }

  async until(what: string, holds: (vm: VmView) => boolean): Promise<VmView> {
    for (const untilMs = performance.now() + TIMEOUT_MS; performance.now() < untilMs; await sleep(20)) {
      const vm = await this.look();
      if (holds(vm)) return vm;
    }
    throw new Error(`${what} did not come: ${JSON.stringify(await this.client.listEvents({ limit: 8 }))}`);
  }

  untilProtected(): Promise<VmView> {
    return this.until('its protection', isProtected);
  }

  /** Runs a command in the guest, which has to end well. */
  async run(command: string): Promise<void> {
    const result = await this.client.guestExec(this.vm, command);
    expect({ command, ...result }).toEqual({ command, exitCode: 0 });
  }

  /** Kills the primary once there are `epochs` more, and waits for the shadow to have taken over. */
  async failOver(epochs = 0): Promise<VmView> {
    const { generation, shadow } = await this.untilProtected();
    if (epochs > 0) await this.until('some epochs', (vm) => (vm.shadow?.epoch ?? 0) > (shadow?.epoch ?? 0) + epochs);
    await this.client.injectFault(this.vm, 'kill');
    return this.until('the promotion', (vm) => vm.generation > generation && vm.state === 'running');
  }

  /** Ends it; nothing may be left. */
  async stop(): Promise<void> {
    const { daemon, stateDir } = this;
    this.daemon = this.stateDir = undefined;
    await daemon?.stop();
    if (stateDir !== undefined) expect(leftovers(stateDir)).toEqual([]);
  }
}
