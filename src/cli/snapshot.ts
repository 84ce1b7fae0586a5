/** `shadowvm snapshot …` */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import type { SnapshotView } from '../vm/view.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

const nameOf = (args: string[]): string => parse.vmName(args[0]!);

export function addSnapshotVerbs(program: Command): void {
  const snapshot = addGroup(program, 'snapshot', 'what stopped VMs start again from, and its way to other hosts', [
    'snapshot ls',
    'snapshot export web web.shadow',
  ]);

  addVerb(
    snapshot,
    'ls',
    { summary: 'list the snapshots of stopped VMs', examples: ['snapshot ls', 'snapshot ls --json'] },
    (command) => command,
    async (session) => {
      const snapshots = await session.client.listSnapshots();
      session.result(
        { snapshots },
        snapshots.length === 0 ? 'no snapshots; `shadowvm vm stop NAME` leaves one\n' : snapshotTable(snapshots),
      );
    },
  );

  addVerb(
    snapshot,
    'export <vm> <file>',
    {
      summary: 'write the newest state of a VM into one file',
      description:
        'Writes the newest state of a VM, stopped or protected by a shadow, into one file from which another host can go\n' +
        'on. The file holds all that the guest has in its memory: keep it like a secret.',
      examples: ['snapshot export web web.shadow'],
    },
    (command) => command,
    async (session, args) => {
      const done = await session.withProgress((onProgress) =>
        session.client.exportSnapshot(nameOf(args), resolve(args[1]!), { onProgress }),
      );
      session.result(done, `epoch ${done.epoch} of ${done.vm} is in ${done.path}, ${show.bytes(done.bytes)}\n`);
    },
  );

  addVerb<{ name?: string }>(
    snapshot,
    'import <file>',
    {
      summary: 'make a stopped VM of an exported file',
      description: 'Checks all of the file, then makes a stopped VM of it; start it with `vm start`.',
      examples: ['snapshot import web.shadow', 'snapshot import web.shadow --name web-2'],
    },
    (command) =>
      command.addOption(
        new Option('--name <name>', 'default: the name that it was exported under').argParser(parse.vmName),
      ),
    async (session, args, options) => {
      const view = await session.withProgress((onProgress) =>
        session.client.importSnapshot(resolve(args[0]!), {
          onProgress,
          ...(options.name === undefined ? {} : { name: options.name }),
        }),
      );
      session.result(view, `${view.vm} is imported; start it with \`shadowvm vm start ${view.vm}\`\n`);
    },
  );

  addVerb(
    snapshot,
    'verify <vm>',
    {
      summary: 'read all of a snapshot and check every page',
      description: 'Reads all of the snapshot of a stopped VM and checks every page by its checksum.',
      examples: ['snapshot verify web'],
    },
    (command) => command,
    async (session, args) => {
      const done = await session.withProgress((onProgress) =>
        session.client.verifySnapshot(nameOf(args), { onProgress }),
      );
      session.result(done, `the snapshot of ${done.vm} is whole: ${done.pages} pages right\n`);
    },
  );
}

function snapshotTable(snapshots: SnapshotView[]): string {
  return show.table(
    [
      { title: 'VM', value: ({ vm }) => vm },
      { title: 'EPOCH', align: 'right', value: ({ epoch }) => String(epoch) },
      { title: 'CUT', value: ({ cutAt }) => cutAt },
      { title: 'ON DISK', align: 'right', value: ({ bytesOnDisk }) => show.bytes(bytesOnDisk) },
      { title: 'PAGES', align: 'right', value: ({ storedPages }) => String(storedPages) },
    ],
    snapshots,
  );
}
