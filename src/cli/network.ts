/** `shadowvm network …` */
import { type Command, Option } from 'commander';
import { check, createNetworkBodySchema } from '../api/schemas.js';
import { DEFAULT_NETWORK, type NetworkView } from '../vm/network.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

interface CreateOptions {
  subnet: string;
  subnet6?: string;
  nat?: boolean;
  bridge?: string;
}

const nameOf = (args: string[]): string => parse.networkName(args[0]!);

export function addNetworkVerbs(program: Command): void {
  const network = addGroup(program, 'network', 'networks that VMs are on', [
    'network create backend --subnet 10.1.0.0/24 --nat',
    'vm run db --net backend --publish 6379:6379',
  ]);

  addVerb<CreateOptions>(
    network,
    'create <name>',
    {
      summary: 'declare a network',
      description:
        'Declares a network: a bridge of its own, of which the host has the first address and each VM one of the others.\n' +
        'VMs of different networks do not reach each other. It is there until it is removed, also when the daemon restarts.',
      examples: [
        'network create backend --subnet 10.1.0.0/24',
        'network create web --subnet 10.2.0.0/24 --subnet6 fd00:2::/64 --nat --bridge svweb',
      ],
    },
    (command) =>
      command
        .requiredOption('--subnet <cidr>', 'its addresses, such as 10.1.0.0/24')
        .option('--subnet6 <cidr>', 'IPv6 beside them, such as fd00:1::/64')
        .addOption(new Option('--nat', 'VMs reach what this host reaches, under its address'))
        .option('--bridge <name>', 'name of the bridge; default: one is made up'),
    async (session, args, { subnet, subnet6, nat, bridge }) => {
      const declared = {
        name: nameOf(args),
        subnet,
        nat: nat === true,
        ...(subnet6 === undefined ? {} : { subnet6 }),
        ...(bridge === undefined ? {} : { bridge }),
      };
      const view = await session.client.createNetwork(
        check(createNetworkBodySchema, declared, 'the options of the network'),
      );
      session.result(view, `${view.name} is on ${view.bridge}, the host is ${view.hostAddress} there\n`);
    },
  );

  addVerb(
    network,
    'ls',
    { summary: 'list the networks', examples: ['network ls', "network ls --json | jq '.networks[].subnet'"] },
    (command) => command,
    async (session) => {
      const networks = await session.client.listNetworks();
      session.result({ networks }, networkTable(networks));
    },
  );

  addVerb(
    network,
    'show <name>',
    { summary: 'show all about a network', examples: ['network show backend', `network show ${DEFAULT_NETWORK}`] },
    (command) => command,
    async (session, args) => {
      const view = await session.client.showNetwork(nameOf(args));
      session.result(view, networkDetails(view));
    },
  );

  addVerb(
    network,
    'rm <name>',
    { summary: 'remove a network that no VM is on', examples: ['network rm backend'] },
    (command) => command,
    async (session, args) => {
      const name = nameOf(args);
      await session.client.removeNetwork(name);
      session.result({ removed: name }, `the network ${name} is removed\n`);
    },
  );
}

function networkTable(networks: NetworkView[]): string {
  return show.table(
    [
      { title: 'NAME', value: (network) => network.name },
      { title: 'SUBNET', value: (network) => network.subnet },
      { title: 'SUBNET6', value: (network) => network.subnet6 ?? show.NONE },
      { title: 'NAT', value: (network) => (network.nat ? 'yes' : 'no') },
      { title: 'BRIDGE', value: (network) => network.bridge },
      { title: 'VMS', align: 'right', value: (network) => String(network.vms.length) },
    ],
    networks,
  );
}

function networkDetails(network: NetworkView): string {
  const { subnet6, hostAddress6 } = network;
  return show.details([
    ['name', network.name],
    ['subnet', `${network.subnet}, the host is ${network.hostAddress}`],
    ['subnet6', subnet6 === null ? null : `${subnet6}, the host is ${hostAddress6}`],
    ['bridge', `${network.bridge}, ${network.up ? 'up' : 'made for its first VM'}`],
    ['beyond', network.nat ? 'VMs reach what the host reaches (NAT)' : 'VMs reach the host and each other; no NAT'],
    ['vms', network.vms.length === 0 ? 'none' : network.vms.join(', ')],
  ]);
}
