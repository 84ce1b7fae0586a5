/**
 * Published ports of taps are translated before any socket sees their packets. All the same each is held by a socket that
 * answers nothing: it is how other programs learn that the port is taken, and we that it was.
 */
import net from 'node:net';
import { ShadowVmError } from '../errors.js';

export class PortHold {
  private constructor(private readonly servers: net.Server[]) {}

  /** All or none. @throws INVALID_ARGUMENT when a port is taken */
  static async take(ports: readonly number[], address: string, vm: string): Promise<PortHold> {
    const hold = new PortHold([]);
    try {
      for (const port of ports) hold.servers.push(await listen(port, address, vm));
      return hold;
    } catch (error) {
      await hold.release();
      throw error;
    }
  }

  async release(): Promise<void> {
    for (const server of this.servers.splice(0)) await new Promise((resolve) => server.close(resolve));
  }
}

async function listen(port: number, address: string, vm: string): Promise<net.Server> {
  const server = net.createServer((connection) => connection.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new ShadowVmError('INVALID_ARGUMENT', {
          attempted: 'run the VM',
          subject: vm,
          reason: `port ${port} of the host can not be used: ${cause.message}`,
          remedy: 'Publish another port',
          cause,
        }),
      ),
    );
    server.listen(port, address, resolve);
  });
  return server.unref();
}
