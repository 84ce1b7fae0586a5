/** A console that follows its VM over sockets that come and go. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import { ConsoleStream } from './console.js';

const dir = mkdtempSync(join(tmpdir(), 'shadowvm-console-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const open: { destroy(): unknown }[] = [];
afterEach(() => {
  for (const each of open.splice(0)) each.destroy();
});

/** A QEMU's console socket. */
class Serial {
  heard = '';
  socket: net.Socket | null = null;
  private readonly server: net.Server;
  constructor(readonly path: string) {
    this.server = net.createServer((socket) => {
      this.socket = socket;
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        this.heard += chunk.toString();
      });
    });
    this.server.listen(path);
    open.push(this);
  }
  destroy(): void {
    this.socket?.destroy();
    this.server.close();
  }
}

function follow(currentPath: () => string | null): { stream: ConsoleStream; text: () => string } {
  const stream = new ConsoleStream(currentPath);
  open.push(stream);
  let text = '';
  stream.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  return { stream, text: () => text };
}

test('goes on with the shadow’s console after a promotion, through a time in which there is none', async () => {
  let path: string | null = join(dir, 'a');
  const first = new Serial(path);
  const { stream, text } = follow(() => path);
  await expect.poll(() => first.socket !== null).toBe(true);
  first.socket?.write('before ');
  stream.write('typed');
  await expect.poll(() => first.heard).toBe('typed');
  await expect.poll(text).toBe('before ');
  path = '';
  first.destroy();
  await new Promise((resolve) => setTimeout(resolve, 120));
  stream.write('into the void');
  path = join(dir, 'b'); // not there yet
  await new Promise((resolve) => setTimeout(resolve, 120));
  const second = new Serial(path);
  await expect.poll(() => second.socket !== null).toBe(true);
  second.socket?.write('after');
  stream.write('again');
  await expect.poll(text).toBe('before after');
  await expect.poll(() => second.heard).toBe('again');
});

test('ends with its VM', async () => {
  let path: string | null = join(dir, 'c');
  const serial = new Serial(path);
  const { stream } = follow(() => path);
  await expect.poll(() => serial.socket !== null).toBe(true);
  path = null;
  serial.destroy();
  await once(stream, 'end');
  const { stream: late } = follow(() => null);
  await once(late, 'end');
});

test('a reader that is slower than the guest loses output, is told how much, and holds nobody up', async () => {
  const serial = new Serial(join(dir, 'd'));
  const stream = new ConsoleStream(() => serial.path);
  open.push(stream);
  await expect.poll(() => serial.socket !== null).toBe(true);
  const bytes = 4 * 1024 * 1024;
  await new Promise<void>((resolve) => serial.socket?.write(Buffer.alloc(bytes, 'x'), () => resolve()));
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(stream.readableLength).toBeLessThan(512 * 1024);
  let text = '';
  stream.on('data', (chunk: Buffer) => {
    text += chunk.toString();
  });
  serial.socket?.write('now');
  await expect.poll(() => text.endsWith('now')).toBe(true);
  const skipped = Number(/\[shadowvm: (\d+) bytes skipped\]/.exec(text)?.[1]);
  expect(text.replace(/\r\n\[.*\]\r\n/, '').length + skipped).toBe(bytes + 'now'.length);
});

test('destroyed while it waits to connect again, it does not', async () => {
  let asked = 0;
  const stream = new ConsoleStream(() => {
    asked++;
    return join(dir, 'none');
  });
  await expect.poll(() => asked).toBeGreaterThan(1);
  stream.destroy();
  const before = asked;
  await new Promise((resolve) => setTimeout(resolve, 120));
  expect(asked).toBe(before);
});
