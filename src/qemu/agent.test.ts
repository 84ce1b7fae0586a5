/** The agent's end of the line, against a guest that says what it likes. (With the real guest: test/epochs.test.ts.) */
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest';
import { GuestAgent, parseBeat } from './agent.js';

describe('a beat', () => {
  test('is read', () =>
    expect(parseBeat('beat 7 1234 250000 200000 memcheck i=1 bad=0', 5n)).toEqual({
      count: 7,
      uptimeMs: 1234,
      memTotalKiB: 250000,
      memAvailableKiB: 200000,
      app: 'memcheck i=1 bad=0',
      atNs: 5n,
    }));

  test.each([
    '',
    'beat',
    'beat 1 2 3 4',
    'beat 1 2 3 4 ',
    'beat -1 2 3 4 -',
    'beat 1.5 2 3 4 -',
    'beat 1 2 3 4  '.slice(0, -1) + '\n',
    ' beat 1 2 3 4 -',
    'beat 1 2 3 4 ' + 'x'.repeat(161),
    'beat 12345678901234567890 2 3 4 -',
    'BEAT 1 2 3 4 -',
  ])('%j is none', (line) => expect(parseBeat(line, 0n)).toBeNull());

  test('that is read is made of numbers; any other line is none, and none throws', () => {
    const word = fc.oneof(fc.nat().map(String), fc.string(), fc.constantFrom('beat', '-', ' ', '\n', '\0', 'é'));
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string({ unit: 'binary' }),
          fc.array(word).map((w) => `beat ${w.join(' ')}`),
        ),
        (line) => {
          const beat = parseBeat(line, 0n);
          if (beat === null) return;
          for (const value of [beat.count, beat.uptimeMs, beat.memTotalKiB, beat.memAvailableKiB])
            expect(Number.isFinite(value) && value >= 0).toBe(true);
          expect(beat.app.length).toBeGreaterThan(0);
        },
      ),
    );
  });
});

describe('an agent', () => {
  const dir = mkdtempSync(join(tmpdir(), 'shadowvm-agent-'));
  let server: net.Server;
  let guest: net.Socket;
  let agent: GuestAgent;
  let heard: string;
  let sockets = 0;

  const connect = async (): Promise<void> => {
    const path = join(dir, `${++sockets}.hb`);
    heard = '';
    const connected = new Promise<void>((resolve) => {
      server = net.createServer((socket) => {
        guest = socket;
        socket.on('error', () => {});
        socket.setEncoding('utf8').on('data', (text: string) => {
          heard += text;
        });
        resolve();
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    agent = new GuestAgent(path, 'web');
    await connected;
  };
  /** The number of the n-th command that the guest was told. */
  const execId = async (index: number): Promise<number> => {
    await expect.poll(() => [...heard.matchAll(/^exec (\d+) .*$/gm)].length).toBeGreaterThan(index);
    return Number([...heard.matchAll(/^exec (\d+) .*$/gm)][index]?.[1]);
  };
  beforeEach(connect);
  afterEach(() => {
    agent.close();
    guest.destroy();
    server.close();
  });
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  test('hears beats, in pieces and in bulk, and what came first', async () => {
    const apps: string[] = [];
    agent.onBeat = ({ app }) => apps.push(app);
    for (const piece of ['beat 1 2 ', '3 4 a\nbeat 2 2 3', ' 4 b\nwhat?\n\nbeat 3 2 3 4 c\n']) {
      guest.write(piece);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await expect.poll(() => agent.beats).toBe(3);
    expect(apps).toEqual(['a', 'b', 'c']);
    expect(agent.last).toMatchObject({ count: 3, app: 'c' });
    expect(agent.firstSignAtNs! < agent.last!.atNs).toBe(true);
    expect(agent.bye).toBeNull();
    guest.write('bye reboot\n');
    await expect.poll(() => agent.bye).toBe('reboot');
  });

  test('takes the answer to a ping for a sign of life as good as a beat, and tells who waits for one', async () => {
    const sign = agent.nextSign();
    agent.ping();
    await expect.poll(() => heard).toMatch(/^ping \d+\n$/);
    guest.write(heard.replace('i', 'o'));
    await sign;
    const pongAtNs = agent.lastSignAtNs as bigint;
    expect(agent.beats).toBe(0);
    expect(agent.livedAtNs > 0n && agent.livedAtNs < pongAtNs).toBe(true);
    const next = agent.nextSign();
    guest.write('beat 1 2 3 4 a\n');
    await next;
    expect(agent.lastSignAtNs! > pongAtNs).toBe(true);
    expect(agent.livedAtNs < pongAtNs).toBe(true); // a beat may have been sent long before
    const none = agent.nextSign();
    agent.close();
    await none;
    await agent.nextSign();
  });

  test('matches answers to commands by their numbers, in any order; strange numbers are nobody’s', async () => {
    const [first, second] = [agent.exec('true'), agent.exec('false')];
    const [a, b] = [await execId(0), await execId(1)];
    guest.write(`exit 999999999 0\nexit ${b} 1\nexit ${b} 77\nexit x 0\nexit ${a} -1\nexit ${a} 5\n`);
    expect([await first, await second]).toEqual([-1, 1]);
  });

  test('that ended and its successor never share a number: answers outlive a promotion', async () => {
    const before = agent.exec('sleep 9').catch((error: unknown) => error);
    const old = await execId(0);
    agent.close();
    expect(await before).toMatchObject({ code: 'VM_NOT_RUNNING' });
    guest.destroy();
    server.close();
    await connect();
    const after = agent.exec('true');
    const id = await execId(0);
    expect(id).not.toBe(old);
    guest.write(`exit ${old} 9\nexit ${id} 0\n`);
    expect(await after).toBe(0);
  });

  test('refuses what the guest would not take, more than 16 at once, and everything after its end', async () => {
    for (const command of ['two\nlines', 'x'.repeat(3501), 'ä'.repeat(1751)])
      await expect(agent.exec(command)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const pending = Array.from({ length: 16 }, () => agent.exec('ä'.repeat(1750)));
    await expect(agent.exec('true')).rejects.toMatchObject({ code: 'QUEUE_FULL', subject: 'web' });
    guest.write(`exit ${await execId(3)} 0\n`);
    expect(await pending[3]).toBe(0);
    const again = agent.exec('true');
    for (const each of [...pending, again]) each.catch(() => {});
    guest.destroy();
    for (const each of [...pending.filter((_, i) => i !== 3), again])
      await expect(each).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    await expect(agent.exec('true')).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
    agent.poweroff();
    agent.panic();
    agent.close();
  });

  test('forgets a line that does not end, and goes on with the next', async () => {
    guest.write('x'.repeat(100_000));
    await new Promise((resolve) => setTimeout(resolve, 20));
    guest.write('\nbeat 1 2 3 4 -\n');
    await expect.poll(() => agent.beats).toBe(1);
  });

  test('survives any bytes', { timeout: 60_000 }, async () => {
    const running = agent.exec('true');
    const id = await execId(0);
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), async (bytes) => {
        guest.write(bytes);
        guest.write('\n');
        await new Promise((resolve) => setImmediate(resolve));
      }),
      { numRuns: 200 },
    );
    guest.write(`exit ${id} 3\n`);
    expect(await running).toBe(3);
  });

  test('of a socket that is not there is an agent that has ended', async () => {
    const lone = new GuestAgent(join(dir, 'none'), 'web');
    await expect(lone.exec('true')).rejects.toMatchObject({ code: 'VM_NOT_RUNNING' });
  });
});
