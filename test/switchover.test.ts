/** Switchovers of real VMs: by every kind of death, by hand, and never by anything else. Needs root. */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { InProcessManager } from '../harness/in-process.js';
import { leftovers } from '../harness/leftovers.js';
import { RedisConnection } from '../harness/redis.js';
import { nativeNetwork } from '../src/network/native.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { POISON_AFTER_MS } from '../src/switchover/rewind.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import type { Event, PromotionView } from '../src/vm/view.js';
import { isAlive, until } from './bare-qemu.js';
import { qemu10, useQemu10 } from './qemu10.js';

/** A quarter of a second for each round over all of memcheck's pages. */
const MEMCHECK = 'shadowvm-guest memcheck 8 8000 &';
const RAM_BYTES = 192 * MIB;

let manager: InProcessManager;

async function openManager(number: number): Promise<void> {
  manager = await InProcessManager.open({ bridge: `svtsw${number}`, subnet: `10.214.${number}.0/24` });
}

async function closeManager(): Promise<void> {
  const { root } = manager.stateDir;
  await manager.close();
  expect(leftovers(root)).toEqual([]);
  expect(existsSync(root)).toBe(false);
}

/** What memcheck said through a VM's heartbeats, whichever QEMU it ran in. */
class Memcheck {
  private readonly said: { qemu: QemuProcess; atNs: bigint; writes: number; rounds: number; bad: number }[] = [];
  private readonly timer = setInterval(() => this.look(), 3);

  constructor(private readonly vm: string) {}

  /** Starts it, and resolves when it has looked at all of its memory. */
  static async start(vm: string): Promise<Memcheck> {
    expect(await manager.port.guestExec(vm, MEMCHECK)).toEqual({ exitCode: 0 });
    const memcheck = new Memcheck(vm);
    await memcheck.sound();
    return memcheck;
  }

  private look(): void {
    if (!manager.port.listVms().some(({ name }) => name === this.vm)) {
      this.stop(); // a test that failed did not
      return;
    }
    const { primary } = manager.port.vmForTest(this.vm).processesForTest;
    const beat = primary?.agent.last;
    if (primary == null || beat == null || beat.atNs === this.said.at(-1)?.atNs) return;
    const [, writes, rounds, bad] = /^memcheck i=(\d+) rounds=(\d+) bad=(\d+)$/.exec(beat.app) ?? [];
    if (writes !== undefined)
      this.said.push({
        qemu: primary,
        atNs: beat.atNs,
        writes: Number(writes),
        rounds: Number(rounds),
        bad: Number(bad),
      });
  }

  /** Resolves when it has looked twice at everything from now on, and found nothing wrong. */
  async sound(): Promise<void> {
    const rounds = this.said.at(-1)?.rounds ?? 0;
    await until('two rounds of memcheck', () => (this.said.at(-1)?.rounds ?? 0) >= rounds + 2, 30_000);
    expect(this.said.at(-1)?.bad).toBe(0);
  }

  /** The guest goes on, with nothing lost of what it had said before this moment. */
  async goesOnFrom(promotion: PromotionView, losesNothing = false): Promise<void> {
    const { primary } = manager.processes(this.vm);
    await until('memcheck in the shadow', () => this.said.some(({ qemu }) => qemu === primary), 30_000);
    const first = this.said.find(({ qemu }) => qemu === primary)!;
    const cutAtNs = losesNothing ? BigInt(promotion.fencedAtNs) : BigInt(promotion.cutAtNs);
    // Of the QEMU that it ran in then: what earlier ones had said may have been rolled back before.
    const then = this.said.findLast(({ qemu, atNs }) => qemu !== primary && atNs < cutAtNs)?.qemu;
    expect(then).toBeDefined();
    const before = this.said.filter(({ qemu, atNs }) => qemu === then && atNs < cutAtNs).map(({ writes }) => writes);
    expect(first.writes).toBeGreaterThanOrEqual(Math.max(...before));
    await this.sound();
  }

  stop(): void {
    clearInterval(this.timer);
  }
}

interface Injection {
  inject: (name: string) => unknown;
  cause: RegExp;
}
const kill: Injection = {
  inject: (name) => manager.port.injectFault(name, 'kill'),
  cause: /^(process-died|monitor-ended)/,
};
const hang: Injection = { inject: (name) => manager.port.injectFault(name, 'hang'), cause: /^process-stopped/ };
const panic: Injection = { inject: (name) => manager.port.injectFault(name, 'panic'), cause: /^guest-reset/ };

/** Makes a fault and waits for the promotion that follows; what must hold after every one is checked. */
async function failOver(name: string, { inject, cause }: Injection): Promise<PromotionView> {
  await manager.shadowReady(name);
  await until('a QEMU that waits', () => manager.processes(name).shadow !== null);
  await manager.epochFromNowOn(name);
  const since = newestSeq();
  const before = manager.port.showVm(name);
  const old = manager.processes(name).primary;
  const promoted = manager.nextPromotion(name);
  await inject(name);
  const promotion = await promoted;
  const after = manager.port.showVm(name);
  expect(after).toMatchObject({ state: 'running', generation: before.generation + 1, pid: before.shadow?.pid });
  expect({ ...promotion, name: after.name }).toMatchObject({ vm: name, generation: before.generation + 1 });
  expect(promotion.reason).toMatch(cause);
  expect([after.address, after.mac]).toEqual([before.address, before.mac]);
  const { cutAtNs, decidedAtNs, fencedAtNs, resumedAtNs } = promotion;
  const times = [cutAtNs, decidedAtNs, fencedAtNs, resumedAtNs].map(BigInt);
  expect(times).toEqual([...times].sort((a, b) => (a < b ? -1 : 1)));
  expect(recordOf(name).generation).toBe(before.generation + 1);
  await until('the end of the old primary', () => !isAlive(old.pid));
  await manager.shadowReady(name);
  const types = typesSince(since, name);
  for (const [earlier, later] of [
    ['failure.detected', 'promotion.done'],
    ['promotion.done', 'shadow.starting'],
    ['shadow.starting', 'shadow.ready'],
  ] as const)
    expect(types.indexOf(earlier), `${earlier} in ${types.join(' ')}`).toBeLessThan(types.lastIndexOf(later));
  expect(types.filter((type) => type.startsWith('promotion.step'))).toEqual([]);
  expect(types.filter((type) => type === 'promotion.done')).toHaveLength(1);
  return promotion;
}

function typesSince(seq: number, vm: string): string[] {
  return manager.events.list({ since: seq, vm }).map(({ type }) => type);
}

const newestSeq = () => manager.events.list({ limit: 1 })[0]?.seq ?? 0;

function recordOf(name: string): { generation: number; state: string } {
  const { stateDir } = manager;
  const note = stateDir.notePath(name);
  return JSON.parse(readFileSync(existsSync(note) ? note : stateDir.recordPath(name), 'utf8'));
}

/** Of one VM, while the manager lives. */
function leftoversOf(name: string): string[] {
  const { root, runDir } = manager.stateDir;
  return [
    ...leftovers(root).filter((what) => /^QEMU/.test(what)),
    ...readdirSync(runDir).filter((file) => file.startsWith(name)),
  ];
}

async function run(spec: VmSpecInput): Promise<void> {
  await manager.runVm({ ramBytes: RAM_BYTES, accelerator: 'tcg', ...spec });
}

// ---------------------------------------------------------------------------------------------------------------------

describe.skipIf(qemu10 === null)(`with QEMU ${qemu10?.version ?? '10'}`, () => {
  let leaveQemu10: () => void;
  beforeAll(async () => {
    leaveQemu10 = useQemu10();
    await openManager(10);
  });
  afterAll(async () => {
    leaveQemu10();
    await closeManager();
  });

  test('a VM survives a kill, a hang, a panic and a switchover by hand', async () => {
    await run({ name: 'ten', shadow: { kind: 'always' } });
    const memcheck = await Memcheck.start('ten');
    const version = await manager.processes('ten').primary.qmp.execute('query-version');
    expect(`${version.qemu.major}.${version.qemu.minor}.${version.qemu.micro}`).toBe(qemu10?.version);
    for (const fault of [kill, hang, panic]) await memcheck.goesOnFrom(await failOver('ten', fault));
    await memcheck.goesOnFrom(await manager.port.promoteShadow('ten', null), true);
    memcheck.stop();
  });
});

// ---------------------------------------------------------------------------------------------------------------------

describe('a VM with a shadow', () => {
  let memcheck: Memcheck;
  beforeAll(async () => {
    await openManager(1);
    await run({ name: 'web', shadow: { kind: 'always' } });
    memcheck = await Memcheck.start('web');
    await manager.shadowReady('web');
  });
  afterAll(async () => {
    memcheck.stop();
    await closeManager();
  });
  const redis = () =>
    eventually('Redis', () => RedisConnection.connect(manager.port.showVm('web').address as string, 6379, 5000));

  test('killed, goes on where its newest epoch was cut', async () => {
    await memcheck.goesOnFrom(await failOver('web', kill));
  });

  test('killed in async mode, keeps the connections that were quiet since its epoch, and no others', async () => {
    await manager.shadowReady('web');
    const [quiet, busy] = [await redis(), await redis()];
    for (const client of [quiet, busy]) expect(await client.send('PING')).toBe('PONG');
    await manager.epochFromNowOn('web');
    await manager.port.vmForTest('web').shadow?.hold(5000);
    for (let i = 0; i < 20; i++) expect(await busy.send('SET', 'rolled', 'back')).toBe('OK');
    const promoted = manager.nextPromotion('web');
    await manager.port.injectFault('web', 'kill');
    await promoted;
    expect(await quiet.send('PING')).toBe('PONG');
    const fresh = await redis();
    expect(await fresh.send('GET', 'rolled')).toBeNull();
    // The guest waits for bytes that it has had already, and that its client will not send again.
    const answer = busy.send('PING').catch(() => 'ended');
    expect(['silence', 'ended']).toContain(await Promise.race([answer, sleep(2000, 'silence')]));
    for (const client of [quiet, busy, fresh]) client.close();
    await manager.shadowReady('web');
  });

  test('stopped, goes on too', async () => {
    await memcheck.goesOnFrom(await failOver('web', hang));
  });

  test('panicking twice, goes on both times', async () => {
    for (let i = 0; i < 2; i++) {
      // Sooner after a promotion it would be taken further back: test/snapshots.test.ts.
      await sleep(POISON_AFTER_MS + 100);
      await memcheck.goesOnFrom(await failOver('web', panic));
    }
  });

  test('promoted by hand, loses nothing at all: neither a write nor a connection', async () => {
    await manager.shadowReady('web');
    const client = await redis();
    expect(await client.send('SET', 'n', '41')).toBe('OK');
    const since = newestSeq();
    const promotion = await manager.port.promoteShadow('web', null);
    expect(promotion).toMatchObject({
      vm: 'web',
      reason: 'by hand',
      generation: manager.port.showVm('web').generation,
    });
    expect(await client.send('INCR', 'n')).toBe(42);
    client.close();
    await memcheck.goesOnFrom(promotion, true);
    expect(typesSince(since, 'web')).not.toContain('failure.detected');
  });

  test('asked for twice at once, is promoted once', async () => {
    await manager.shadowReady('web');
    const { generation } = manager.port.showVm('web');
    const outcomes = await Promise.allSettled([
      manager.port.promoteShadow('web', null),
      manager.port.promoteShadow('web', null),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    expect((outcomes[1] as PromiseRejectedResult).reason).toMatchObject({ code: 'PROMOTION_IN_PROGRESS' });
    expect(manager.port.showVm('web').generation).toBe(generation + 1);
  });

  test('can not be promoted while its first epoch is made, nor be given a second shadow', async () => {
    await manager.port.removeShadow('web');
    const { generation } = manager.port.showVm('web');
    const refused = new Promise<unknown>((resolve, reject) => {
      const off = manager.events.follow((event) => {
        if (event.type !== 'shadow.syncing') return;
        off();
        manager.port.promoteShadow('web', null).then(() => reject(new Error('it was promoted')), resolve);
      });
    });
    await manager.port.createShadow('web', () => {});
    expect(await refused).toMatchObject({ code: 'SHADOW_NOT_READY' });
    await manager.shadowReady('web');
    await expect(manager.port.createShadow('web', () => {})).rejects.toMatchObject({ code: 'SHADOW_EXISTS' });
    expect(manager.port.showVm('web').generation).toBe(generation);
  });

  test('whose waiting QEMU is killed, notices nothing and gets another, while the epochs go on', async () => {
    await manager.shadowReady('web');
    await until('a QEMU that waits', () => manager.processes('web').shadow !== null);
    const since = newestSeq();
    const before = manager.port.showVm('web');
    manager.processes('web').shadow!.kill();
    await until('its end', () => manager.processes('web').shadow === null);
    await manager.epochFromNowOn('web');
    await until('another QEMU that waits', () => manager.processes('web').shadow !== null);
    const after = manager.port.showVm('web');
    expect([after.pid, after.generation, after.state]).toEqual([before.pid, before.generation, 'running']);
    expect(after.shadow!.pid).not.toBe(before.shadow!.pid);
    expect(after.shadow!.state).toBe('ready');
    expect(typesSince(since, 'web')).toEqual(['standby.lost']);
    await memcheck.sound();
  });

  test('dies while nothing waits: a QEMU is started for it then', async () => {
    await manager.port.changeStandby('web', { level: 'image' });
    expect(manager.processes('web').shadow).toBeNull();
    await manager.epochFromNowOn('web');
    const promoted = manager.nextPromotion('web');
    await manager.port.injectFault('web', 'kill');
    await memcheck.goesOnFrom(await promoted);
    await manager.port.changeStandby('web', { level: 'process' });
  });

  test('tells the next manager of the new generation before it runs, and waits for no disk', async () => {
    await manager.shadowReady('web');
    const { generation } = manager.port.showVm('web');
    const { stateDir } = manager;
    const note = stateDir.noteVmRecord.bind(stateDir);
    const save = stateDir.saveVmRecord.bind(stateDir);
    let notedAtNs = 0n;
    let saved = Promise.resolve();
    stateDir.noteVmRecord = (record) => {
      note(record);
      expect(JSON.parse(readFileSync(stateDir.notePath('web'), 'utf8')).generation).toBe(generation + 1);
      notedAtNs = process.hrtime.bigint();
    };
    let diskIsFree = () => {};
    const disk = new Promise<void>((resolve) => {
      diskIsFree = resolve;
    });
    stateDir.saveVmRecord = async (record) => {
      await disk;
      saved = save(record);
      await saved;
    };
    try {
      const promotion = await failOver('web', kill);
      expect(notedAtNs).toBeGreaterThan(BigInt(promotion.decidedAtNs));
      expect(BigInt(promotion.resumedAtNs)).toBeGreaterThan(notedAtNs);
      expect(existsSync(stateDir.notePath('web'))).toBe(true);
      await memcheck.goesOnFrom(promotion);
      diskIsFree();
      await until('it to be saved', () => !existsSync(stateDir.notePath('web')));
      await saved;
      expect(recordOf('web').generation).toBe(generation + 1);
    } finally {
      diskIsFree();
      stateDir.noteVmRecord = note;
      stateDir.saveVmRecord = save;
    }
  });

  test('fences a primary that can not even be killed: nothing that it sends gets anywhere', async () => {
    await manager.shadowReady('web');
    const { primary: old } = manager.processes('web');
    const { tap, mac } = manager.port.showVm('web');
    // The guest sends for as long as it runs, in the old QEMU as in the new one.
    await manager.port.guestExec(
      'web',
      `ping -q ${manager.port.showVm('web').address?.replace(/\d+$/, '1')} > /dev/null &`,
    );
    // As of a process in an uninterruptible system call: the signal does not end it.
    old.kill = () => {};
    await manager.epochFromNowOn('web');
    // An epoch that begins now leaves its `stop` in the frozen QEMU's monitor, and a guest that obeys it sends nothing.
    await manager.port.vmForTest('web').shadow?.hold(5000);
    const promoted = manager.nextPromotion('web');
    old.freeze();
    const promotion = await promoted;
    try {
      const before = nativeNetwork().counters(tap as string);
      process.kill(old.pid, 'SIGCONT');
      const client = await redis();
      await until(
        'packets of the old guest',
        () => nativeNetwork().counters(tap as string).rxPackets > before.rxPackets,
      );
      for (let i = 0; i < 40; i++) {
        expect(await client.send('PING')).toBe('PONG');
        await sleep(25);
      }
      client.close();
      expect(isAlive(old.pid)).toBe(true);
      expect(nativeNetwork().counters(tap as string).txPackets).toBe(before.txPackets);
      // The bridge did not learn the guest's address at its old place.
      const learned = execFileSync('bridge', ['fdb', 'show', 'br', 'svtsw1'], { encoding: 'utf8' });
      const places = learned.split('\n').filter((line) => line.startsWith(mac as string));
      expect(places).toEqual([expect.stringContaining(`dev ${manager.port.showVm('web').tap}`)]);
    } finally {
      process.kill(old.pid, 'SIGKILL');
    }
    await memcheck.goesOnFrom(promotion);
    await manager.shadowReady('web');
    await manager.port.guestExec('web', 'killall ping');
  });

  test('on a host whose CPUs are all taken, and with a manager that stands still, is not promoted', async () => {
    await manager.shadowReady('web');
    const since = newestSeq();
    const before = manager.port.showVm('web');
    const burn = "require('worker_threads');for(;;);";
    const burners = Array.from({ length: 6 }, () => spawn(process.execPath, ['-e', burn], { stdio: 'ignore' }));
    try {
      await sleep(4000);
      for (const blockedMs of [1000, 300, 1000]) {
        for (const until = performance.now() + blockedMs; performance.now() < until; );
        await sleep(250);
      }
      expect(manager.events.list({ since }).filter(({ type }) => /^(failure\.detected|promotion)/.test(type))).toEqual(
        [],
      );
    } finally {
      for (const each of burners) each.kill('SIGKILL');
    }
    expect(manager.port.showVm('web')).toMatchObject({ pid: before.pid, generation: before.generation });
    await memcheck.sound();
  });

  test('whose shadow is taken away, stays without; by hand it gets one again', async () => {
    await manager.shadowReady('web');
    const shadowPid = manager.port.showVm('web').shadow!.pid!;
    await manager.port.removeShadow('web');
    await sleep(1500);
    expect([manager.port.showVm('web').shadow, isAlive(shadowPid)]).toEqual([null, false]);
    for (const refused of [manager.port.removeShadow('web'), manager.port.promoteShadow('web', null)])
      await expect(refused).rejects.toMatchObject({ code: 'SHADOW_NOT_FOUND' });
    const view = await manager.port.createShadow('web', () => {});
    expect(view).toMatchObject({ vm: 'web', state: 'ready', createdBecause: 'by hand' });
    await memcheck.goesOnFrom(await failOver('web', kill));
  });

  test('that powers off by itself has not failed: it stops, and nothing is promoted', async () => {
    await manager.shadowReady('web');
    const since = newestSeq();
    const stopped = manager.nextEvent('web', 'vm.stopped');
    await manager.port.guestExec('web', 'poweroff');
    await stopped;
    expect(typesSince(since, 'web').filter((type) => /failure|promotion|lost/.test(type))).toEqual([]);
    expect(manager.port.showVm('web')).toMatchObject({ state: 'stopped', pid: null, shadow: null });
    expect(leftoversOf('web')).toEqual([]);
    await expect(manager.port.promoteShadow('web', null)).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
  });
});

// ---------------------------------------------------------------------------------------------------------------------

describe('other VMs', () => {
  beforeAll(() => openManager(2));
  afterAll(closeManager);
  afterEach(async () => {
    for (const { name } of manager.port.listVms()) await manager.port.removeVm(name, { force: true });
    expect(leftovers(manager.stateDir.root).filter((what) => /^QEMU/.test(what))).toEqual([]);
  });

  test('two vCPUs, user-mode network, a shadow by a trigger: the published port works before and after', async () => {
    const hostPort = await freePort();
    await run({
      name: 'duo',
      vcpus: 2,
      network: 'user',
      publish: [{ hostPort, guestPort: 6379 }],
      shadow: { kind: 'when', triggers: [{ metric: 'cpu', above: 30, heldMs: 500 }] },
    });
    const ask = async (...words: string[]) => {
      const client = await RedisConnection.connect('127.0.0.1', hostPort, 5000);
      const reply = await client.send(...words);
      client.close();
      return reply;
    };
    await eventually('Redis before', () => ask('SET', 'n', '1'));
    expect(manager.port.showVm('duo').shadow).toBeNull();
    const ready = manager.nextEvent('duo', 'shadow.ready');
    await manager.port.guestExec('duo', 'for cpu in 1 2; do shadowvm-guest cpuloop 60 & echo $! >> /tmp/loops; done');
    await ready;
    expect(manager.port.showVm('duo').shadow!.createdBecause).toMatch(/^cpu at \d+ %, trigger cpu>30%\/500ms$/);
    await manager.port.guestExec('duo', 'kill $(cat /tmp/loops)');
    const memcheck = await Memcheck.start('duo');
    for (let i = 0; i < 2; i++) {
      await memcheck.goesOnFrom(await failOver('duo', kill));
      await eventually('Redis after', () => ask('PING'));
      expect(await ask('GET', 'n')).toBe('1');
    }
    const stopped = manager.nextEvent('duo', 'vm.stopped');
    await manager.port.guestExec('duo', 'reboot');
    await stopped;
    expect(manager.events.list({ vm: 'duo' }).filter(({ type }) => type === 'promotion.done')).toHaveLength(2);
    memcheck.stop();
  });

  test('without a shadow a death is a loss, told with its reason, and everything is given back', async () => {
    await run({ name: 'lone' });
    const { pid, tap } = manager.port.showVm('lone');
    const failed = manager.nextEvent('lone', 'vm.failed');
    const lost = manager.nextEvent('lone', 'vm.lost');
    process.kill(pid as number, 'SIGKILL');
    expect((await lost).message).toMatch(/nothing could take over, it had no shadow: (process-died|monitor-ended)/);
    await failed;
    expect(manager.port.showVm('lone')).toMatchObject({
      state: 'failed',
      pid: null,
      tap: null,
      failure: expect.stringMatching(/process-died|monitor-ended/),
    });
    expect(recordOf('lone').state).toBe('failed');
    expect([leftoversOf('lone'), existsSync(`/sys/class/net/${tap}`), isAlive(pid as number)]).toEqual([
      [],
      false,
      false,
    ]);
    await expect(manager.port.guestExec('lone', 'true')).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
  });

  test('whose generation can not be written is lost rather than run twice', async () => {
    await run({ name: 'full', network: 'none', shadow: { kind: 'always' } });
    await manager.shadowReady('full');
    await until('a QEMU that waits', () => manager.processes('full').shadow !== null);
    const { stateDir } = manager;
    const note = stateDir.noteVmRecord.bind(stateDir);
    stateDir.noteVmRecord = () => {
      throw new Error('the disk is full');
    };
    try {
      const shadow = manager.processes('full').shadow!;
      const failed = manager.nextEvent('full', 'vm.failed');
      await manager.port.injectFault('full', 'kill');
      await failed;
      expect(manager.port.showVm('full')).toMatchObject({
        state: 'failed',
        generation: 0,
        failure: expect.stringContaining('the disk is full'),
      });
      expect([isAlive(shadow.pid), leftoversOf('full')]).toEqual([false, []]);
      expect(recordOf('full').generation).toBe(0);
    } finally {
      stateDir.noteVmRecord = note;
    }
  });

  test('that switches its power off without a word has not failed either', async () => {
    await run({ name: 'rude', network: 'none', shadow: { kind: 'always' } });
    await manager.shadowReady('rude');
    const stopped: Promise<Event> = manager.nextEvent('rude', 'vm.stopped');
    await Promise.all([manager.port.guestExec('rude', 'poweroff -f').catch(() => {}), stopped]);
    const types = manager.events.list({ vm: 'rude' }).map(({ type }) => type);
    expect(types.filter((type) => /failure|promotion|lost/.test(type))).toEqual([]);
  });
});

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Tries again until it works: a service that starts, a port that moves from one process to the next. */
async function eventually<T>(what: string, attempt: () => Promise<T>): Promise<T> {
  for (const deadline = performance.now() + 10_000; ; await sleep(50))
    try {
      return await attempt();
    } catch (error) {
      if (performance.now() > deadline) throw new Error(`${what} did not work: ${String(error)}`);
    }
}
