/** QEMU's own way to save a VM. */
import { closeSync, createWriteStream, openSync, rmSync, statSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { nowMs, sleep } from '../harness/daemon.js';
import { QEMU_FD } from '../src/qemu/argv.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { type BenchGuests, firstBeat } from './guest.js';

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

/** Kill → first heartbeat of a VM that is restored from a migrate file, ms, once each round. */
export async function measureRestore(guests: BenchGuests, ramMiB: number, rounds: number): Promise<number[]> {
  const file = join(guests.dir, `restore-${ramMiB}`);
  const source = await guests.bootLoaded(ramMiB);
  await unthrottle(source);
  await source.qmp.execute('stop');
  await migrateTo(source, join(guests.dir, 'migrate.sock'), file);
  await source.dispose();
  if (statSync(file).size === 0) throw new Error('the migrate file is empty');

  const times: number[] = [];
  for (let i = 0; i < rounds; i++) {
    const startMs = nowMs(); // the moment of the kill
    const fd = openSync(file, 'r');
    const vm = await guests.launch(ramMiB, true, [fd]);
    closeSync(fd);
    const loaded = vm.qmp.waitEvent('load the file', (e) => e.data?.status === 'completed', 60_000);
    await vm.qmp.execute('migrate-incoming', { uri: `fd:${QEMU_FD.more}` });
    await loaded;
    await vm.qmp.execute('cont');
    times.push((await firstBeat(vm)) - startMs);
    await vm.dispose();
  }
  rmSync(file);
  return times;
}
