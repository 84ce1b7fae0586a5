/** `shadowvm shadow …` */
import { type Command, Option } from 'commander';
import { parseStandby } from '../vm/standby-text.js';
import type { EpochView, ShadowState, ShadowView } from '../vm/view.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

const nameOf = (args: string[]): string => parse.vmName(args[0]!);

export function addShadowVerbs(program: Command): void {
  const shadow = addGroup(program, 'shadow', 'protect VMs by shadows, and let them take over', [
    'shadow create web',
    'shadow promote web',
  ]);

  addVerb(
    shadow,
    'create <vm>',
    {
      summary: 'give a VM a shadow and wait until it is ready',
      examples: ['shadow create web', 'shadow create web --json'],
    },
    (command) => command,
    async (session, args) => {
      const view = await session.withProgress((onProgress) =>
        session.client.createShadow(nameOf(args), { onProgress }),
      );
      session.result(view, `the shadow of ${view.vm} is ${view.state}, ${show.ms(view.lagMs)} behind\n`);
    },
  );

  addVerb(
    shadow,
    'ls',
    { summary: 'list the shadows', examples: ['shadow ls', "shadow ls --json | jq '.shadows[].lagMs'"] },
    (command) => command,
    async (session) => {
      const shadows = await session.client.listShadows();
      session.result(
        { shadows },
        shadows.length === 0 ? 'no shadows; make one with `shadowvm shadow create VM`\n' : shadowTable(shadows),
      );
    },
  );

  addVerb<{ epoch?: number; before?: string }>(
    shadow,
    'promote <vm>',
    {
      summary: 'let the shadow take over now',
      description:
        'Ends the primary and lets its shadow go on in its place: a planned switchover, which loses nothing. With --epoch\n' +
        'or --before the VM goes back to an older state instead, and what came after that is given up.',
      examples: ['shadow promote web', 'shadow promote web --before 30s', 'shadow promote web --epoch 1234'],
    },
    (command) => addEpochOptions(command),
    async (session, args, options) => {
      const done = await session.client.promoteShadow(nameOf(args), options);
      session.result(
        done,
        `${done.vm} runs on its shadow after ${show.ms(done.resumeMs)}: epoch ${done.epoch}, generation ${done.generation}, rolled back ${done.lagMs === 0 ? 'nothing' : show.ms(done.lagMs)}\n`,
      );
    },
  );

  addVerb(
    shadow,
    'epochs <vm>',
    {
      summary: 'list the epochs that the VM can go back to',
      examples: ['shadow epochs web', "shadow epochs web --json | jq '.epochs[-1]'"],
    },
    (command) => command,
    async (session, args) => {
      const name = nameOf(args);
      const epochs = await session.client.listEpochs(name);
      session.result({ epochs }, epochs.length === 0 ? `the shadow of ${name} has no epoch yet\n` : epochTable(epochs));
    },
  );

  addVerb(
    shadow,
    'standby <vm> <level>',
    {
      summary: 'change what waits beside the shadow image',
      description:
        'Changes what waits beside the shadow image to take over. `image`: nothing runs, a promotion starts a QEMU first.\n' +
        '`process`: a QEMU waits without RAM, and is filled while its guest runs already. `resident` or `resident=PERCENT`:\n' +
        'the most recently written part of the RAM is in it.',
      examples: ['shadow standby web image', 'shadow standby web resident=25'],
    },
    (command) => command,
    async (session, args) => {
      const view = await session.client.changeStandby(nameOf(args), parseStandby(args[1]!));
      session.result(view, `the standby of ${view.vm} is ${view.standby}\n`);
    },
  );

  addVerb(
    shadow,
    'verify <vm>',
    {
      summary: 'prove that the shadow would come up',
      description:
        'Copies the newest epoch, checks every page of it, starts it without network and waits for its heartbeats. The VM\n' +
        'and its shadow go on meanwhile.',
      examples: ['shadow verify web'],
    },
    (command) => command,
    async (session, args) => {
      const done = await session.withProgress((onProgress) =>
        session.client.verifyShadow(nameOf(args), { onProgress }),
      );
      session.result(
        done,
        `a copy of ${done.vm} came up from epoch ${done.epoch}: first heartbeat after ${show.ms(done.firstBeatMs)}, ${done.pages} pages right\n`,
      );
    },
  );

  addVerb(
    shadow,
    'rm <vm>',
    {
      summary: 'take the shadow away',
      description: 'Takes the shadow and its image away. A rule that would make it anew becomes manual.',
      examples: ['shadow rm web'],
    },
    (command) => command,
    async (session, args) => {
      const name = nameOf(args);
      await session.client.removeShadow(name);
      session.result({ removed: name }, `the shadow of ${name} is removed\n`);
    },
  );
}

/** Which epoch: by number, or by a moment. */
export function addEpochOptions(command: Command): Command {
  return command
    .addOption(new Option('--epoch <number>', 'this epoch; see `shadow epochs`').argParser(parse.epochNumber))
    .addOption(
      new Option('--before <time>', 'the newest one before it: 30s ago, or a date with time')
        .argParser((text) => parse.moment(text))
        .conflicts('epoch'),
    );
}

function epochTable(epochs: EpochView[]): string {
  return show.table(
    [
      { title: 'EPOCH', align: 'right', value: ({ epoch }) => String(epoch) },
      { title: 'CUT', value: ({ cutAt }) => cutAt },
      { title: 'GEN', align: 'right', value: ({ generation }) => String(generation) },
      { title: 'PAGES', align: 'right', value: ({ changedPages }) => String(changedPages) },
      { title: 'STORED', align: 'right', value: ({ storedBytes }) => show.bytes(storedBytes) },
      { title: 'DURABLE', value: ({ durable }) => (durable ? 'yes' : 'not yet') },
    ],
    epochs,
  );
}

function shadowTable(shadows: ShadowView[]): string {
  return show.table(
    [
      { title: 'VM', value: (shadow) => shadow.vm },
      { title: 'STATE', value: (shadow) => shadow.state },
      { title: 'EPOCH', align: 'right', value: (shadow) => String(shadow.epoch) },
      { title: 'LAG', align: 'right', value: (shadow) => show.ms(shadow.lagMs) },
      { title: 'LAG P99', align: 'right', value: (shadow) => show.ms(shadow.lagMsAtCommit.p99) },
      { title: 'PAUSE P50', align: 'right', value: (shadow) => show.ms(shadow.pauseMs.p50) },
      { title: 'PAUSE P99', align: 'right', value: (shadow) => show.ms(shadow.pauseMs.p99) },
      { title: 'STANDBY', value: (shadow) => shadow.standby },
      { title: 'ON DISK', align: 'right', value: (shadow) => show.bytes(shadow.image?.bytesOnDisk ?? 0) },
      { title: 'TRACKING', value: (shadow) => shadow.tracking },
      { title: 'BECAUSE', value: (shadow) => shadow.createdBecause },
    ],
    shadows,
  );
}

/** What it means for the VM, in the words of somebody who has to decide. */
const MEANING: Record<ShadowState, string> = {
  starting: 'can not take over yet',
  syncing: 'can not take over yet',
  ready: 'can take over',
  behind: 'can take over, but from longer ago than wished for',
  promoting: 'takes over now',
  failed: 'can not take over, and is made anew',
};

function imageWords({ bytesOnDisk, liveBytes, oldestEpoch, headEpoch }: NonNullable<ShadowView['image']>): string {
  return `${show.bytes(bytesOnDisk)} on disk, ${show.bytes(liveBytes)} of it the newest state; epochs ${oldestEpoch} to ${headEpoch} can be gone back to`;
}

/** The shadow's lines in what is shown of its VM. */
export function shadowDetails(shadow: ShadowView, maxLagMs: number): [string, string | null][] {
  const { pauseMs, lagMsAtCommit } = shadow;
  return [
    [
      'shadow',
      `${shadow.state}: ${MEANING[shadow.state]}; standby ${shadow.standby}, process ${shadow.pid ?? show.NONE}`,
    ],
    ['  because', shadow.createdBecause],
    [
      '  lag',
      `${show.ms(shadow.lagMs)} now, p99 ${show.ms(lagMsAtCommit.p99)}, at most ${show.ms(maxLagMs)} wished for`,
    ],
    ['  pause', `p50 ${show.ms(pauseMs.p50)}, p99 ${show.ms(pauseMs.p99)}, longest ${show.ms(pauseMs.max)}`],
    [
      '  epochs',
      `${shadow.epoch} committed, ${shadow.epochsAborted} aborted, the next after ${show.ms(shadow.intervalMs)}`,
    ],
    [
      '  pages',
      `${shadow.pagesChanged} changed, ${shadow.pagesDroppedByChecksum} dropped by checksum, ${show.bytes(shadow.bytesCopied)} copied`,
    ],
    ['  image', shadow.image === null ? null : imageWords(shadow.image)],
    [
      '  tracking',
      shadow.tracking === 'write'
        ? 'write: only changed pages are looked at'
        : 'checksum: every page is read each time',
    ],
  ];
}
