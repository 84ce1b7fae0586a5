/**
 * A manager's rules in the kernel: what each guest may send, how networks are kept apart, NAT and published ports. All of
 * them are in place before a QEMU starts, for the tap of a shadow as well: a failover changes none.
 */
import type { ShadowVmError } from '../errors.js';
import { attempt, nativeNetwork } from './native.js';
import { nftSupport, runNft } from './nft.js';
import {
  bucketOf,
  type GuardedGuest,
  guardScript,
  networksScript,
  type PublishedPort,
  type RuledNetwork,
  releaseScript,
  sweepScript,
} from './rules.js';

export class Firewall {
  readonly #stateTag: string;
  /** One at a time and in the order of the calls: of two versions of the networks' rules, the newer has to stay. */
  #last: Promise<unknown> = Promise.resolve();
  #told = false;

  /** @param onUnguarded called once, when guests can not be kept from speaking for others: the VMs run all the same */
  constructor(
    stateTag: string,
    private readonly onUnguarded: (reason: string) => void,
  ) {
    this.#stateTag = stateTag;
  }

  /**
   * Limits what comes out of a tap, and where the guest has a bandwidth, what goes in. The tap exists and no QEMU is on it.
   * @throws PACKAGE_MISSING, NOT_ROOT, NETWORK_FAILED; not for want of nftables where only the guard is asked for
   */
  async guardTap(tap: string, guest: GuardedGuest): Promise<void> {
    const attempted = guest.bytesPerSecond === null ? 'guard the tap' : 'limit the bandwidth of the VM';
    const { guard } = await nftSupport();
    if (guard !== null) {
      if (guest.bytesPerSecond !== null) throw guard;
      this.#tellOnce(guard);
      return;
    }
    await this.#run(guardScript(this.#stateTag, tap, guest), attempted, tap);
    const { bytesPerSecond } = guest;
    if (bytesPerSecond === null) return;
    const { burstBytes, queueBytes } = bucketOf(bytesPerSecond);
    attempt(attempted, tap, () => nativeNetwork().shapeEgress(tap, bytesPerSecond, burstBytes, queueBytes));
  }

  /**
   * After a manager that was killed: the guards of these taps, and of no others, in one transaction, as what their guests
   * send meanwhile is never to pass unguarded. Not for want of nftables: those taps never had one.
   */
  async replaceGuards(taps: readonly { tap: string; guest: GuardedGuest }[]): Promise<void> {
    if ((await nftSupport()).guard !== null) return;
    const scripts = taps.map(({ tap, guest }) => guardScript(this.#stateTag, tap, guest));
    const whole = [sweepScript(this.#stateTag, 'netdev'), ...scripts].join('');
    await this.#run(whole, 'guard the taps again', this.#stateTag);
  }

  /** Forgets the rules of taps; they need not be there any more. */
  async releaseTaps(taps: readonly string[]): Promise<void> {
    if (taps.length === 0 || (await nftSupport()).guard !== null) return;
    await this.#run(releaseScript(this.#stateTag, taps), 'take the rules of the taps away', taps.join(', '));
  }

  /** What networks and published ports there are from now on. @throws what it needs and this host has not */
  async setNetworks(networks: readonly RuledNetwork[], ports: readonly PublishedPort[]): Promise<void> {
    const { translate } = await nftSupport();
    if (translate !== null) {
      if (ports.length > 0 || networks.some(({ nat }) => nat)) throw translate;
      // A host that forwards nothing keeps them apart without a rule; one that does is told of the other rules by now.
      return;
    }
    await this.#run(networksScript(this.#stateTag, networks, ports), 'set the rules of the networks', this.#stateTag);
  }

  /** Takes all rules of this manager away, those of an earlier run too. */
  async sweep(): Promise<void> {
    const attempted = 'take the rules of the networks away';
    const [guards, networks] = [sweepScript(this.#stateTag, 'netdev'), sweepScript(this.#stateTag, 'inet')];
    try {
      // Both at once and without asking what works, as a manager does this whenever it starts.
      await this.#run(guards + networks, attempted, this.#stateTag);
    } catch {
      const { guard, translate } = await nftSupport();
      if (guard === null) await this.#run(guards, attempted, this.#stateTag);
      if (translate === null) await this.#run(networks, attempted, this.#stateTag);
    }
  }

  #tellOnce(error: ShadowVmError): void {
    if (!this.#told) this.onUnguarded(error.reason);
    this.#told = true;
  }

  #run(script: string, attempted: string, subject: string): Promise<void> {
    const mine = this.#last.then(() => runNft(script, attempted, subject));
    this.#last = mine.catch(() => {});
    return mine;
  }
}
