/** `shadowvm threshold …` */
import type { Command } from 'commander';
import type { ThresholdView } from '../vm/usage-view.js';
import * as parse from './parse.js';
import { addGroup, addVerb } from './session.js';
import * as show from './table.js';

const EXAMPLES = ['threshold show web', 'threshold show web --json'];

export function addThresholdVerbs(program: Command): void {
  const threshold = addGroup(program, 'threshold', 'what is too much for a VM, and why', EXAMPLES);
  addVerb(
    threshold,
    'show <vm>',
    {
      summary: 'show the thresholds that move, and why they are what they are',
      description:
        'Shows the thresholds that move with what is usual for a VM at this time: of its alarms, and of triggers such as\n' +
        "`vm run web --shadow-when 'cpu>auto/5s'`.",
      examples: EXAMPLES,
    },
    (command) => command,
    async (session, args) => {
      const thresholds = await session.client.thresholds(parse.vmName(args[0]!));
      session.result({ thresholds }, thresholds.map(explained).join(''));
    },
  );
}

function explained(view: ThresholdView): string {
  const amount = (value: number) => show.amount(value, view.unit);
  const back = amount(view.value * (1 - view.hysteresis));
  const measured = view.measured === null ? 'not measured yet' : amount(view.measured);
  const alarm = view.alarm ? `; an alarm until it is below ${back}` : '';
  return (
    `${view.metric} is too much above ${amount(view.value)}: ${view.reason}\n` +
    `  measured ${measured}${alarm}\n` +
    `  from ${amount(view.floor)} to ${amount(view.ceiling)}; moves when it is off by ${Math.round(100 * view.hysteresis)}%, ` +
    `unchanged for ${show.span(view.unchangedForMs)}\n`
  );
}
