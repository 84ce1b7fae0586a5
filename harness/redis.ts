/**
 * A Redis connection that hides nothing: one TCP connection, pipelining, and an end that is reported.
 * Client libraries reconnect and retry by themselves, which is what a measurement of an interruption must not do.
 */
import net from 'node:net';

export type Reply = string | number | null | Error | Reply[];

const CRLF = '\r\n';

export class RedisConnection {
  private buffer: Buffer = Buffer.alloc(0);
  private readonly waiting: { resolve: (reply: Reply) => void; reject: (error: Error) => void; sentAtMs: number }[] =
    [];
  private ended: Error | undefined;

  private constructor(private readonly socket: net.Socket) {
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.read(chunk));
    socket.on('error', (error) => this.end(error));
    socket.on('close', () => this.end(new Error('the connection was closed')));
  }

  static connect(host: string, port: number, timeoutMs: number): Promise<RedisConnection> {
    return new Promise((resolve, reject) => {
      const socket = net.connect({ host, port });
      const timer = setTimeout(() => {
        socket.destroy();
        reject(new Error(`no connection within ${timeoutMs} ms`));
      }, timeoutMs);
      socket.once('error', (error) => {
        clearTimeout(timer);
        reject(error);
      });
      socket.once('connect', () => {
        clearTimeout(timer);
        socket.removeAllListeners('error');
        resolve(new RedisConnection(socket));
      });
    });
  }

  /** How long the oldest command has been waiting for its reply, ms; 0 when none is. */
  oldestWaitMs(): number {
    const [oldest] = this.waiting;
    return oldest === undefined ? 0 : performance.now() - oldest.sentAtMs;
  }

  send(...words: string[]): Promise<Reply> {
    return new Promise((resolve, reject) => {
      if (this.ended !== undefined) return reject(this.ended);
      this.waiting.push({ resolve, reject, sentAtMs: performance.now() });
      const text = `*${words.length}${CRLF}${words.map((w) => `$${Buffer.byteLength(w)}${CRLF}${w}${CRLF}`).join('')}`;
      this.socket.write(text);
    });
  }

  close(): void {
    this.end(new Error('closed by this side'));
  }

  private end(error: Error): void {
    if (this.ended !== undefined) return;
    this.ended = error;
    this.socket.destroy();
    for (const { reject } of this.waiting.splice(0)) reject(error);
  }

  private read(chunk: Buffer): void {
    this.buffer = this.buffer.length === 0 ? chunk : Buffer.concat([this.buffer, chunk]);
    let at = 0;
    for (;;) {
      let parsed: ReturnType<typeof parseReply>;
      try {
        parsed = parseReply(this.buffer, at);
      } catch (error) {
        this.end(error as Error);
        return;
      }
      if (parsed === null) break;
      at = parsed.end;
      const waiting = this.waiting.shift();
      if (parsed.reply instanceof Error) waiting?.reject(parsed.reply);
      else waiting?.resolve(parsed.reply);
    }
    this.buffer = this.buffer.subarray(at);
  }
}

/** One reply of the RESP2 protocol that begins at `from`; null when it is not complete yet. */
export function parseReply(buffer: Buffer, from: number): { reply: Reply; end: number } | null {
  const lineEnd = buffer.indexOf(CRLF, from);
  if (lineEnd < 0) return null;
  const line = buffer.toString('utf8', from + 1, lineEnd);
  const end = lineEnd + 2;
  switch (String.fromCharCode(buffer[from] as number)) {
    case '+':
      return { reply: line, end };
    case '-':
      return { reply: new Error(line), end };
    case ':':
      return { reply: count(line), end };
    case '$': {
      const length = count(line);
      if (length < 0) return { reply: null, end };
      if (buffer.length < end + length + 2) return null;
      return { reply: buffer.toString('utf8', end, end + length), end: end + length + 2 };
    }
    case '*': {
      const items: Reply[] = [];
      const length = count(line);
      if (length < 0) return { reply: null, end };
      let at = end;
      for (let i = 0; i < length; i++) {
        const item = parseReply(buffer, at);
        if (item === null) return null;
        items.push(item.reply);
        at = item.end;
      }
      return { reply: items, end: at };
    }
    default:
      throw garbage(buffer.toString('utf8', from, lineEnd));
  }
}

function count(text: string): number {
  if (!/^-?\d{1,15}$/.test(text)) throw garbage(text);
  return Number(text);
}

const garbage = (text: string) => new Error(`not a reply of Redis: ${text.slice(0, 40)}`);
