import net from 'node:net';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { parseReply, RedisConnection, type Reply } from './redis.js';

function encode(reply: Reply): string {
  if (reply === null) return '$-1\r\n';
  if (reply instanceof Error) return `-${reply.message}\r\n`;
  if (typeof reply === 'number') return `:${reply}\r\n`;
  if (typeof reply === 'string') return `$${Buffer.byteLength(reply)}\r\n${reply}\r\n`;
  return `*${reply.length}\r\n${reply.map(encode).join('')}`;
}

const arbitraryReply: fc.Arbitrary<Reply> = fc.letrec<{ reply: Reply }>((tie) => ({
  reply: fc.oneof(
    { maxDepth: 3 },
    fc.string({ unit: 'grapheme' }),
    fc.integer(),
    fc.constant(null),
    fc.constant(new Error('ERR no')),
    fc.array(tie('reply'), { maxLength: 4 }),
  ),
})).reply;

describe('a reply', () => {
  test('reads back whole, wherever it stands, and not at all while a byte of it is missing', () =>
    fc.assert(
      fc.property(arbitraryReply, fc.string({ unit: 'grapheme' }), (reply, before) => {
        const whole = Buffer.from(before + encode(reply));
        const from = Buffer.byteLength(before);
        expect(parseReply(whole, from)).toEqual({ reply, end: whole.length });
        for (let length = from; length < whole.length; length++)
          expect(parseReply(whole.subarray(0, length), from)).toBeNull();
      }),
    ));

  test('of other forms', () => {
    expect(parseReply(Buffer.from('+OK\r\n'), 0)).toEqual({ reply: 'OK', end: 5 });
    expect(parseReply(Buffer.from('*-1\r\n'), 0)).toEqual({ reply: null, end: 5 });
    for (const garbage of ['HTTP/1.1 400\r\n', '\r\n', '$x\r\n', ':\r\n', '*x\r\n'])
      expect(() => parseReply(Buffer.from(garbage), 0)).toThrow(/not a reply of Redis/);
  });
});

describe('a connection', () => {
  const open: { close(): unknown }[] = [];
  afterEach(() => {
    for (const each of open.splice(0)) each.close();
  });
  async function connect(serve: (socket: net.Socket) => void): Promise<RedisConnection> {
    const server = net.createServer((socket) => {
      socket.on('error', () => {});
      serve(socket);
    });
    open.push(server);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const connection = await RedisConnection.connect('127.0.0.1', (server.address() as net.AddressInfo).port, 2000);
    open.push(connection);
    return connection;
  }

  test('answers in order, commands in flight together', async () => {
    let heard = '';
    const redis = await connect((socket) => {
      socket.on('data', (chunk) => {
        heard += chunk.toString();
        if (heard.includes('GET'))
          for (const byte of Buffer.from('+OK\r\n-ERR no\r\n$2\r\n42\r\n')) socket.write(Buffer.of(byte));
      });
    });
    expect(redis.oldestWaitMs()).toBe(0);
    const replies = [redis.send('SET', 'ä', '42'), redis.send('WHAT'), redis.send('GET', 'ä')];
    expect(await replies[0]).toBe('OK');
    await expect(replies[1]).rejects.toThrow('ERR no');
    expect(await replies[2]).toBe('42');
    expect(heard.startsWith('*3\r\n$3\r\nSET\r\n$2\r\nä\r\n$2\r\n42\r\n')).toBe(true);
  });

  test('that ends says so to everybody, and does not come back', async () => {
    const redis = await connect((socket) => socket.once('data', () => socket.destroy()));
    const waiting = [redis.send('GET', 'a'), redis.send('GET', 'b')];
    expect(redis.oldestWaitMs()).toBeGreaterThanOrEqual(0);
    for (const each of waiting) await expect(each).rejects.toThrow();
    await expect(redis.send('PING')).rejects.toThrow();
  });

  test('with something else at the other end ends', async () => {
    const redis = await connect((socket) => socket.write('220 mail.example.org\r\n'));
    await expect(redis.send('PING')).rejects.toThrow(/not a reply of Redis/);
  });

  test('that can not be made is an error in time', async () => {
    await expect(RedisConnection.connect('127.0.0.1', 1, 2000)).rejects.toThrow(/ECONNREFUSED/);
  });
});
