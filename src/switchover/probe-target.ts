/** Where the probes of a VM reach its guest: a pure function of what was declared and of the network that it got. */
import { ShadowVmError } from '../errors.js';
import { formatProbe } from '../vm/probe.js';
import type { VmSpec } from '../vm/spec.js';
import type { ProbeTarget } from './probe-call.js';

/**
 * On a tap the guest itself; in user mode its published ports; null without a network.
 * @param address on the tap network; null in the other modes
 * @throws INVALID_ARGUMENT for a probe that could not be made, or would say nothing
 */
export function probeTarget(
  { name, network, publish, probes }: Pick<VmSpec, 'name' | 'network' | 'publish' | 'probes'>,
  address: string | null,
): ProbeTarget | null {
  if (address !== null) return { host: address, portOf: (port) => port };
  const ports = new Map(publish.map(({ hostPort, guestPort }) => [guestPort, hostPort]));
  for (const { check } of probes) {
    if (check.kind === 'exec') continue;
    const reason =
      network === 'none'
        ? 'the VM has no network'
        : check.kind === 'tcp'
          ? 'in user-mode networking QEMU accepts each connection itself, whatever the guest does'
          : ports.has(check.port)
            ? null
            : `in user-mode networking only published ports are reached, and ${check.port} is none`;
    if (reason === null) continue;
    throw new ShadowVmError('INVALID_ARGUMENT', {
      attempted: 'probe the VM',
      subject: `${name}, ${formatProbe(check)}`,
      reason,
      remedy: 'Use --network tap, publish the port, or use another kind of probe',
    });
  }
  return network === 'none' ? null : { host: '127.0.0.1', portOf: (port) => ports.get(port) ?? port };
}
