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
        '--since goes on where an earlier look ended. "!" marks a warning and "!!" a failure. --json prints one event a line.',
      examples: ['events', 'events --vm web --limit 10', 'events --follow --since 120', 'events --json | jq .message'],
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
        if (session.json) process.stdout.write(events.map(jsonLine).join(''));
        else if (events.length === 0) session.remark('no events');
        else process.stdout.write(eventLines(events));
        return;
      }
      for await (const event of session.client.followEvents(filter)) {
        const line = session.json ? jsonLine(event) : eventLine(event);
        // Waited for: what a slow reader of ours does not take must slow us, for the daemon to notice.
        if (!process.stdout.write(line)) await new Promise((resolve) => process.stdout.once('drain', resolve));
      }
      session.remark('the daemon has ended');
    },
  );
}

const jsonLine = (event: Event): string => JSON.stringify(event) + '\n';

/** Seen at the left edge when a screen full of lines is looked over. */
const LEVEL_MARKS = { info: '  ', warn: '! ', error: '!!' } as const;
/** For those that come one by one; what is wider pushes its own line only. */
const TYPE_WIDTH = 'promotion.cancelled'.length;
const VM_WIDTH = 8;

export interface EventWidths {
  seq: number;
  vm: number;
  type: number;
}

/** One line per event; nothing in it begins a line of its own. */
export function eventLine(event: Event, widths: Partial<EventWidths> = {}): string {
  const { seq = 5, vm = VM_WIDTH, type = TYPE_WIDTH } = widths;
  return [
    LEVEL_MARKS[event.level],
    String(event.seq).padStart(seq),
    show.time(event.at, 3),
    (event.vm ?? show.NONE).padEnd(vm),
    event.type.padEnd(type),
    `${show.printable(event.message)}\n`,
  ].join('  ');
}

/** Those that are known together are aligned to the widest of them. */
export function eventLines(events: readonly Event[]): string {
  const widest = (text: (event: Event) => string) => Math.max(0, ...events.map((event) => text(event).length));
  const widths = {
    seq: widest((event) => String(event.seq)),
    vm: widest((event) => event.vm ?? show.NONE),
    type: widest((event) => event.type),
  };
  return events.map((event) => eventLine(event, widths)).join('');
}
