/** Ports of the host, and whether a Redis answers at one. */
import net from 'node:net';
import { RedisConnection } from '../harness/redis.js';

export async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** "PONG". @throws when nothing answers */
export async function pingRedis(host: string, port: number): Promise<unknown> {
  const redis = await RedisConnection.connect(host, port, 5000);
  try {
    return await redis.send('PING');
  } finally {
    redis.close();
  }
}
