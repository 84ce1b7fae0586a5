/**
 * The networks of a manager: the default one, and those that users declared, which are kept in networks.json. Each is a
 * bridge; which packets go where between them, the host and the world are rules that are made anew as a whole whenever
 * something changes.
 */
import { createHash } from 'node:crypto';
import { rename } from 'node:fs/promises';
import { z } from 'zod';
import { messageOf, ShadowVmError } from '../errors.js';
import { formatSubnet, overlaps, parseSubnet, stateTag } from '../network/address.js';
import { formatSubnet6, overlaps6, parseSubnet6 } from '../network/address6.js';
import { Firewall } from '../network/firewall.js';
import {
  forwardsIpv6,
  restoreForwarding,
  routeLoopback,
  setForwarding,
  unforwardingUplinks,
} from '../network/forwarding.js';
import {
  BRIDGE_NAME_DEFAULT,
  type GuestAddresses,
  Network,
  parseSubnets,
  SUBNET_DEFAULT,
  sweepNetwork,
  tapsPermitted,
} from '../network/network.js';
import { nftSupport } from '../network/nft.js';
import { PortHold } from '../network/ports.js';
import type { GuardedGuest, PublishedPort } from '../network/rules.js';
import { DEFAULT_NETWORK, type NetworkSpec, type NetworkView, networkSpecSchema } from '../vm/network.js';
import type { VmSpec } from '../vm/spec.js';
import type { EventLog } from './events.js';
import { readJson, writeFileAtomic } from './state-dir.js';

const NETWORKS_MAX = 64;

const fileSchema = z.object({
  version: z.literal(1),
  networks: z.array(networkSpecSchema),
  /** Interfaces of the host that we let forward, and that did not before. */
  forwarding: z.array(z.string()),
});

export interface NetworksOptions {
  stateDir: string;
  path: string;
  events: Pick<EventLog, 'append'>;
  /** Of the default network. */
  bridge?: string | undefined;
  subnet?: string | undefined;
}

/** A VM on a network, with one of its taps. */
export interface Guest {
  spec: VmSpec;
  network: Network;
  addresses: GuestAddresses;
  tap: string;
}

export class Networks {
  readonly #declared = new Map<string, NetworkSpec>();
  readonly #open = new Map<string, Network>();
  readonly #published = new Map<string, { hold: PortHold; network: Network; ports: PublishedPort[] }>();
  #forwarding: string[] = [];
  #rulesAreOld = false;
  readonly #stateTag: string;
  readonly #firewall: Firewall;
  /** Changes come one at a time: each of them is several steps, and the rules and the file are of them all. */
  #last: Promise<unknown> = Promise.resolve();
  /** The VMs on a network that have not ended. */
  vmsOn: (network: string) => string[] = () => [];

  constructor(private readonly options: NetworksOptions) {
    this.#stateTag = stateTag(options.stateDir);
    this.#firewall = new Firewall(this.#stateTag, (reason) =>
      this.#event('warn', 'host.no-firewall', `guests can speak for other addresses than their own: ${reason}`),
    );
    this.#declared.set(DEFAULT_NETWORK, {
      name: DEFAULT_NETWORK,
      subnet: options.subnet ?? SUBNET_DEFAULT,
      subnet6: null,
      nat: false,
      bridge: options.bridge ?? BRIDGE_NAME_DEFAULT,
    });
  }

  /** Reads which networks were declared: VMs that are adopted are on them. */
  async load(): Promise<void> {
    const file = await this.#read();
    if (file === null) return;
    for (const spec of file.networks) this.#declared.set(spec.name, spec);
    this.#forwarding = file.forwarding;
  }

  /**
   * Takes away what an earlier run left on the host, and makes the declared networks again.
   * @param adopted the VMs that were taken over: theirs stays without a gap
   */
  async recover(adopted: readonly Guest[] = []): Promise<string[]> {
    const keep = new Set(adopted.flatMap(({ tap, network }) => [tap, network.bridge]));
    const swept = tapsPermitted().ok ? sweepNetwork(this.options.stateDir, keep) : [];
    if (adopted.length === 0) {
      await this.#firewall.sweep();
      await this.#restoreForwarding();
    } else {
      await this.#inOrder(() => this.#admitAgain(adopted));
    }
    for (const name of this.#declared.keys()) {
      if (name === DEFAULT_NETWORK) continue;
      try {
        this.open(name);
      } catch (error) {
        this.#event('error', 'network.failed', `the network ${name} can not be made again: ${messageOf(error)}`);
      }
    }
    return swept;
  }

  list(): NetworkView[] {
    return [...this.#declared.values()].map((spec) => this.#view(spec));
  }

  /** @throws NETWORK_NOT_FOUND */
  show(name: string): NetworkView {
    return this.#view(this.#get(name, 'show the network'));
  }

  /**
   * @throws NETWORK_EXISTS, NETWORK_CONFLICT (subnet, bridge), INVALID_ARGUMENT, QUEUE_FULL, NOT_ROOT, NETWORK_FAILED,
   * PACKAGE_MISSING
   */
  create(declared: NetworkSpec): Promise<NetworkView> {
    return this.#inOrder(async () => {
      const spec = this.#checked(declared);
      const { translate } = await nftSupport();
      if (spec.nat && translate !== null) throw translate;
      this.#declared.set(spec.name, spec);
      try {
        this.open(spec.name);
        await this.#save();
        await this.#applyRules();
      } catch (error) {
        await this.#forget(spec.name).catch(() => {}); // the first failure is the one to report
        throw error;
      }
      this.#event('info', 'network.created', `the network ${spec.name} has ${subnetWords(spec)}`);
      if (spec.nat && spec.subnet6 !== null && !forwardsIpv6())
        this.#event(
          'warn',
          'network.no-ipv6-forwarding',
          `IPv6 of the network ${spec.name} ends at this host, which does not forward it (net.ipv6.conf.all.forwarding)`,
        );
      return this.#view(spec);
    });
  }

  /** @throws NETWORK_NOT_FOUND, NETWORK_IN_USE, INVALID_ARGUMENT for the default one */
  remove(name: string): Promise<void> {
    return this.#inOrder(async () => {
      const attempted = 'remove the network';
      const spec = this.#get(name, attempted);
      if (name === DEFAULT_NETWORK)
        throw new ShadowVmError('INVALID_ARGUMENT', {
          attempted,
          subject: name,
          reason: 'the default network is there without being declared',
          remedy: 'It uses nothing of the host while no VM is on it',
        });
      const vms = this.vmsOn(name);
      if (vms.length > 0)
        throw new ShadowVmError('NETWORK_IN_USE', {
          attempted,
          subject: name,
          reason: `${vms.length === 1 ? 'a VM is' : `${vms.length} VMs are`} on it: ${vms.join(', ')}`,
          remedy: 'Stop them first',
        });
      await this.#forget(name);
      this.#event('info', 'network.removed', `the network ${name} with ${subnetWords(spec)} was removed`);
    });
  }

  /** Its bridge is there from now on. @throws NETWORK_NOT_FOUND, NETWORK_CONFLICT, NOT_ROOT, NETWORK_FAILED */
  open(name: string): Network {
    const opened = this.#open.get(name);
    if (opened !== undefined) return opened;
    const spec = this.#get(name, 'connect the VM to the network');
    const network = Network.open({
      stateDir: this.options.stateDir,
      bridge: bridgeOf(spec, this.#stateTag),
      subnet: spec.subnet,
      subnet6: spec.subnet6,
    });
    this.#open.set(name, network);
    this.#rulesAreOld = true;
    return network;
  }

  /**
   * Before a QEMU starts on a tap: what its guest may send, and its published ports. All that a promotion will need.
   * @throws INVALID_ARGUMENT when a port is taken, PACKAGE_MISSING, NETWORK_FAILED
   */
  async admit(guest: Guest): Promise<void> {
    const { spec, tap } = guest;
    await this.#inOrder(async () => {
      if (spec.publish.length > 0 && !this.#published.has(spec.name)) await this.#publish(guest);
      if (this.#rulesAreOld) await this.#applyRules();
    });
    await this.#firewall.guardTap(tap, guardedAs(guest));
  }

  /** The VM has ended, and its taps are gone. */
  async dismiss(vm: string, taps: readonly string[]): Promise<void> {
    await this.#firewall.releaseTaps(taps);
    await this.#inOrder(async () => {
      const published = this.#published.get(vm);
      if (published === undefined) return;
      this.#published.delete(vm);
      // The rules first: while the port is held, nobody else's connections can run into them.
      await this.#applyRules().finally(() => published.hold.release());
    });
  }

  /** Takes everything away. */
  async close(): Promise<void> {
    await this.#inOrder(async () => {
      for (const { hold } of this.#published.values()) await hold.release();
      this.#published.clear();
      this.#open.clear();
      if (tapsPermitted().ok) sweepNetwork(this.options.stateDir);
      await this.#firewall.sweep();
      await this.#restoreForwarding();
    });
  }

  /** The rules of guests that run on are made anew under them; no packet meets a moment without. */
  async #admitAgain(guests: readonly Guest[]): Promise<void> {
    for (const guest of guests)
      if (guest.spec.publish.length > 0)
        await this.#publish(guest).catch((error: unknown) =>
          this.#event(
            'error',
            'network.failed',
            `the ports of ${guest.spec.name} can not be held: ${messageOf(error)}`,
          ),
        );
    try {
      await this.#firewall.replaceGuards(guests.map((guest) => ({ tap: guest.tap, guest: guardedAs(guest) })));
      await this.#applyRules();
    } catch (error) {
      this.#event('error', 'network.failed', `the rules of the networks can not be made again: ${messageOf(error)}`);
    }
  }

  async #publish({ spec, network, addresses }: Guest): Promise<void> {
    const { translate } = await nftSupport();
    if (translate !== null) throw translate;
    const hold = await PortHold.take(
      spec.publish.map(({ hostPort }) => hostPort),
      '0.0.0.0',
      spec.name,
    );
    const ports = spec.publish.map((port) => ({ ...port, address: addresses.address }));
    this.#published.set(spec.name, { hold, network, ports });
    this.#rulesAreOld = true;
  }

  async #applyRules(): Promise<void> {
    this.#rulesAreOld = true;
    const networks = [...this.#open].map(([name, { bridge, subnet, subnet6 }]) => {
      return { bridge, subnet, subnet6, nat: this.#declared.get(name)?.nat === true };
    });
    const published = [...this.#published.values()];
    await this.#firewall.setNetworks(
      networks,
      published.flatMap(({ ports }) => ports),
    );
    // After the rules, so that nothing is ever forwarded without them.
    const publishing = new Set(published.map(({ network }) => network.bridge));
    for (const bridge of publishing) routeLoopback(bridge);
    const forwarding = networks.filter(({ nat, bridge }) => nat || publishing.has(bridge));
    for (const { bridge } of forwarding) setForwarding(bridge, true);
    if (forwarding.length > 0) await this.#forwardUplinks();
    this.#rulesAreOld = false;
  }

  async #forwardUplinks(): Promise<void> {
    const uplinks = unforwardingUplinks();
    if (uplinks.length === 0) return;
    // On disk before it is done: who comes after a crash has to know.
    this.#forwarding = [...new Set([...this.#forwarding, ...uplinks])];
    await this.#save();
    for (const uplink of uplinks) setForwarding(uplink, true);
    this.#event('info', 'host.forwarding', `packets that come in at ${uplinks.join(', ')} are forwarded from now on`);
  }

  async #restoreForwarding(): Promise<void> {
    if (this.#forwarding.length === 0) return;
    restoreForwarding(this.#forwarding);
    this.#forwarding = [];
    await this.#save();
  }

  async #forget(name: string): Promise<void> {
    this.#declared.delete(name);
    const network = this.#open.get(name);
    this.#open.delete(name);
    network?.deleteBridge();
    await this.#save();
    await this.#applyRules();
  }

  /** The declaration with subnets in their one form, and free of conflicts with the others. */
  #checked(spec: NetworkSpec): NetworkSpec {
    const attempted = 'create the network';
    const fail = (code: 'NETWORK_EXISTS' | 'NETWORK_CONFLICT' | 'QUEUE_FULL', reason: string, remedy: string) =>
      new ShadowVmError(code, { attempted, subject: spec.name, reason, remedy });
    const permitted = tapsPermitted();
    if (!permitted.ok)
      throw new ShadowVmError('NETWORK_FAILED', {
        attempted,
        subject: spec.name,
        reason: permitted.reason,
        remedy: 'Run the manager as root',
      });
    if (this.#declared.has(spec.name))
      throw fail('NETWORK_EXISTS', 'a network of this name exists', 'Choose another name; see `shadowvm network ls`');
    if (this.#declared.size > NETWORKS_MAX)
      throw fail('QUEUE_FULL', `the manager has ${NETWORKS_MAX} networks`, 'Remove one that is not used');
    const { subnet, subnet6 } = parseSubnets(spec.subnet, spec.subnet6);
    const bridge = bridgeOf(spec, this.#stateTag);
    for (const other of this.#declared.values()) {
      if (overlaps(subnet, parseSubnet(other.subnet)))
        throw fail('NETWORK_CONFLICT', overlapWords(spec.subnet, other.name, other.subnet), 'Use another subnet');
      if (subnet6 !== null && other.subnet6 !== null && overlaps6(subnet6, parseSubnet6(other.subnet6)))
        throw fail(
          'NETWORK_CONFLICT',
          overlapWords(formatSubnet6(subnet6), other.name, other.subnet6),
          'Use another IPv6 subnet',
        );
      if (bridgeOf(other, this.#stateTag) === bridge)
        throw fail('NETWORK_CONFLICT', `the network ${other.name} has the bridge ${bridge}`, 'Name another bridge');
    }
    return { ...spec, subnet: formatSubnet(subnet), subnet6: subnet6 === null ? null : formatSubnet6(subnet6) };
  }

  #get(name: string, attempted: string): NetworkSpec {
    const spec = this.#declared.get(name);
    if (spec !== undefined) return spec;
    throw new ShadowVmError('NETWORK_NOT_FOUND', {
      attempted,
      subject: name,
      reason: 'no network has this name',
      remedy: 'See which there are with `shadowvm network ls`, or make it with `shadowvm network create`',
    });
  }

  #view(spec: NetworkSpec): NetworkView {
    const { name, subnet, subnet6, nat } = spec;
    const described = Network.describe(subnet, subnet6);
    return {
      name,
      subnet,
      subnet6,
      nat,
      bridge: bridgeOf(spec, this.#stateTag),
      ...described,
      up: this.#open.has(name),
      vms: this.vmsOn(name),
    };
  }

  async #read(): Promise<z.infer<typeof fileSchema> | null> {
    const { path } = this.options;
    try {
      return await readJson(path, fileSchema);
    } catch (error) {
      if (!(error instanceof ShadowVmError && error.code === 'STATE_CORRUPT')) throw error;
      await rename(path, `${path}.corrupt`);
      this.#event(
        'error',
        'state.corrupt',
        `the declared networks can not be read and were set aside as ${path}.corrupt: ${error.reason}`,
      );
      return null;
    }
  }

  #save(): Promise<void> {
    const networks = [...this.#declared.values()].filter(({ name }) => name !== DEFAULT_NETWORK);
    const file: z.infer<typeof fileSchema> = { version: 1, networks, forwarding: this.#forwarding };
    return writeFileAtomic(this.options.path, JSON.stringify(file, null, 2) + '\n');
  }

  #inOrder<T>(change: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(change);
    this.#last = mine.catch(() => {});
    return mine;
  }

  #event(level: 'info' | 'warn' | 'error', type: string, message: string): void {
    this.options.events.append(level, type, null, message, {});
  }
}

function guardedAs({ spec, addresses }: Guest): GuardedGuest {
  const bits = spec.bandwidthBitsPerSecond;
  return { ...addresses, bytesPerSecond: bits === null ? null : Math.round(bits / 8) };
}

/** Not the name of the network itself: that can be too long, and two managers can have one of the same name. */
function bridgeOf({ name, bridge }: NetworkSpec, stateTag: string): string {
  return bridge ?? `svn${createHash('sha256').update(`${stateTag} ${name}`).digest('hex').slice(0, 8)}`;
}

function subnetWords({ subnet, subnet6, nat }: NetworkSpec): string {
  return `${subnet}${subnet6 === null ? '' : ` and ${subnet6}`}${nat ? ', with NAT' : ''}`;
}

function overlapWords(subnet: string, name: string, other: string): string {
  return `${subnet} overlaps with ${other} of the network ${name}`;
}
