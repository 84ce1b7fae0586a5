/** What the command line says about itself and about wrong usage. Needs no state and no daemon, so it runs side by side. */
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { CliProcess, type Ended } from './cli-process.js';

// A state that nobody has: whatever got as far as asking a daemon would fail otherwise than expected here.
const run = (...args: string[]): Promise<Ended> => new CliProcess(args, { SHADOWVM_STATE: '/nowhere' }).ended;

const GROUPS = ['vm', 'shadow', 'disk', 'network', 'image'];
const VERBS = [
  'daemon',
  'vm run',
  'vm ls',
  'vm show',
  'vm stop',
  'vm kill',
  'vm rm',
  'vm logs',
  'vm console',
  'vm exec',
  'vm fault',
  'shadow create',
  'shadow ls',
  'shadow promote',
  'shadow rm',
  'disk ls',
  'disk heat',
  'disk resize',
  'network create',
  'network ls',
  'network show',
  'network rm',
  'events',
  'image build',
  'image ls',
  'image rm',
  'doctor',
  'version',
];

describe.concurrent('help', () => {
  test.each(['', ...GROUPS, 'disk snapshot export', ...VERBS])('shadowvm %s --help has examples', async (verb) => {
    const { code, stdout, stderr } = await run(...verb.split(' ').filter(Boolean), '--help');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain(`Usage: shadowvm ${verb}`.trim());
    expect(stdout).toMatch(/\nExamples:\n {2}shadowvm \S/);
    if (verb !== '') expect(stdout).toContain(`  shadowvm ${verb}`);
    expect(stdout).toContain(GROUPS.includes(verb) ? 'Commands:' : '--json');
  });

  test('the drill is not listed, every other verb is', async () => {
    const listed = (await Promise.all(['', ...GROUPS].map((group) => run(group || '--help', '--help')))).map(
      (ended) => ended.stdout,
    );
    for (const verb of VERBS) {
      const found = listed.some((text) => new RegExp(`^ {2}${verb.split(' ').at(-1)}\\b`, 'm').test(text));
      expect([verb, found]).toEqual([verb, verb !== 'vm fault']);
    }
  });

  test('--version prints the version', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
    expect(await run('--version')).toMatchObject({ code: 0, stdout: `${version}\n` });
  });
});

describe.concurrent('a command line that is wrong ends with 2 and says why', () => {
  test.each([
    ['vm run', "missing required argument 'name'"],
    ['vm run web db', 'too many arguments'],
    ['vm run Web_1', 'a name has 1 to 32 characters'],
    ['vm run web --ram 1T', '"T" is not a unit of size'],
    ['vm run web --ram 1M', 'a VM has 64M to 64G'],
    ['vm run web --vcpus 99', 'it is not from 1 to 8'],
    ['vm run web --network wifi', 'Allowed choices are auto, tap, user, none'],
    ['vm run web --publish 80', 'it does not have the form HOST:GUEST'],
    ['vm run web --net Back_end', 'a name has 1 to 32 characters'],
    ['vm run web --bandwidth 100', 'it has no unit'],
    ['vm run web --bandwidth 1K', 'bandwidthBitsPerSecond: a bandwidth is 64000'],
    ['vm run web --probe udp:53', 'it begins with none of tcp:, http:, redis: and exec:'],
    ['vm run web --probe tcp:80 --probe-period 1ms', 'probes.0.periodMs'],
    ['network create web', "required option '--subnet <cidr>' not specified"],
    ['vm run web --shadow-when cpu>200%', 'the percentage is not between 0 and 100'],
    [
      'vm run web --shadow always --shadow-when cpu>60%',
      "'--shadow-when <trigger>' cannot be used with option '--shadow",
    ],
    ['vm run web --max-lag soon', 'it is not a duration'],
    ['vm run web --max-lag 1ms', 'pacing.maxLagMs'],
    ['vm run web --max-paused 3', 'it does not end in %'],
    ['vm run web --image', 'argument missing'],
    ['vm rnu web', 'Did you mean run?'],
    ['vm logs web --bytes 1G', 'Ask for 1 to 1M'],
    ['vm fault web flood', 'The faults are kill, hang and panic'],
    ['events --since yesterday', 'it is not a whole number'],
    ['history web --metric heat', 'Allowed choices are cpu, stolen'],
    ['history web --since 1h --until 2h', '--since is not before --until'],
    ['history web --since yesterday', 'neither a time of day'],
    ['vm run web --allocate maybe', 'Allowed choices are off, recommend, auto'],
    ['vm run web --cpu-max half', 'it is not a whole percentage'],
    ['vm run web --cpu-min 0%', 'it is not from 1% to 900%'],
    ['vm run web --memory-min 1M', 'allocation.memoryMinBytes'],
    ['allocation set web', 'nothing is said that is to change'],
    ['daemon --forecast-interval 1500ms', 'not whole seconds from 1 to 3600'],
    ['daemon --season 2h --forecast-interval 1h', 'a season of 2.0 samples can not be forecast'],
    ['vm ls --colour', "unknown option '--colour'"],
    ['frobnicate', "unknown command 'frobnicate'"],
    ['daemon --log-level loud', 'Allowed choices are'],
  ])('%s', async (line, reason) => {
    const [human, json] = await Promise.all([run(...line.split(' ')), run('--json', ...line.split(' '))]);
    expect(human).toMatchObject({ code: 2, stdout: '' });
    expect(human.stderr).toContain(reason);
    expect(human.stderr).toMatch(/^shadowvm: could not .* \[INVALID_ARGUMENT\]\n$/);
    expect(json).toMatchObject({ code: 2, stdout: '' });
    expect(JSON.parse(json.stderr).error).toMatchObject({ code: 'INVALID_ARGUMENT', remedy: expect.any(String) });
  });

  test('following a log as JSON', async () => {
    const { code, stderr } = await run('vm', 'logs', 'web', '--follow', '--json');
    expect({ code, error: JSON.parse(stderr).error }).toMatchObject({ code: 2, error: { remedy: 'Leave out --json' } });
  });

  test('history as CSV and as JSON', async () => {
    const { code, stderr } = await run('history', 'web', '--csv', '--json');
    expect({ code, error: JSON.parse(stderr).error }).toMatchObject({
      code: 2,
      error: { remedy: 'Leave one of them out' },
    });
  });

  test.each(['', 'vm', 'shadow', 'network', 'image'])('shadowvm %s without a verb shows the help', async (group) => {
    const { code, stdout, stderr } = await run(...group.split(' ').filter(Boolean));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain('Usage: shadowvm');
  });
});
