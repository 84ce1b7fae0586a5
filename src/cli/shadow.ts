/** `shadowvm shadow …` */
import type { Command } from 'commander';
import type { ShadowView } from '../vm/view.js';
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

/** The shadow's lines in what is shown of its VM. */
export function shadowDetails(shadow: ShadowView): [string, string | null][] {
  return [
    ['shadow', `${shadow.state}, ${show.ms(shadow.lagMs)} behind, made because: ${shadow.createdBecause}`],
    ['shadow process', shadow.pid === null ? null : String(shadow.pid)],
    ['epochs', `${shadow.epoch} committed, ${shadow.epochsAborted} aborted, one every ${show.ms(shadow.intervalMs)}`],
    ['pause', `p50 ${show.ms(shadow.pauseMs.p50)}, p99 ${show.ms(shadow.pauseMs.p99)}`],
    ['lag', `p50 ${show.ms(shadow.lagMsAtCommit.p50)}, p99 ${show.ms(shadow.lagMsAtCommit.p99)} at commit`],
    [
      'pages',
      `${shadow.pagesScanned} scanned, ${shadow.pagesChanged} changed, ${shadow.pagesDroppedByChecksum} dropped by checksum`,
    ],
    ['copied', `${show.bytes(shadow.bytesCopied)} (${shadow.tracking} tracking)`],
  ];
}
