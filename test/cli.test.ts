/**
 * The command line as users have it: the built bin/shadowvm in a process of its own. What it says to a daemon goes to the
 * real API server with a manager without VMs; the daemon verb is the real one. VMs are in the end-to-end tests.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Client } from '../src/api/client.js';
import { type ApiServer, serveApi } from '../src/api/server.js';
import { eventSchema, promotionViewSchema, shadowViewSchema, vmViewSchema } from '../src/vm/view.js';
import { BIN, CliProcess, type Ended } from './cli-process.js';
import { FakeManager, shadowView, snapshotView, vmView } from './fake-manager.js';

let state: string;
let children: ChildProcess[];

function start(args: string[], env: NodeJS.ProcessEnv = {}, stdin: 'ignore' | 'pipe' = 'ignore'): CliProcess {
  const ours = { SHADOWVM_STATE: state, SHADOWVM_IMAGES: join(state, 'images'), ...env };
  const started = new CliProcess(args, ours, { stdio: [stdin, 'pipe', 'pipe'] });
  children.push(started.child);
  return started;
}

const run = (...args: string[]): Promise<Ended> => start(args).ended;

beforeEach(() => {
  state = mkdtempSync(join(tmpdir(), 'svm-'));
  children = [];
});
afterEach(() => {
  for (const child of children) if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
  rmSync(state, { recursive: true, force: true });
});

describe('without a daemon', () => {
  test.each(['vm ls', 'vm show web', 'vm run web', 'shadow ls', 'events', 'events --follow', 'vm console web'])(
    '%s says that none runs and what to do',
    async (line) => {
      const human = await run(...line.split(' '));
      expect(human).toMatchObject({ code: 1, stdout: '' });
      expect(human.stderr).toMatch(
        /no daemon answers on this socket. Start one with `shadowvm daemon`.*\[DAEMON_NOT_RUNNING\]/,
      );
      expect(JSON.parse((await run(...line.split(' '), '--json')).stderr).error.code).toBe('DAEMON_NOT_RUNNING');
    },
  );

  test('version and image ls work all the same', async () => {
    expect(JSON.parse((await run('version', '--json')).stdout)).toMatchObject({ daemon: null });
    expect(await run('image', 'ls')).toMatchObject({ code: 0, stdout: expect.stringContaining('no images') });
    expect(await run('image', 'ls', '--json')).toMatchObject({ code: 0, stdout: '{\n  "images": []\n}\n' });
  });

  test('an image that is not there can not be removed, and a bad name is bad usage', async () => {
    expect(await run('image', 'rm', 'none')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('[IMAGE_NOT_FOUND]'),
    });
    expect(await run('image', 'rm', '../x')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('[INVALID_ARGUMENT]'),
    });
  });

  test('the doctor examines this host, and its exit code says whether VMs can run', async () => {
    const json = await run('doctor', '--json');
    const { ok, findings } = JSON.parse(json.stdout);
    expect(json.code).toBe(ok ? 0 : 1);
    expect(ok).toBe(findings.every((finding: { status: string }) => finding.status !== 'fail'));
    const human = await run('doctor');
    for (const finding of findings)
      expect(human.stdout).toMatch(new RegExp(`^${finding.status} +${finding.name} `, 'm'));
  });
});

describe('with a daemon', () => {
  let manager: FakeManager;
  let api: ApiServer;

  beforeEach(async () => {
    manager = new FakeManager();
    api = await serveApi({
      socketPath: join(state, 'shadowvm.sock'),
      manager,
      log: pino({ level: 'silent' }),
      about: {
        version: '9.9.9',
        startedAt: '2026-01-01T00:00:00.000Z',
        stateDir: state,
        imagesDir: join(state, 'images'),
      },
      limits: { closeMs: 100 },
    });
  });
  afterEach(() => api.close());

  test('history is a chart, lines for a program, or JSON; analyze is words and figures', async () => {
    await run('vm', 'run', 'web');
    const drawn = await run('history', 'web', '--since', '2h');
    expect(drawn.stdout).toMatch(/^cpu of web, .*\n *95\.0% │·/);
    expect(drawn.stdout).toMatch(/mean 40\.0%, highest 95\.0%, last 90\.0%; 3 points of 1 s\n$/);
    const query = manager.usage.asked[0]!;
    expect(Math.abs(query.untilMs - query.sinceMs - 7_200_000)).toBeLessThan(50);
    const csv = (await run('history', 'web', '--metric', 'lag', '--csv')).stdout.split('\n');
    expect(csv[0]).toBe('at,mean,max');
    expect(csv[1]).toMatch(/^20\d\d-.*Z,10,15$/);
    expect(JSON.parse((await run('history', 'web', '--json')).stdout)).toMatchObject({ metric: 'cpu', unit: '%' });
    const analysis = (await run('analyze', 'web')).stdout;
    expect(analysis).toMatch(/periods: +1 d \(90 % alike\)/);
    expect(analysis).toMatch(/trend: +\+1\.5% a day/);
  });

  test('thresholds are explained, and forecasts are tables', async () => {
    await run('vm', 'run', 'web');
    const { stdout } = await run('threshold', 'show', 'web');
    expect(stdout).toMatch(/^cpu is too much above 77\.0%: 60\.0% is expected and at most 70\.0%: 10% above that\n/);
    expect(stdout).toMatch(/measured 81\.0%; an alarm until it is below 69\.3%/);
    expect(stdout).toMatch(/unchanged for 1 min\n/);
    const forecast = (await run('forecast', 'show', 'web')).stdout;
    expect(forecast).toMatch(
      /^demand: highest second in each 5 min, learnt from 600, last 35\.0%, held limit 80\.0%\n/,
    );
    expect(forecast).toMatch(/40\.0% +50\.0% +60\.0% +70\.0%\n$/);
  });

  test('what VMs are given is a table, details and a change; the capacity says whether it is enough', async () => {
    await run('vm', 'run', 'web');
    expect((await run('allocation', 'ls')).stdout).toMatch(/web +auto +5 +20\.0% +44\.0% +40\.0% .*process +30\.0%\n$/);
    const shown = (await run('allocation', 'show', 'web')).stdout;
    expect(shown).toMatch(/cpu: +quota 44\.0%, weight 44; from 10\.0% to 100\.0%\n/);
    expect(shown).toMatch(/changed: .* cpu from 100\.0% to 44\.0% \(forecast\): 30\.0% is expected\n$/);
    await run(
      'allocation',
      'set',
      'web',
      '--allocate',
      'off',
      '--cpu-max',
      '150%',
      '--memory-min',
      '96M',
      '--priority',
      '9',
    );
    expect(manager.usage.changes).toEqual([
      { mode: 'off', cpuMaxPercent: 150, memoryMinBytes: 96 * 1024 * 1024, priority: 9 },
    ]);
    const capacity = (await run('capacity')).stdout;
    expect(capacity).toMatch(/CPU +200\.0% +260\.0% +80\.0% +110\.0% +190\.0% +2\.5%\n/);
    expect(capacity).toMatch(/3 VMs, 1 of them not known yet; SHORT is the chance .* in the next 1 h\n$/);
  });

  test('networks are made, listed, shown and removed', async () => {
    const line = 'network create backend --subnet 10.1.0.0/24 --subnet6 fd00:1::/64 --nat --bridge svb';
    expect(await run(...line.split(' '))).toMatchObject({
      code: 0,
      stdout: 'backend is on shadowvm0, the host is 10.77.0.1 there\n',
    });
    expect(manager.calls).toContain(
      'create {"name":"backend","subnet":"10.1.0.0/24","subnet6":"fd00:1::/64","nat":true,"bridge":"svb"}',
    );
    expect((await run('network', 'ls')).stdout).toMatch(
      /^NAME +SUBNET .*\ndefault +10\.77.*\nbackend +10\.1\.0\.0\/24 .* yes /,
    );
    expect((await run('network', 'show', 'backend')).stdout).toContain('VMs reach what the host reaches (NAT)');
    expect(await run('network', 'rm', 'backend')).toMatchObject({
      code: 0,
      stdout: 'the network backend is removed\n',
    });
    expect(await run('network', 'show', 'backend')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('[NETWORK_NOT_FOUND]'),
    });
  });

  test('disks are listed, drawn, resized and exported', async () => {
    await run('vm', 'run', 'web');
    expect(await run('disk', 'ls')).toMatchObject({ code: 0, stdout: expect.stringMatching(/web +data +64M/) });
    const heat = await run('disk', 'heat', 'web');
    expect(heat.stdout).toMatch(/1 extents of 1M: 1.2 MiB read, 80 KiB written/);
    expect(heat.stdout).toMatch(/█/);
    expect(await run('disk', 'resize', 'web', 'data', '96M')).toMatchObject({
      code: 0,
      stdout: 'the disk data of web has 96M\n',
    });
    expect(await run('disk', 'resize', 'web', 'DATA', '96M')).toMatchObject({ code: 2 });
    const exported = await run('disk', 'snapshot', 'export', 'web', 'data', 'web.img', '--epoch', '7', '--json');
    expect(JSON.parse(exported.stdout)).toMatchObject({ epoch: 7, path: expect.stringMatching(/^\/.*\/web\.img$/) });
  });

  test('every option of run arrives, progress is on stderr, the result on stdout', async () => {
    const line =
      'vm run web --image big --ram 1G --vcpus 2 --network user --publish 8080:80 --publish 2222:22 --accelerator tcg --net backend --bandwidth 100M ' +
      '--probe redis:6379 --probe http:80/health --probe-period 1s --probe-timeout 500ms --probe-failures 5 ' +
      '--tracking checksum --shadow-when cpu>60%/5s --shadow-when network>10MB/s/3s --max-lag 200ms --max-paused 5% --cpu-budget 25% ' +
      '--mode strict --standby resident=25 --durability epoch --keep 5m --max-bytes 2G --boot --allocate auto --priority 7 --cpu-min 20% --cpu-max 150% --memory-min 96M --memory-max 512M ' +
      '--disk data=8G --disk base=/srv/base.img,ro --cache none --prefetch 64M';
    const human = await run(...line.split(' '));
    expect(human).toMatchObject({
      code: 0,
      stdout: 'web runs at 10.77.0.2, booted in 1.2 s\n',
      stderr: 'starting QEMU\nthe guest boots\n',
    });
    expect(manager.vms.get('web')!.spec).toEqual({
      name: 'web',
      image: 'big',
      ramBytes: 1024 ** 3,
      vcpus: 2,
      network: 'user',
      net: 'backend',
      bandwidthBitsPerSecond: 100_000_000,
      probes: [
        { check: { kind: 'redis', port: 6379 }, periodMs: 1000, timeoutMs: 500, failures: 5 },
        { check: { kind: 'http', port: 80, path: '/health' }, periodMs: 1000, timeoutMs: 500, failures: 5 },
      ],
      publish: [
        { hostPort: 8080, guestPort: 80 },
        { hostPort: 2222, guestPort: 22 },
      ],
      accelerator: 'tcg',
      tracking: 'checksum',
      shadow: {
        kind: 'when',
        triggers: [
          { metric: 'cpu', above: 60, heldMs: 5000 },
          { metric: 'network', above: 10_000_000, heldMs: 3000 },
        ],
      },
      pacing: { maxLagMs: 200, maxPausedShare: 0.05, cpuBudget: 0.25 },
      standby: { level: 'resident', percent: 25 },
      mode: 'strict',
      durability: 'epoch',
      retention: { keepMs: 300_000, maxBytes: 2 * 1024 ** 3 },
      start: 'boot',
      allocation: {
        ...{ mode: 'auto', priority: 7, cpuMinPercent: 20, cpuMaxPercent: 150 },
        ...{ memoryMinBytes: 96 * 1024 ** 2, memoryMaxBytes: 512 * 1024 ** 2 },
      },
      disks: [
        { name: 'data', sizeBytes: 8 * 1024 ** 3, path: null, readOnly: false },
        { name: 'base', sizeBytes: null, path: '/srv/base.img', readOnly: true },
      ],
      diskCache: 'none',
      prefetchBytes: 64 * 1024 ** 2,
    });
    const json = await run('vm', 'run', 'db', '--json', '--shadow', 'always');
    expect(vmViewSchema.parse(JSON.parse(json.stdout)).spec.shadow).toEqual({ kind: 'always' });
    expect(
      json.stderr
        .trim()
        .split('\n')
        .map((text) => JSON.parse(text)),
    ).toEqual([
      { progress: { message: 'starting QEMU', done: 0.1 } },
      { progress: { message: 'the guest boots', done: 0.5 } },
    ]);
  });

  test('lists are tables for people and the views of the API for programs', async () => {
    expect(await run('vm', 'ls')).toMatchObject({ code: 0, stdout: 'no VMs; run one with `shadowvm vm run NAME`\n' });
    expect(await run('shadow', 'ls')).toMatchObject({ code: 0, stdout: expect.stringContaining('no shadows') });
    manager.vms.set('web', vmView('web', { shadow: shadowView('web') }));
    manager.vms.set('database', vmView('database', { state: 'stopped', address: null, usage: null, guest: null }));
    expect((await run('vm', 'ls')).stdout).toBe(
      [
        'NAME      STATE    GEN  IMAGE    VCPUS   RAM  ADDRESS      CPU    MEM  SHADOW    LAG',
        'web       running    1  default      1  256M  10.77.0.2  12.3%  20.0%  ready   37 ms',
        'database  stopped    1  default      1  256M  -              -      -  -           -',
        '',
      ].join('\n'),
    );
    expect((await run('shadow', 'ls')).stdout).toMatch(
      /^VM .*\nweb +ready +42 +37 ms .* process +2\.9 MiB +write +by hand\n$/,
    );
    const vms = JSON.parse((await run('vm', 'ls', '--json')).stdout).vms;
    expect(vms.map((vm: unknown) => vmViewSchema.parse(vm))).toEqual(manager.listVms());
    const shadows = JSON.parse((await run('--json', 'shadow', 'ls')).stdout).shadows;
    expect(shadows.map((shadow: unknown) => shadowViewSchema.parse(shadow))).toEqual(manager.listShadows());
  });

  test('a VM goes through its life', async () => {
    await run('vm', 'run', 'web');
    expect((await run('vm', 'show', 'web')).stdout).toMatch(
      /name: +web\nstate: +running, generation 1\nuptime: +1 min 1 s, booted in 1.2 s\naddress: +10.77.0.2 \(network default svt0 /,
    );
    expect((await run('vm', 'show', 'web')).stdout).toContain(
      'none, a failure would be the end of this VM; make one with `shadowvm shadow create web`',
    );
    expect((await run('vm', 'logs', 'web')).stdout).toBe('console of web\nlogin:\n');
    expect((await run('vm', 'logs', 'web', '--qemu', '--bytes', '7')).stdout).toBe('login:\n');
    expect(await run('vm', 'exec', 'web', '--', 'echo', '--json', 'a b')).toMatchObject({ code: 0, stdout: '' });
    expect(await run('vm', 'exec', 'web', 'false')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('exit code 1'),
    });
    expect((await run('shadow', 'create', 'web')).stdout).toBe('the shadow of web is ready, 37 ms behind\n');
    expect((await run('vm', 'show', 'web')).stdout).toMatch(
      /shadow: +ready: can take over; standby process, process 4712\n {2}because: +by hand\n {2}lag: +37 ms now/,
    );
    const promoted = await run('shadow', 'promote', 'web', '--json');
    expect(promotionViewSchema.parse(JSON.parse(promoted.stdout)).generation).toBe(2);
    expect((await run('shadow', 'promote', 'web')).stdout).toBe(
      'web runs on its shadow after 8.5 ms: epoch 42, generation 3, rolled back nothing\n',
    );
    expect(JSON.parse((await run('vm', 'fault', 'web', 'kill', '--json')).stdout)).toEqual({
      fault: 'kill',
      atNs: '12345',
    });
    expect((await run('shadow', 'rm', 'web')).stdout).toBe('the shadow of web is removed\n');
    expect(await run('vm', 'rm', 'web')).toMatchObject({ code: 1, stderr: expect.stringContaining('[VM_BUSY]') });
    expect((await run('vm', 'stop', 'web', '--timeout', '1m')).stdout).toBe('web is stopped\n');
    expect((await run('vm', 'rm', 'web')).stdout).toBe('web is removed\n');
    expect(manager.calls).toEqual([
      'run web',
      'exec web echo --json a b',
      'exec web false',
      'promote web null',
      'promote web null',
      'fault web kill',
      'remove web false',
      'stop web 60000 shutdown true',
      'remove web false',
    ]);
  });

  test('the verbs of epochs and snapshots, from words to what the manager is asked', async () => {
    manager.vms.set('web', vmView('web', { shadow: shadowView('web') }));
    expect((await run('shadow', 'epochs', 'web')).stdout).toMatch(/EPOCH +CUT .*\n +41 .* yes\n +42 .* not yet\n$/s);
    expect((await run('vm', 'mode', 'web', 'strict')).stdout).toMatch(/the mode of web is strict, suspended/);
    expect((await run('vm', 'mode', 'web', 'async')).stdout).toBe('the mode of web is async\n');
    expect((await run('vm', 'mode', 'web', 'half')).code).toBe(2);
    await run('shadow', 'promote', 'web', '--epoch', '41');
    await run('shadow', 'promote', 'web', '--before', '2026-01-01T00:00:02Z');
    expect((await run('shadow', 'standby', 'web', 'resident=25')).stdout).toBe('the standby of web is resident=25\n');
    expect((await run('shadow', 'verify', 'web')).stdout).toMatch(/came up from epoch 42: first heartbeat after 56 ms/);
    expect((await run('vm', 'clone', 'web', 'copy', '--epoch', '7')).stdout).toMatch(
      /^copy runs at 10.77.0.2, up from/,
    );
    manager.vms.set('db', vmView('db', { state: 'stopped', snapshot: snapshotView('db') }));
    expect((await run('snapshot', 'ls')).stdout).toMatch(/\ndb +42 +2026-01-01T00:00:04.200Z/);
    expect((await run('snapshot', 'export', 'db', '/tmp/db.shadow')).stdout).toMatch(/^epoch 42 of db is in /);
    expect((await run('snapshot', 'import', '/tmp/db.shadow', '--name', 'db-2')).stdout).toMatch(/vm start db-2/);
    expect((await run('snapshot', 'verify', 'db')).stdout).toMatch(/^the snapshot of db is whole/);
    expect((await run('vm', 'start', 'db', '--boot')).stdout).toMatch(/^db runs/);
    await run('vm', 'stop', 'web', '--suspend');
    await run('vm', 'stop', 'db', '--no-snapshot');
    expect(manager.calls).toEqual([
      'mode web strict',
      'mode web async',
      'promote web {"epoch":41}',
      'promote web {"beforeMs":1767225602000}',
      'standby web resident=25',
      'clone web copy {"epoch":7}',
      'export db /tmp/db.shadow',
      'import /tmp/db.shadow db-2',
      'start db true',
      'stop web 10000 suspend true',
      'stop db 10000 shutdown false',
    ]);
  });

  test.each([
    ['shadow promote web --epoch 0', 'it is not from 1'],
    ['shadow promote web --epoch 1 --before 1s', 'cannot be used with'],
    ['shadow promote web --before yesterday', 'neither a time of day'],
    ['shadow standby web half', 'not a level'],
    ['vm run web --standby resident=0', 'not a level'],
    ['vm run web --max-bytes 1M', '64 MiB or more'],
    ['vm run web --durability always', 'none, interval, epoch'],
  ])('%s is refused with 2: %s', async (line, told) => {
    const result = await run(...line.split(' '));
    expect(result).toMatchObject({ code: 2, stdout: '' });
    expect(result.stderr).toContain(told);
  });

  test.each([
    ['vm show nobody', 'VM_NOT_FOUND'],
    ['vm run web', 'VM_EXISTS'],
    ['vm rm web', 'VM_BUSY'],
    ['shadow create web', 'SHADOW_EXISTS'],
    ['shadow promote web', 'SHADOW_NOT_READY'],
    ['vm console nobody', 'VM_NOT_FOUND'],
  ])('%s fails with 1 and %s', async (line, code) => {
    manager.vms.set('web', vmView('web', { shadow: shadowView('web', { state: 'syncing' }) }));
    const human = await run(...line.split(' '));
    expect(human).toMatchObject({ code: 1, stdout: '' });
    expect(human.stderr).toMatch(new RegExp(`^shadowvm: could not .* \\[${code}\\]\\n$`));
    const json = await run(...line.split(' '), '--json');
    expect(json).toMatchObject({ code: 1, stdout: '' });
    expect(JSON.parse(json.stderr).error).toMatchObject({ code, reason: expect.any(String) });
  });

  test('--state may come before or after the verb and outdoes the environment', async () => {
    for (const args of [
      ['--state', state, 'vm', 'ls'],
      ['vm', '--help'],
      ['vm', 'ls', '--state', state],
    ])
      expect((await start(args, { SHADOWVM_STATE: '/nowhere' }).ended).code).toBe(0);
  });

  test('Ctrl-C while a VM boots takes it away', async () => {
    manager.midway = () => new Promise(() => {});
    const booting = start(['vm', 'run', 'web']);
    await booting.until(() => booting.stderr.includes('starting QEMU'));
    booting.child.kill('SIGINT');
    expect(await booting.ended).toMatchObject({ code: 1, stderr: expect.stringContaining('takes web away again') });
    await booting.until(() => !manager.vms.has('web'));
  });

  test('a log is followed through what is added to the end of the VM', async () => {
    manager.vms.set('web', vmView('web'));
    const following = start(['vm', 'logs', 'web', '--follow', '--bytes', '7']);
    await following.until(() => following.stdout === 'login:\n');
    manager.logged = 'Grüße\n';
    await following.until(() => following.stdout === 'login:\nGrüße\n');
    manager.logged += 'reboot: Power down\n';
    manager.vms.get('web')!.state = 'stopped';
    expect(await following.ended).toEqual({
      code: 0,
      signal: null,
      stdout: 'login:\nGrüße\nreboot: Power down\n',
      stderr: 'web has ended\n',
    });
  });

  test('events are listed, followed, and end with the daemon', async () => {
    manager.vms.set('web', vmView('web'));
    manager.emit('vm.running', 'web');
    expect((await run('events')).stdout).toMatch(
      /^ {4}1 {2}2026-01-01 [\d:.]{12} {2}web {2}vm\.running {2}it was vm\.running\n$/,
    );
    expect((await run('events', '--json')).stdout).toBe(JSON.stringify(manager.events[0]) + '\n');
    expect(await run('events', '--vm', 'db')).toMatchObject({ code: 0, stdout: '', stderr: 'no events\n' });
    expect(await run('events', '--vm', 'db', '--json')).toMatchObject({ code: 0, stdout: '', stderr: '' });
    const following = start(['events', '--follow', '--json', '--since', '0']);
    await following.until(() => manager.followerCount === 1);
    manager.emit('promotion.done', 'web');
    await following.until(() => following.stdout.split('\n').length === 3);
    await api.close();
    const { code, stdout } = await following.ended;
    expect(code).toBe(0);
    expect(
      stdout
        .trim()
        .split('\n')
        .map((line) => eventSchema.parse(JSON.parse(line))),
    ).toEqual(manager.events);
  });

  test('a reader that leaves is no failure', async () => {
    const script = `"${process.execPath}" "${BIN}" events --follow | head -n 1; echo "\${PIPESTATUS[0]}"`;
    const piped = spawn('bash', ['-c', script], { env: { ...process.env, SHADOWVM_STATE: state } });
    children.push(piped);
    let output = '';
    let errors = '';
    piped.stdout.on('data', (chunk) => (output += chunk));
    piped.stderr.on('data', (chunk) => (errors += chunk));
    const emitting = setInterval(() => manager.emit('tick'), 20);
    await once(piped, 'close');
    clearInterval(emitting);
    expect(output).toMatch(/tick\n0\n$/);
    expect(errors).toBe('');
  });

  test('the console is piped through when there is no terminal', async () => {
    manager.vms.set('web', vmView('web'));
    const attached = start(['vm', 'console', 'web'], {}, 'pipe');
    await attached.until(() => attached.stdout.includes('console of web'));
    attached.child.stdin!.end('hello\n');
    await attached.until(() => attached.stdout.includes('HELLO\n'));
    attached.child.kill('SIGINT');
    expect(await attached.ended).toMatchObject({ code: 0, stderr: expect.stringContaining('connected to web') });
    expect(manager.calls).toContain('console of web closed');
  });

  test('on a terminal the console is raw, and Ctrl-] leaves and gives the terminal back', async () => {
    manager.vms.set('web', vmView('web'));
    // script(1) is where Debian has a pseudo terminal without further packages.
    const command = `stty -a | grep -o -- '-\\?icanon'; "${process.execPath}" "${BIN}" vm console web; echo "=$?"; stty -a | grep -o -- '-\\?icanon'`;
    const terminal = spawn('script', ['-qec', `bash -c '${command.replaceAll("'", `'\\''`)}'`, '/dev/null'], {
      env: { ...process.env, SHADOWVM_STATE: state },
    });
    children.push(terminal);
    let output = '';
    terminal.stdout.on('data', (chunk) => (output += chunk));
    const until = async (text: string) => {
      const deadlineMs = performance.now() + 10_000;
      while (!output.includes(text)) {
        if (performance.now() > deadlineMs) throw new Error(`no ${JSON.stringify(text)} in ${JSON.stringify(output)}`);
        await sleep(10);
      }
    };
    await until('console of web');
    expect(output).toContain('leave with Ctrl-]');
    terminal.stdin.write('a\x03b');
    await until('A\x03B');
    terminal.stdin.write('\x1d');
    await once(terminal, 'close');
    expect(output).toMatch(/disconnected from web[\s\S]*=0\r\nicanon\r\n$/);
    expect(output.startsWith('icanon\r\n')).toBe(true);
  });

  test('an image that a VM uses is not removed', async () => {
    manager.vms.set('web', vmView('web'));
    expect(await run('image', 'rm', 'default')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/it is used by web.*\[IMAGE_IN_USE\]/),
    });
  });

  test('version tells of both', async () => {
    expect((await run('version')).stdout).toMatch(new RegExp(`daemon: +9\\.9\\.9, process ${process.pid}\\n`));
  });
});

describe('the daemon', () => {
  const client = () => new Client(join(state, 'shadowvm.sock'));
  const startDaemon = async (...args: string[]): Promise<CliProcess> => {
    const daemon = start(['daemon', ...args]);
    await daemon.until(() => daemon.stdout.includes('\n') || daemon.child.exitCode !== null);
    return daemon;
  };

  test.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    'says when it is ready, and ends cleanly by %s',
    async (signal) => {
      const daemon = await startDaemon();
      expect(daemon.stdout).toBe(`shadowvm: ready on ${join(state, 'shadowvm.sock')}\n`);
      expect(await client().version()).toMatchObject({
        pid: daemon.child.pid,
        stateDir: state,
        imagesDir: join(state, 'images'),
      });
      daemon.child.kill(signal);
      expect(await daemon.ended).toMatchObject({ code: 0, stderr: 'shadowvm: stopping\n' });
      expect(existsSync(join(state, 'shadowvm.sock'))).toBe(false);
      expect(existsSync(join(state, 'run'))).toBe(false);
      const log = readFileSync(join(state, 'log/manager.log'), 'utf8').trim().split('\n');
      expect(JSON.parse(log[0]!).msg).toBe('daemon starts');
      expect(JSON.parse(log.at(-1)!).msg).toBe('daemon has ended');
      const events = readFileSync(join(state, 'events.jsonl'), 'utf8').trim().split('\n');
      const types = events.map((line) => eventSchema.parse(JSON.parse(line)).type);
      expect(types).toContain('daemon.ready');
      expect(types).toContain('daemon.stopping');
    },
  );

  test('a second one on the same state is refused, and the first goes on', async () => {
    const first = await startDaemon('--json');
    expect(JSON.parse(first.stdout)).toEqual({ ready: { socket: join(state, 'shadowvm.sock'), pid: first.child.pid } });
    expect(await run('daemon')).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(
        new RegExp(`another daemon has it, process ${first.child.pid}\\. .*\\[STATE_LOCKED\\]`),
      ),
    });
    expect(await client().health()).toEqual({ status: 'ok' });
    // One signal from the terminal and one passed on by npm are one wish.
    first.child.kill('SIGINT');
    first.child.kill('SIGINT');
    expect((await first.ended).code).toBe(0);
  });

  test('after a SIGKILL the next one starts, and numbers of events go on', async () => {
    const first = await startDaemon();
    first.child.kill('SIGKILL');
    expect((await first.ended).signal).toBe('SIGKILL');
    expect(existsSync(join(state, 'shadowvm.sock'))).toBe(true);
    await expect(client().listVms()).rejects.toMatchObject({ code: 'DAEMON_NOT_RUNNING' });
    const second = await startDaemon();
    const seqs = (await client().listEvents()).map((event) => event.seq);
    expect(seqs.length).toBeGreaterThanOrEqual(2);
    expect(seqs).toEqual(seqs.map((_, i) => i + 1));
    second.child.kill('SIGTERM');
    expect((await second.ended).code).toBe(0);
  });

  test('it outlives the reader of its output', async () => {
    const daemon = await startDaemon('--verbose');
    daemon.child.stdout!.destroy();
    daemon.child.stderr!.destroy();
    daemon.child.kill('SIGTERM');
    const [code] = await once(daemon.child, 'exit');
    expect(code).toBe(0);
  });

  test.each([
    ['a path that is too long', () => join(state, 'x'.repeat(80)), 2, 'INVALID_ARGUMENT', 'leave room for'],
    ['a file', () => join(state, 'file'), 2, 'INVALID_ARGUMENT', 'EEXIST'],
    [
      'a directory with other things',
      () => join(state, 'open'),
      2,
      'INVALID_ARGUMENT',
      'holds other things (thesis.tex)',
    ],
    ['a path below nothing', () => '/proc/nothing/here', 1, 'INTERNAL', 'ENOENT'],
  ])('%s for the state is refused and nothing is made', async (_, path, code, error, reason) => {
    writeFileSync(join(state, 'file'), '');
    mkdirSync(join(state, 'open'), { mode: 0o755 });
    chmodSync(join(state, 'open'), 0o755);
    writeFileSync(join(state, 'open/thesis.tex'), '');
    const ended = await run('daemon', '--state', path());
    expect(ended).toMatchObject({ code, stdout: '' });
    expect(ended.stderr).toContain(reason);
    expect(ended.stderr).toContain(`[${error}]`);
  });

  test('a full disk is told as such', async () => {
    // The log of the daemon is the first thing that it opens after the lock.
    mkdirSync(join(state, 'log'));
    symlinkSync('/dev/full', join(state, 'log/manager.log'));
    const daemon = await startDaemon();
    await daemon.until(() => daemon.stderr.includes('the log can not be written: ENOSPC'));
    expect(await client().health()).toEqual({ status: 'ok' });
    daemon.child.kill('SIGTERM');
    expect((await daemon.ended).code).toBe(0);
  });
});
