/** QEMU's own way to save a VM. */
import { createWriteStream, rmSync } from 'node:fs';
import net from 'node:net';
import { finished } from 'node:stream/promises';
import { sleep } from '../harness/daemon.js';
import type { QemuProcess } from '../src/qemu/process.js';

const TIMEOUT_MS = 60_000;

/** No bandwidth limit: the default holds a migration to 1 Gbit/s. */
export async function unthrottle(vm: QemuProcess): Promise<void> {
  await vm.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 64 * 2 ** 30 });
}

/**
 * Migrates a stopped VM through a socket, into `file` or, with null, into nothing: QEMU may open no path of its own here
 * and 7.2 knows no `file:`. Nothing is quicker than any file, so the comparison is in QEMU's favour.
 */
export async function migrateTo(vm: QemuProcess, socketPath: string, file: string | null): Promise<void> {
  rmSync(socketPath, { force: true });
  let drained: Promise<void> = Promise.resolve();
  const server = net.createServer((socket) => {
    const sink = file === null ? null : createWriteStream(file);
    drained = finished(sink === null ? socket.resume() : socket.pipe(sink), { writable: sink !== null });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  try {
    await vm.qmp.execute('migrate', { uri: `unix:${socketPath}` }, { timeoutMs: TIMEOUT_MS });
    for (;;) {
      const { status } = await vm.qmp.execute('query-migrate');
      if (status === 'completed') break;
      if (status === 'failed') throw new Error('the migration failed');
      await sleep(1);
    }
    await drained;
  } finally {
    server.close();
  }
}
