/** What every verb needs: the global options, the way to the daemon, and the two outputs. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { Client } from '../api/client.js';
import { ERROR_STATUS, ShadowVmError, toShadowVmError } from '../errors.js';
import { defaultStatePath, type StateLayout, stateLayout } from '../manager/state-dir.js';
import { SETUP_IMAGES_DIR } from './package.js';
import { type ProgressLine, progressLine } from './progress.js';

export interface GlobalOptions {
  state?: string;
  json?: boolean;
}

/**
 * Adds a verb with what all verbs have: the global options (so that they may also come after it) and examples.
 * `run` gets the arguments and options as commander parsed them.
 */
export function addVerb<O extends object>(
  parent: Command,
  usage: string,
  about: { summary: string; description?: string; examples: string[]; hidden?: boolean },
  configure: (command: Command) => Command,
  run: (session: Session, args: string[], options: O) => Promise<void>,
): void {
  const command = configure(parent.command(usage, { hidden: about.hidden === true }))
    .summary(about.summary)
    .description(about.description ?? sentence(about.summary))
    .addHelpText('after', exampleText(about.examples));
  addGlobalOptions(command);
  command.action(async () => {
    const options = command.optsWithGlobals<O & GlobalOptions>();
    // A variadic argument is one array among the arguments.
    const args = (command.processedArgs as (string | string[] | undefined)[]).flat().filter((arg) => arg !== undefined);
    await run(new Session(options), args, options);
  });
}

/** A group of verbs, which by itself only shows its help. */
export function addGroup(program: Command, name: string, summary: string, examples: string[]): Command {
  return program
    .command(name)
    .summary(summary)
    .description(sentence(summary))
    .addHelpText('after', exampleText(examples));
}

function exampleText(examples: string[]): string {
  return `\nExamples:\n${examples.map((example) => `  shadowvm ${example}\n`).join('')}`;
}

function sentence(summary: string): string {
  return `${summary[0]!.toUpperCase()}${summary.slice(1)}.`;
}

export function addGlobalOptions(command: Command): Command {
  return command
    .addOption(new Option('--state <dir>', 'directory of the state and logs; also SHADOWVM_STATE'))
    .addOption(new Option('--json', 'print JSON: results on stdout, errors and progress on stderr'));
}

export class Session {
  readonly json: boolean;
  readonly state: StateLayout;
  readonly client: Client;

  constructor(options: GlobalOptions) {
    this.json = options.json === true;
    this.state = stateLayout(options.state ?? defaultStatePath());
    this.client = new Client(this.state.socketPath);
  }

  /** Prints the result: `value` as the API has it, or `human`, which ends in a line feed. */
  result(value: unknown, human: string): void {
    process.stdout.write(this.json ? JSON.stringify(value, null, 2) + '\n' : human);
  }

  /** Runs what takes long with its steps on stderr. */
  async withProgress<T>(work: (report: ProgressLine['report']) => Promise<T>): Promise<T> {
    const line = progressLine(process.stderr, this.json);
    try {
      return await work(line.report);
    } finally {
      line.end();
    }
  }

  /** A remark for people, beside the result. */
  remark(text: string): void {
    if (!this.json) process.stderr.write(text + '\n');
  }

  /**
   * The folder of the images: what was said, else where the running daemon takes them from, else where setup put them.
   * A CLI that built an image into another folder than the daemon looks into would only make riddles.
   */
  async imagesDir(option: string | undefined): Promise<string> {
    const said = option ?? process.env.SHADOWVM_IMAGES;
    if (said) return resolve(said);
    try {
      return (await this.client.version()).imagesDir;
    } catch (error) {
      if (!isNotRunning(error)) throw error;
      return defaultImagesDir(this.state);
    }
  }
}

export function defaultImagesDir(state: StateLayout): string {
  return existsSync(SETUP_IMAGES_DIR) ? SETUP_IMAGES_DIR : state.imagesDir;
}

export function isNotRunning(error: unknown): boolean {
  return error instanceof ShadowVmError && error.code === 'DAEMON_NOT_RUNNING';
}

/** A reader that has seen enough, such as `head`, is no failure: the rest is for nobody. The daemon takes this off. */
export function exitWhenReaderLeaves(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EPIPE') throw error;
  process.exit();
}

/** Prints the error and says which exit code it makes: 2 when what was asked for is malformed, else 1. */
export function printError(thrown: unknown, json: boolean): 1 | 2 {
  const error = toShadowVmError(thrown);
  process.stderr.write(
    json ? JSON.stringify({ error }, null, 2) + '\n' : `shadowvm: ${error.message} [${error.code}]\n`,
  );
  if (error.code === 'INTERNAL' && process.env.SHADOWVM_DEBUG)
    process.stderr.write(`${error.cause instanceof Error ? error.cause.stack : error.stack}\n`);
  return ERROR_STATUS[error.code] === 400 ? 2 : 1;
}
