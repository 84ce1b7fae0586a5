/**
 * A VM's mode, which can be changed while it runs. In strict mode nothing that anybody outside has seen is ever rolled
 * back: its packets are held until their epoch is committed. The mode is what is wanted; whether it holds at this moment
 * is told beside it.
 */
import { ShadowVmError } from '../errors.js';
import { OutputHold } from '../protect/output-hold.js';
import type { QemuProcess } from '../qemu/process.js';
import type { Mode } from '../vm/spec.js';
import type { Side } from './sides.js';
import type { VmCore } from './vm-core.js';

export class StrictMode {
  /** Of the primary, in strict mode. */
  private output: OutputHold | null = null;
  private primary: QemuProcess | null = null;
  private side: Side = 'p';

  constructor(
    private readonly core: VmCore,
    private wanted: Mode,
  ) {}

  get mode(): Mode {
    return this.wanted;
  }

  /** null in async mode. */
  get state(): 'active' | 'suspended' | null {
    if (this.wanted === 'async') return null;
    return this.output?.isActive ? 'active' : 'suspended';
  }

  /** What holds the primary's packets; null in async mode. */
  get hold(): OutputHold | null {
    return this.output;
  }

  /** A guest runs in this QEMU from now on. `promoted`: it is about to, and goes on where its last primary stood. */
  attach(primary: QemuProcess, side: Side, promoted: boolean): void {
    const before = this.output;
    this.detach();
    this.primary = primary;
    this.side = side;
    if (this.wanted === 'strict') this.output = this.holdOf(primary, before);
    if (promoted) this.output?.holdFromStart();
  }

  /** After an earlier manager: what its last epochs hold leaves, as nobody knows any more what has left already. */
  async adopt(primary: QemuProcess): Promise<void> {
    const objects = await primary.qmp.execute('qom-list', { path: '/objects' });
    const held = objects.filter(({ name }) => /^hold\d$/.test(name));
    for (const { name } of held) await primary.qmp.execute('object-del', { id: name });
    this.attach(primary, this.core.side, false);
    if (this.wanted === 'strict') this.suspended('its manager was killed, and this one took it over');
  }

  /** The primary's packets are nobody's business any more: it is dead, fenced, or ends. */
  detach(): void {
    this.output?.close();
    this.output = null;
    this.primary = null;
  }

  /** @throws INVALID_ARGUMENT for a VM without a tap */
  async change(mode: Mode): Promise<void> {
    requireTap(mode, this.core.networkMode, this.core.name);
    if (mode === this.wanted) return;
    this.wanted = mode;
    if (mode === 'strict' && this.primary !== null) this.output = this.holdOf(this.primary, null);
    if (mode === 'async') {
      this.output?.releaseAll();
      this.output?.close();
      this.output = null;
    }
    const told =
      mode === 'strict'
        ? 'strict: what it sends will leave when its epoch is committed'
        : 'async: what it sends leaves at once, and a failover rolls back at most the lag';
    this.core.event('info', `mode.${mode}`, `the mode is ${told}`, {});
    await this.core.save();
  }

  private holdOf(primary: QemuProcess, before: OutputHold | null): OutputHold {
    const events = {
      suspended: (why: string) => this.suspended(why),
      active: () => this.core.event('info', 'strict.active', 'from now on only what is committed leaves the guest', {}),
      left: () => this.core.host.awakeCpus.noteRound(),
    };
    return new OutputHold(primary, this.core.sides.trail(this.side), events, before);
  }

  private suspended(why: string): void {
    const told = `strict mode is suspended, what the guest sends leaves at once: ${why}; it resumes with the next epoch`;
    this.core.event('warn', 'strict.suspended', told, { why });
  }
}

/** @throws INVALID_ARGUMENT */
export function requireTap(mode: Mode, network: 'tap' | 'user' | 'none', vm: string): void {
  if (mode === 'async' || network === 'tap') return;
  throw new ShadowVmError('INVALID_ARGUMENT', {
    attempted: 'protect the VM in strict mode',
    subject: vm,
    reason:
      network === 'none'
        ? 'it has no network, so there is nothing to hold back'
        : 'in user-mode networking QEMU itself speaks for the guest, and its connections end with it',
    remedy: 'Run it on a tap (as root, --network tap), or in async mode',
  });
}
