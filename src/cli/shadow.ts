/** `shadowvm shadow …` */
import type { Command } from 'commander';
import type { ShadowState, ShadowView } from '../vm/view.js';
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

  addVerb(
    shadow,
    'promote <vm>',
    {
      summary: 'let the shadow take over now',
      description: 'Ends the primary and lets its shadow go on in its place: a planned switchover.',
      examples: ['shadow promote web', 'shadow promote web --json'],
    },
    (command) => command,
    async (session, args) => {
      const done = await session.client.promoteShadow(nameOf(args));
      session.result(
        done,
        `${done.vm} runs on its shadow after ${show.ms(done.resumeMs)}: generation ${done.generation}, rolled back ${done.lagMs === 0 ? 'nothing' : show.ms(done.lagMs)}\n`,
      );
    },
  );

  addVerb(
    shadow,
    'rm <vm>',
    {
      summary: 'take the shadow away',
      description: 'Takes the shadow away. A rule that would make it anew becomes manual.',
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
      { title: 'COPIED', align: 'right', value: (shadow) => show.bytes(shadow.bytesCopied) },
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

/** The shadow's lines in what is shown of its VM. */
export function shadowDetails(shadow: ShadowView, maxLagMs: number): [string, string | null][] {
  const { pauseMs, lagMsAtCommit } = shadow;
  return [
    ['shadow', `${shadow.state}: ${MEANING[shadow.state]}; process ${shadow.pid ?? show.NONE}`],
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
    [
      '  tracking',
      shadow.tracking === 'write'
        ? 'write: only changed pages are looked at'
        : 'checksum: every page is read each time',
    ],
  ];
}
