/** `shadowvm`: takes the command line apart and runs one verb. Exit codes: 0 ok, 1 failed, 2 the command line is wrong. */
import { Command, CommanderError } from 'commander';
import { addAllocationVerbs } from './allocation.js';
import { addDaemonVerb } from './daemon.js';
import { addDiskVerbs } from './disk.js';
import { addDoctorVerb } from './doctor.js';
import { addEventsVerb } from './events.js';
import { addForecastVerbs } from './forecast.js';
import { addHistoryVerbs } from './history.js';
import { addImageVerbs } from './image.js';
import { addNetworkVerbs } from './network.js';
import { VERSION } from './package.js';
import { usageError } from './parse.js';
import { addGlobalOptions, exitWhenReaderLeaves, printError } from './session.js';
import { addShadowVerbs } from './shadow.js';
import { addSnapshotVerbs } from './snapshot.js';
import { addThresholdVerbs } from './threshold.js';
import { addVersionVerb } from './version.js';
import { addVmVerbs } from './vm.js';

function makeProgram(): Command {
  const program = new Command('shadowvm')
    .description('Runs micro-VMs, each with a shadow that takes over when it fails.')
    .version(VERSION, '-V, --version', 'print the version')
    // Before the verbs are added: they inherit both.
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    .addHelpText(
      'after',
      `
Examples:
  shadowvm doctor                      what this host can do, and what it lacks
  shadowvm image build                 make the image that VMs boot from
  shadowvm daemon                      run the manager, until Ctrl-C
  shadowvm vm run web                  boot a VM (in another terminal)
  shadowvm shadow create web           give it a shadow
  shadowvm shadow promote web          let the shadow take over

Exit codes: 0 ok, 1 failed, 2 the command line is wrong.
`,
    );
  addGlobalOptions(program);
  addDaemonVerb(program);
  addVmVerbs(program);
  addShadowVerbs(program);
  addDiskVerbs(program);
  addNetworkVerbs(program);
  addSnapshotVerbs(program);
  addEventsVerb(program);
  addHistoryVerbs(program);
  addImageVerbs(program);
  addForecastVerbs(program);
  addThresholdVerbs(program);
  addAllocationVerbs(program);
  addDoctorVerb(program);
  addVersionVerb(program);
  return program;
}

/** Runs the command line and gives its exit code. */
async function main(args: string[]): Promise<number> {
  try {
    await makeProgram().parseAsync(args, { from: 'user' });
    // A verb that did what it should and found something wrong, such as the doctor, has set it.
    return Number(process.exitCode ?? 0);
  } catch (error) {
    // The option may stand where parsing never came to, so it is looked for as text.
    const end = args.indexOf('--');
    const json = (end === -1 ? args : args.slice(0, end)).includes('--json');
    if (!(error instanceof CommanderError)) return printError(error, json);
    if (error.exitCode === 0) return 0; // --help and --version
    // A group without a verb: commander has printed the help already.
    if (error.code === 'commander.help') return 2;
    const reason = error.message
      .replace(/^error: /, '')
      .replace(/\n/g, ' ')
      .replace(/\.+$/, '');
    return printError(usageError(reason, 'See --help for what can be asked'), json);
  }
}

process.stdout.on('error', exitWhenReaderLeaves);
process.stderr.on('error', exitWhenReaderLeaves);
process.exitCode = await main(process.argv.slice(2));
