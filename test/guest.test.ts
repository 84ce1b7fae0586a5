/** What runs inside the guest: the agent's protocol, shutdown, and the loads that judge a failover. */
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildImage } from '../src/image/builder.js';
import type { Image } from '../src/image/store.js';
import { GuestVm } from './guest-vm.js';

const imagesDir = join(import.meta.dirname, '../.cache/images');
let image: Image;

beforeAll(async () => {
  image = (await buildImage({ imagesDir, packages: ['redis-server'] })).image;
});

const sleepMs = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const field = (line: string, index: number) => Number(line.split(' ')[index]);

describe('a running guest', () => {
  let vm: GuestVm;
  beforeAll(async () => {
    vm = await GuestVm.start(image);
    await vm.booted();
    // The boot's own work is over when redis answers; then timings are the agent's.
    await vm.exec('ready', 'until redis-cli ping | grep -q PONG; do sleep 0.2; done');
  });
  afterAll(() => vm.end());

  test('beats every 50 ms, counting, also under full load', async () => {
    expect(await vm.exec('load', '(shadowvm-guest cpuloop 4 & shadowvm-guest cpuloop 4 &) ; true')).toBe(0);
    await vm.until('status of the load', () => vm.app.startsWith('cpuloop n='));
    const from = vm.beats.length;
    await sleepMs(2000);
    const beats = vm.beats.slice(from);
    const counts = beats.map((line) => field(line, 1));
    const uptimesMs = beats.map((line) => field(line, 2));
    // By the guest's clock: that of the test's machine may stand still for this process.
    expect(counts.at(-1)! - counts[0]!).toBe(beats.length - 1);
    const meanMs = (uptimesMs.at(-1)! - uptimesMs[0]!) / (beats.length - 1);
    expect(meanMs).toBeGreaterThan(45);
    expect(meanMs).toBeLessThan(80);
    expect(field(beats[0]!, 3)).toBeGreaterThan(200_000);
    expect(field(beats[0]!, 4)).toBeLessThan(field(beats[0]!, 3));
  });

  test('runs commands and tells how they ended', async () => {
    expect(await vm.exec('ok', 'true')).toBe(0);
    expect(await vm.exec('seven', 'exit 7')).toBe(7);
    expect(await vm.exec('killed', 'kill -9 $$')).toBe(137);
    expect(await vm.exec('none', 'no-such-command')).toBe(127);
    expect(await vm.exec('shown', 'echo a word on the console')).toBe(0);
    expect(vm.log).toContain('a word on the console');
    // 1 is SCHED_FIFO: commands must not run above everything as the agent does.
    expect(await vm.exec('policy', '[ "$(cut -d " " -f 41 /proc/self/stat)" = 0 ]')).toBe(0);
  });

  test('runs at most 16 commands at once', async () => {
    for (let n = 0; n < 16; n++) vm.say(`exec many${n} sleep 3\n`);
    expect(await vm.exec('over', 'true')).toBe(125);
    for (let n = 0; n < 16; n++) await vm.until(`end of many${n}`, () => vm.lines.includes(`exit many${n} 0`));
    expect(await vm.exec('again', 'true')).toBe(0);
  });

  test('discards nonsense and lines that are too long, and nothing after them', async () => {
    vm.say(`exec long ${'x'.repeat(5000)}\nnonsense\nexec\nexec broken\n\n`);
    expect(await vm.exec('sane', 'true')).toBe(0);
    expect(vm.lines.some((line) => line.startsWith('exit long') || line.startsWith('exit broken'))).toBe(false);
    const longest = `exit 3 # ${'y'.repeat(4000)}`;
    expect(await vm.exec('longest', longest)).toBe(3);
  });

  test('survives that the host goes away, without burning CPU, and tells afterwards what ended meanwhile', async () => {
    const busyTicks = "awk '{print $14 + $15}' /proc/$(pidof shadowvm-guest)/stat > /tmp/ticks";
    await vm.exec('before', busyTicks);
    vm.say('exec meanwhile sleep 0.5; exit 9\nexec unfini');
    await sleepMs(100);
    const count = field(vm.beats.at(-1)!, 1);
    vm.hangUp();
    await vm.until('exit of the command', () => vm.lines.includes('exit meanwhile 9'));
    // Half a command of the former connection does not become the beginning of a new one.
    expect(await vm.exec('whole', 'true')).toBe(0);
    expect(vm.lines.some((line) => line.startsWith('exit unfini'))).toBe(false);
    expect(field(vm.beats.at(-1)!, 1)).toBeGreaterThan(count + 5);
    for (const line of vm.lines) expect(line).toMatch(/^(beat \d+ \d+ \d+ \d+ .+|exit \S+ \d+)$/);
    // The agent's CPU time over the whole second or so: well below a tenth, in ticks of 10 ms.
    const spent =
      "awk -v before=$(cat /tmp/ticks) '{exit !($14 + $15 - before < 30)}' /proc/$(pidof shadowvm-guest)/stat";
    expect(await vm.exec('spent', spent)).toBe(0);
  });

  test('shows what an application says of itself, also when the file is replaced or removed', async () => {
    await vm.exec('w1', "printf 'first\\tline\\nsecond\\n' > /run/app-status");
    await vm.until('status', () => vm.app === 'first');
    await vm.exec('w2', `echo ${'z'.repeat(300)} > /run/new; mv /run/new /run/app-status`);
    await vm.until('replaced status', () => vm.app === 'z'.repeat(160));
    await vm.exec('w3', 'rm /run/app-status');
    await vm.until('no status', () => vm.app === '-');
  });

  test('answers a ping with its own words, and then rests from beating for as long as it is told, a second at most', async () => {
    for (const [words, restMs] of [
      ['rest 400', 400],
      ['rest 5000', 1000],
      ['rest -1\nrest x', 0],
    ] as const) {
      vm.say(`ping 77${restMs}\n${words}\n`);
      await vm.until('the answer', () => vm.lines.includes(`pong 77${restMs}`));
      const count = vm.beats.length;
      await vm.until('the next beat', () => vm.beats.length > count);
      const [before, next] = vm.beats.slice(count - 1).map((line) => field(line, 2)) as [number, number];
      expect(next - before).toBeGreaterThanOrEqual(restMs);
      expect(next - before).toBeLessThan(restMs + 500);
    }
  });

  test('has a shell on its console', async () => {
    const socket = connect(vm.consolePath);
    let text = '';
    socket.on('data', (bytes) => {
      text += bytes.toString('latin1');
    });
    socket.write('\n');
    await vm.until('prompt', () => /[#$] /.test(text));
    socket.write('tty; echo $((6 * 7))\n');
    await vm.until('answer', () => text.includes('/dev/ttyS0') && text.includes('42'));
    socket.write('exit\n');
    await vm.until('another shell', () => text.split('42')[1]?.includes('tester'));
    socket.destroy();
  });

  test('leaves no zombies', async () => {
    await vm.exec('orphans', '(sleep 0.1 &) ; (sleep 0.1 &) ; sleep 0.5');
    expect(await vm.exec('zombies', "! grep -l '^State:.Z' /proc/[0-9]*/status")).toBe(0);
  });
});

describe('the self-checking load', () => {
  let vm: GuestVm;
  const status = () => /memcheck i=(\d+) rounds=(\d+) bad=(\d+)/.exec(vm.app)?.slice(1).map(Number);
  beforeAll(async () => {
    vm = await GuestVm.start(image);
    await vm.booted();
  });
  afterAll(() => vm.end());

  test('finds nothing wrong in a sound memory, and a single page of another moment in an unsound one', async () => {
    vm.say('exec load shadowvm-guest memcheck 4 2000\n');
    await vm.until('two rounds', () => (status()?.[1] ?? 0) >= 2);
    expect(status()![2]).toBe(0);
    // The region's last page as it is now, put back after it was written again: one page out of 1024 is too old.
    const takeAndPutBack =
      'pid=$(pidof shadowvm-guest | tr " " "\\n" | while read p; do grep -q memcheck /proc/$p/cmdline && echo $p; done);' +
      ' range=$(awk \'{split($1, a, "-"); if ($6 == "" && length(a[1]) > 8) print a[1], a[2]}\' /proc/$pid/maps |' +
      ' while read from to; do [ $((0x$to - 0x$from)) -ge 4194304 ] && echo $to; done | head -1);' +
      ' page=$((0x$range / 4096 - 1)); dd if=/proc/$pid/mem of=/tmp/page bs=4096 skip=$page count=1 2>/dev/null || exit 3;' +
      ' sleep 4; dd if=/tmp/page of=/proc/$pid/mem bs=4096 seek=$page count=1 conv=notrunc 2>/dev/null || exit 4';
    expect(await vm.exec('mix', takeAndPutBack)).toBe(0);
    await vm.until('discovery', () => (status()?.[2] ?? 0) > 0);
    await vm.until('details', () => /memcheck: header of page 1023 is/.test(vm.log));
  }, 60_000);

  test('keeps to the rate it was given', async () => {
    const [from] = status()!;
    const fromMs = field(vm.beats.at(-1)!, 2);
    await sleepMs(2000);
    const perSecond = ((status()![0]! - from!) * 1000) / (field(vm.beats.at(-1)!, 2) - fromMs);
    expect(perSecond).toBeGreaterThan(1600);
    expect(perSecond).toBeLessThan(2400);
  });
});

describe('the end of a guest', () => {
  test.each([
    ['poweroff, asked for by the host', (vm: GuestVm) => vm.say('poweroff\n'), 'bye poweroff'],
    ['poweroff, from inside', (vm: GuestVm) => vm.say('exec off poweroff\n'), 'bye poweroff'],
    ['reboot, from inside', (vm: GuestVm) => vm.say('exec off reboot\n'), 'bye reboot'],
  ])('%s: says bye once and ends QEMU', async (_, act, bye) => {
    const vm = await GuestVm.start(image);
    try {
      await vm.booted();
      act(vm);
      await vm.until('end of QEMU', () => vm.exitCode !== null);
      expect(vm.exitCode).toBe(0);
      expect(vm.lines.filter((line) => line.startsWith('bye'))).toEqual([bye]);
    } finally {
      await vm.end();
    }
  });

  test('with Redis full of data, a login at the console and a load, it is over at once and yet clean', async () => {
    const vm = await GuestVm.start(image);
    try {
      await vm.booted();
      await vm.exec('ready', 'until redis-cli ping | grep -q PONG; do sleep 0.2; done');
      expect(await vm.exec('fill', 'redis-cli debug populate 50000 key 500')).toBe(0);
      vm.say('exec load shadowvm-guest memcheck 4 2000\n');
      await vm.until('status of the load', () => vm.app.startsWith('memcheck'));
      const startedMs = performance.now();
      vm.say('poweroff\n');
      await vm.until('end of QEMU', () => vm.exitCode !== null);
      // Half a second on a quiet machine. What refuses to end would be killed after three seconds more.
      expect(performance.now() - startedMs).toBeLessThan(3000);
      expect(vm.log).toContain('Redis is now ready to exit');
    } finally {
      await vm.end();
    }
  });

  test('panic: ends QEMU without a word of parting', async () => {
    const vm = await GuestVm.start(image);
    try {
      await vm.booted();
      vm.say('panic\n');
      await vm.until('end of QEMU', () => vm.exitCode !== null);
      expect(vm.lines.some((line) => line.startsWith('bye'))).toBe(false);
      expect(vm.log).toContain('sysrq triggered crash');
    } finally {
      await vm.end();
    }
  });
});
