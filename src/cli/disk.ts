/** `shadowvm disk …` */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import type { DiskHeatView, DiskView } from '../vm/disk-view.js';
import { formatBytesExact } from '../vm/quantity-text.js';
import { chart } from './chart.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

const nameOf = (args: string[]): string => parse.vmName(args[0]!);
const PAGE_BYTES = 4096;
const CHART_ROWS = 6;
const HOTTEST_SHOWN = 5;

export function addDiskVerbs(program: Command): void {
  const disk = addGroup(program, 'disk', 'disks of VMs', [
    'vm run db --disk data=8G --shadow always',
    'disk heat db',
    'disk resize db data 16G',
  ]);

  addVerb(
    disk,
    'ls',
    { summary: 'list the disks', examples: ['disk ls', "disk ls --json | jq '.disks[].hostBytes'"] },
    (command) => command,
    async (session) => {
      const disks = await session.client.listDisks();
      session.result(
        { disks },
        disks.length === 0 ? 'no disks; `vm run NAME --disk data=8G` makes one\n' : table(disks),
      );
    },
  );

  addVerb(
    disk,
    'heat <vm>',
    {
      summary: 'show where a guest reads and writes its disks',
      description:
        'Shows where on its disks a guest reads and writes, the last ten minutes more than what was before. What is hot,\n' +
        "and what a reader comes to next, is kept in this host's page cache for a promotion (`vm run --prefetch`).",
      examples: ['disk heat db', "disk heat db --json | jq '.disks[0].hottest'"],
    },
    (command) => command,
    async (session, args) => {
      const name = nameOf(args);
      const disks = await session.client.diskHeat(name);
      session.result({ disks }, disks.length === 0 ? `${name} has no disks\n` : disks.map(heat).join('\n'));
    },
  );

  addVerb(
    disk,
    'resize <vm> <disk> <size>',
    {
      summary: 'let a disk of a running VM grow',
      description:
        'Lets a disk grow while its guest runs, which sees the new size at once; its partitions and file systems are then\n' +
        'the guest’s to grow. A disk never shrinks. The shadow begins anew: until its first epoch the VM is not protected,\n' +
        'and epochs from before can not be gone back to.',
      examples: ['disk resize db data 16G'],
    },
    (command) => command,
    async (session, args) => {
      const sizeBytes = parse.diskBytes(args[2]!);
      const view = await session.withProgress((onProgress) =>
        session.client.resizeDisk(nameOf(args), parse.diskName(args[1]!), sizeBytes, { onProgress }),
      );
      session.result(view, `the disk ${view.disk} of ${view.vm} has ${formatBytesExact(view.sizeBytes)}\n`);
    },
  );

  const snapshot = addGroup(disk, 'snapshot', 'disks as they were at an epoch', [
    'disk snapshot export db data db.img',
  ]);
  addVerb<{ epoch?: number }>(
    snapshot,
    'export <vm> <disk> <file>',
    {
      summary: 'write a disk as it was at an epoch into a raw image',
      description:
        'Writes a disk as it was at an epoch, while the VM runs on or when it is stopped, into a sparse raw image. It is\n' +
        'what the host would find after a power failure at that moment. No file is overwritten.',
      examples: ['disk snapshot export db data db.img', 'disk snapshot export db data db.img --epoch 1234'],
    },
    (command) =>
      command.addOption(
        new Option('--epoch <number>', 'see `shadow epochs`; default: the newest').argParser(
          parse.wholeNumber('the epoch', 1, Number.MAX_SAFE_INTEGER),
        ),
      ),
    async (session, args, { epoch }) => {
      const done = await session.withProgress((onProgress) =>
        session.client.exportDisk(nameOf(args), parse.diskName(args[1]!), resolve(args[2]!), { onProgress, epoch }),
      );
      session.result(
        done,
        `${done.disk} of ${done.vm} at epoch ${done.epoch} (${show.time(done.cutAt)}) is in ${done.path}, ${show.bytes(done.hostBytes)}\n`,
      );
    },
  );
}

function table(disks: DiskView[]): string {
  return show.table(
    [
      { title: 'VM', value: ({ vm }) => vm },
      { title: 'DISK', value: (each) => each.disk },
      { title: 'SIZE', align: 'right', value: ({ sizeBytes }) => formatBytesExact(sizeBytes) },
      { title: 'ON HOST', align: 'right', value: ({ hostBytes }) => show.bytes(hostBytes) },
      { title: 'SHADOW', align: 'right', value: ({ shadowBytes }) => show.bytes(shadowBytes) },
      { title: 'CACHE', value: ({ cache }) => cache },
      { title: 'FROM', value: ({ path, readOnly }) => `${path ?? show.NONE}${readOnly ? ' (read-only)' : ''}` },
    ],
    disks,
  );
}

/** A chart of the disk from its begin to its end, and where it is hottest. */
function heat(view: DiskHeatView): string {
  const { disk, sizeBytes, extentBytes, extentsUsed, pagesRead, pagesWritten, stripes, hottest, prefetch } = view;
  const used = (pages: number) => show.bytes(pages * PAGE_BYTES);
  const facts = show.details([
    ['disk', `${disk}, ${formatBytesExact(sizeBytes)}`],
    [
      'used',
      `${extentsUsed} extents of ${formatBytesExact(extentBytes)}: ${used(pagesRead)} read, ${used(pagesWritten)} written`,
    ],
    ['prefetch', prefetch.budgetBytes === 0 ? 'off' : `up to ${show.bytes(prefetch.budgetBytes)} for all disks`],
  ]);
  if (extentsUsed === 0) return facts;
  const drawn = chart(
    stripes.map((stripe, i) => {
      const pages = stripe.pagesRead + stripe.pagesWritten;
      return { atMs: i, mean: pages, max: pages };
    }),
    { fromMs: 0, toMs: stripes.length, columns: stripes.length, rows: CHART_ROWS, label: used },
  );
  const top = show.table(
    [
      { title: 'HOTTEST AT', align: 'right', value: ({ offset }) => formatBytesExact(offset) },
      { title: 'READ', align: 'right', value: (each) => used(each.pagesRead) },
      { title: 'WRITTEN', align: 'right', value: (each) => used(each.pagesWritten) },
    ],
    hottest.slice(0, HOTTEST_SHOWN),
  );
  return `${facts}\n${drawn}\n${top}`;
}
