/** `shadowvm daemon` */
import { type Command, Option } from 'commander';
import type { ForecastSettings } from '../forecast/outlook.js';
import * as parse from './parse.js';
import { addVerb, defaultImagesDir } from './session.js';

const CPU_CAPACITY_MAX = 100 * 4096;
/** A week of 5 minutes. */
const SEASON_SAMPLES_MAX = 2016;

interface DaemonOptions {
  images?: string;
  bridge?: string;
  subnet?: string;
  forecastInterval: number;
  season: number;
  cpuCapacity?: number;
  memoryCapacity?: number;
  coolDown?: number;
  letCpusSleep?: boolean;
  logLevel: string;
  verbose?: boolean;
}

export function addDaemonVerb(program: Command): void {
  addVerb<DaemonOptions>(
    program,
    'daemon',
    {
      summary: 'run the manager in the foreground',
      description:
        'Runs the manager in the foreground: it keeps the VMs and their shadows, and answers the other verbs. Ctrl-C or\n' +
        'SIGTERM ends every VM and takes away all that was made on this host; a second Ctrl-C does not wait for that.',
      examples: [
        'daemon',
        'daemon --state /srv/shadowvm --bridge svbr1 --subnet 10.88.0.0/24',
        'daemon --verbose --log-level debug',
      ],
    },
    (command) =>
      command
        .option('--images <dir>', 'folder of the images; also SHADOWVM_IMAGES')
        .option('--bridge <name>', 'name of the bridge that the VMs are on')
        .option('--subnet <cidr>', 'network of that bridge, such as 10.77.0.0/24')
        .addOption(
          new Option('--forecast-interval <time>', 'how far apart the samples of forecasts are')
            .default(300, '5m')
            .argParser(parse.forecastIntervalS),
        )
        .addOption(
          new Option('--season <time>', 'after what loads are expected to repeat')
            .default(86_400, '24h')
            .argParser(parse.seasonS),
        )
        .addOption(
          new Option('--cpu-capacity <share>', 'that all VMs may be given, of one CPU; default: all CPUs').argParser(
            parse.cpuPercent(CPU_CAPACITY_MAX),
          ),
        )
        .addOption(
          new Option('--memory-capacity <size>', 'that all VMs may be given; default: all but 256M').argParser(
            parse.memoryBytes,
          ),
        )
        .addOption(
          new Option(
            '--cool-down <time>',
            'between two changes of one thing, but for pressure; default: 10m',
          ).argParser(parse.coolDownMs),
        )
        .option('--let-cpus-sleep', 'idle CPUs too, while clients of VMs in strict mode wait: saves power, costs speed')
        .addOption(
          new Option('--log-level <level>', 'what goes to the log')
            .choices(['trace', 'debug', 'info', 'warn', 'error'])
            .default('info'),
        )
        .option('-v, --verbose', 'log to stderr too when it is no terminal'),
    async (session, _args, options) => {
      // Loaded here: every other verb would wait for the manager's modules for nothing.
      const { runDaemon } = await import('./daemon-process.js');
      process.exitCode = await runDaemon({
        statePath: session.state.root,
        imagesDir: options.images ?? process.env.SHADOWVM_IMAGES ?? defaultImagesDir(session.state),
        ...(options.bridge === undefined ? {} : { bridge: options.bridge }),
        ...(options.subnet === undefined ? {} : { subnet: options.subnet }),
        forecasts: forecastsOf(options),
        allocation: {
          capacity: {
            ...(options.cpuCapacity === undefined ? {} : { cpuPercent: options.cpuCapacity }),
            ...(options.memoryCapacity === undefined ? {} : { memoryBytes: options.memoryCapacity }),
          },
          ...(options.coolDown === undefined ? {} : { coolDownMs: options.coolDown }),
        },
        letCpusSleep: options.letCpusSleep === true,
        logLevel: options.logLevel,
        logToStderr: options.verbose === true || process.stderr.isTTY === true,
        json: session.json,
      });
    },
  );
}

function forecastsOf({ forecastInterval, season }: DaemonOptions): ForecastSettings {
  const samples = season / forecastInterval;
  if (samples >= 4 && samples <= SEASON_SAMPLES_MAX) return { intervalS: forecastInterval, seasonS: season };
  throw parse.usageError(
    `a season of ${samples.toFixed(1)} samples can not be forecast`,
    `Choose --season and --forecast-interval so that one is 4 to ${SEASON_SAMPLES_MAX} times the other`,
  );
}
