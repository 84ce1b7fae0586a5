/** The monitor of a QEMU whose shim reads ahead for it: nothing is lost, mixed up or left over. */
import { readdirSync, readFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { QemuProcess } from '../src/qemu/process.js';
import { BareQemus, until } from './bare-qemu.js';

interface Answer {
  id?: string;
  return?: { running?: boolean };
}

let qemus: BareQemus;
let qemu: QemuProcess;
beforeAll(async () => {
  qemus = await BareQemus.open();
  qemu = await qemus.launch();
  qemu.qmp.destroy(); // a monitor has one connection at a time
});
afterAll(() => qemus.close());

/** A connection that is ready for commands. */
async function connect(): Promise<{ socket: net.Socket; answers: Answer[] }> {
  const path = readdirSync(qemus.dir).find((file) => file.endsWith('.qmp')) as string;
  const socket = net.connect(join(qemus.dir, path));
  const answers: Answer[] = [];
  let text = '';
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    const lines = (text + chunk).split('\n');
    text = lines.pop() as string;
    answers.push(...lines.map((line) => JSON.parse(line) as Answer));
  });
  await until('the greeting', () => answers.length > 0);
  socket.write(command('hello', 'qmp_capabilities'));
  await until('the monitor', () => answers.some(({ id }) => id === 'hello'));
  answers.length = 0;
  return { socket, answers };
}

const command = (id: string, execute = 'query-status') => `${JSON.stringify({ execute, id })}\n`;
const ids = (prefix: string, count: number) => Array.from({ length: count }, (_, i) => `${prefix}${i}`);
const end = async (socket: net.Socket) => {
  socket.destroy();
  await sleep(50);
};

test.each([1, 7, 500, 1024, 1025, 100_000])('answers commands that come in pieces of %i bytes', async (pieceBytes) => {
  const { socket, answers } = await connect();
  const wanted = ids(`p${pieceBytes}-`, pieceBytes === 1 ? 3 : 150);
  const words = wanted.map((id) => command(id)).join('');
  for (let at = 0; at < words.length; at += pieceBytes) {
    socket.write(words.slice(at, at + pieceBytes));
    if (at % (20 * pieceBytes) === 0) await sleep(1);
  }
  await until('all answers', () => answers.length >= wanted.length);
  expect(answers.map(({ id }) => id)).toEqual(wanted);
  expect(answers.every((answer) => answer.return?.running === false)).toBe(true);
  await end(socket);
});

test('takes a command that is longer than what is read at once', async () => {
  const { socket, answers } = await connect();
  const long = 'x'.repeat(5000);
  socket.write(command(long) + command('after'));
  await until('both answers', () => answers.length === 2);
  expect(answers.map(({ id }) => id)).toEqual([long, 'after']);
  await end(socket);
});

test('keeps nothing of a connection that ended for the next one', async () => {
  for (let round = 0; round < 5; round++) {
    const before = await connect();
    before.socket.write(
      ids('old', 100)
        .map((id) => command(id))
        .join('') + command('half').slice(0, 20),
    );
    if (round % 2 === 1) await sleep(2);
    await end(before.socket);
    const { socket, answers } = await connect();
    socket.write(command('new'));
    await until('the answer', () => answers.some(({ id }) => id === 'new'));
    expect(answers.map(({ id }) => id)).toEqual(['new']);
    await end(socket);
  }
});

test('goes round its loop for each byte without asking the kernel', async () => {
  const { socket, answers } = await connect();
  const writes = () => Number(/syscw: (\d+)/.exec(readFileSync(`/proc/${qemu.pid}/io`, 'utf8'))?.[1]);
  const before = writes();
  const words = ids('count', 50)
    .map((id) => command(id))
    .join('');
  socket.write(words);
  await until('all answers', () => answers.length === 50);
  // QEMU by itself: four for each byte.
  expect((writes() - before) / words.length).toBeLessThan(1);
  await end(socket);
});
