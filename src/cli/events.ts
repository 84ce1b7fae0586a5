/** `shadowvm events` */
import { type Command, Option } from 'commander';
import { EVENTS_MAX } from '../api/schemas.js';
import type { Event } from '../vm/view.js';
import * as parse from './parse.js';
import { addVerb } from './session.js';
import * as show from './table.js';

const LIMIT_DEFAULT = 50;

interface EventsOptions {
  follow?: boolean;
  since?: number;
  limit?: number;
  vm?: string;
}

export function addEventsVerb(program: Command): void {
  addVerb<EventsOptions>(
    program,
    'events',
    {
      summary: 'what happened to VMs and shadows',
      description:
        `Prints the last ${LIMIT_DEFAULT} events, oldest first, or with --follow the ones to come. Each has a number, with which\n` +
        '--since goes on where an earlier look ended. With --follow, --json prints one event a line.',
      examples: ['events', 'events --vm web --limit 10', 'events --follow --since 120 --json'],
    },
    (command) =>
      command
        .option('-f, --follow', 'go on with new events, until Ctrl-C')
        .addOption(
          new Option('--since <seq>', 'only those after this number').argParser(
            parse.wholeNumber('the number of the event', 0, Number.MAX_SAFE_INTEGER),
          ),
        )
        .addOption(
          new Option('--limit <n>', 'the newest so many').argParser(parse.wholeNumber('the limit', 1, EVENTS_MAX)),
        )
        .addOption(new Option('--vm <name>', 'only those of this VM').argParser(parse.vmName)),
    async (session, _args, options) => {
      const filter = {
        ...(options.since === undefined ? {} : { since: options.since }),
        ...(options.limit === undefined ? {} : { limit: options.limit }),
        ...(options.vm === undefined ? {} : { vm: options.vm }),
      };
      if (options.follow !== true) {
        const limit = options.limit ?? (options.since === undefined ? LIMIT_DEFAULT : undefined);
        const events = await session.client.listEvents(limit === undefined ? filter : { ...filter, limit });
        session.result({ events }, events.length === 0 ? 'no events\n' : events.map(eventLine).join(''));
        return;
      }
      for await (const event of session.client.followEvents(filter)) {
        const line = session.json ? JSON.stringify(event) + '\n' : eventLine(event);
        // Waited for: what a slow reader of ours does not take must slow us, for the daemon to notice.
        if (!process.stdout.write(line)) await new Promise((resolve) => process.stdout.once('drain', resolve));
      }
      session.remark('the daemon has ended');
    },
  );
}

export function eventLine(event: Event): string {
  const seq = String(event.seq).padStart(5);
  const level = event.level.padEnd(5);
  const vm = (event.vm ?? show.NONE).padEnd(8);
  return `${seq}  ${show.time(event.at, 3)}  ${level}  ${event.type.padEnd(18)}  ${vm}  ${show.printable(event.message)}\n`;
}
