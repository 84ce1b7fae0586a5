/** A disk's way into epochs and out of them, below the manager: QEMU's dirty blocks, the image, the files that follow. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { DiskEpochs } from '../src/disk/disk-epochs.js';
import { type DiskPlace, diskPlaces } from '../src/disk/place.js';
import { DiskReceiver, DiskTwin, lockDisk } from '../src/native/disk.js';
import { ShadowImage } from '../src/native/image.js';
import { type CommitResult, EpochSource, GuestRam } from '../src/native/memory.js';
import { type CutEpoch, cutEpoch } from '../src/protect/epoch.js';
import type { QemuProcess } from '../src/qemu/process.js';
import { diskSpecSchema, MIB } from '../src/vm/spec.js';
import { BareQemus } from './bare-qemu.js';
import { qemuVersions } from './qemu10.js';
import { checksumSource } from './test-image.js';

const RAM_BYTES = 128 * MIB;
const DISK_BYTES = 64 * MIB;
/** Writes here and there for as long as the guest lives, and now and then gives some back. */
const WRITER = [
  'dd if=/dev/urandom of=/dev/vda bs=4k count=16 seek=$((RANDOM % 16000)) conv=notrunc,fsync',
  '[ $((RANDOM % 4)) = 0 ] && dd if=/dev/zero of=/dev/vda bs=64k count=2 seek=$((RANDOM % 1000)) conv=notrunc,fsync',
].join('; ');
const KEEP_WRITING = `(while :; do ${WRITER}; done) > /dev/null 2>&1 &`;

describe.each(qemuVersions)('QEMU %s', (_name, use) => {
  let putBack: () => void;
  let qemus: BareQemus;
  beforeAll(async () => {
    putBack = use();
    qemus = await BareQemus.open();
  });
  afterAll(async () => {
    await qemus.close();
    putBack();
  });

  test('every epoch has the disk as it was in its pause, and the twin follows through aborts and rewinds', async () => {
    const vm = await Protected.start(qemus);
    try {
      await vm.run(KEEP_WRITING);
      const copies = new Map<number, Buffer>();
      for (let round = 0; round < 4; round++) {
        await sleep(300);
        const { epoch, diskPages } = await vm.commit(await vm.cut(true));
        expect(diskPages).toBeGreaterThan(0);
        const disk = readFileSync(vm.path('disk'));
        copies.set(epoch, disk);
        expect(readFileSync(vm.path('twin')).equals(disk)).toBe(true);
        await vm.primary.qmp.execute('cont');
        // Given up: what it had is in the next one.
        await sleep(200);
        const lost = await vm.cut(false);
        await vm.source.abort();
        await lost.disks?.giveBack();
      }
      // Whether it was going on while the job ran or not.
      for (let round = 0; round < 10; round++) await vm.commit(await vm.cut(false));
      const last = await vm.commit(await vm.cut(true));
      copies.set(last.epoch, readFileSync(vm.path('disk')));
      expect(readFileSync(vm.path('twin')).equals(readFileSync(vm.path('disk')))).toBe(true);
      // A disk that nobody writes costs no job.
      const counts = await vm.epochs.countWrites();
      expect(await vm.epochs.cut(counts)).toBeNull();

      for (const epoch of [...copies.keys()].reverse()) {
        await vm.source.rewind(epoch, null, vm.disks([]));
        expect(readFileSync(vm.path('twin')).equals(copies.get(epoch) as Buffer)).toBe(true);
        expect((await vm.restored()).equals(copies.get(epoch) as Buffer)).toBe(true);
      }
      await vm.image.compact({ keepFromWallMs: Date.now(), force: true });
      expect((await vm.image.verify()).damagedPages).toEqual([]);
    } finally {
      await vm.close();
    }
  }, 120_000);

  test('a protection that comes later finds what was written since, also in the middle of an epoch', async () => {
    const vm = await Protected.start(qemus);
    try {
      await vm.run(KEEP_WRITING);
      await vm.commit(await vm.cut(false));
      await vm.cut(false); // as a manager leaves it that is killed: the job goes on, or fails
      vm.epochs.close();
      await sleep(300);
      vm.epochs = await DiskEpochs.attach(
        vm.primary,
        vm.places,
        () => vm.image.describe(),
        () => openSync(vm.path('disk'), 'r+'),
      );
      const { diskPages } = await vm.commit(await vm.cut(true));
      expect(diskPages).toBeLessThan(DISK_BYTES / 4096 / 2);
      expect(readFileSync(vm.path('twin')).equals(readFileSync(vm.path('disk')))).toBe(true);
    } finally {
      await vm.close();
    }
  }, 60_000);

  test('a guest goes on writing when its receiver goes away in the middle of a job', async () => {
    const vm = await Protected.start(qemus);
    try {
      await vm.run('dd if=/dev/urandom of=/dev/vda bs=1M count=60 conv=notrunc,fsync 2>/dev/null');
      const cut = await vm.cut(false);
      // Nobody takes the blocks, so that the job stands, and then there is nobody any more.
      const writing = vm.primary.agent.exec(
        'dd if=/dev/zero of=/dev/vda bs=1M count=60 conv=notrunc,fsync 2>/dev/null',
      );
      await sleep(100);
      vm.epochs.close();
      const letGo = setInterval(() => void vm.primary.qmp.execute('cont').catch(() => {}), 50); // as DiskStall does
      expect(await writing).toBe(0);
      clearInterval(letGo);
      await vm.source.abort();
      await cut.disks?.giveBack();
    } finally {
      await vm.close();
    }
  }, 60_000);
});

class Protected {
  readonly places: readonly DiskPlace[];
  private readonly twin: DiskTwin;

  private constructor(
    readonly primary: QemuProcess,
    readonly image: ShadowImage,
    readonly source: EpochSource,
    public epochs: DiskEpochs,
    private readonly folder: string,
    places: readonly DiskPlace[],
  ) {
    this.places = places;
    const fd = sized(this.path('twin'));
    this.twin = new DiskTwin({ fd, ...(places[0] as DiskPlace) });
    closeSync(fd);
  }

  static async start(qemus: BareQemus): Promise<Protected> {
    const folder = join(qemus.dir, `${Math.random()}`.slice(2));
    const image = await ShadowImage.create(folder, { vm: 'test', ramBytes: RAM_BYTES, diskBytes: DISK_BYTES });
    const fd = sized(join(folder, 'disk'));
    // Not empty: the first epoch has to have all of it.
    for (let at = 0; at < DISK_BYTES; at += MIB) writeSync(fd, `block ${at}`, at);
    const disks = [{ name: 'data', readOnly: false, cache: 'writeback', fd }] as const;
    const primary = await qemus.boot(RAM_BYTES, { disks: [...disks] });
    closeSync(fd);
    const { ram, control, pid } = primary;
    const source = new EpochSource({ ram, control, pid, tracking: 'write', image: image.native });
    await source.sync();
    const places = diskPlaces({
      ramBytes: RAM_BYTES,
      disks: [diskSpecSchema.parse({ name: 'data', sizeBytes: DISK_BYTES })],
    });
    const epochs = await DiskEpochs.attach(
      primary,
      places,
      () => image.describe(),
      () => openSync(join(folder, 'disk'), 'r+'),
    );
    const vm = new Protected(primary, image, source, epochs, folder, places);
    await vm.commit(await vm.cut(false));
    while ((await source.advanceTwins(vm.disks([]), 1000)) > 0);
    return vm;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  disks(receivers: DiskReceiver[]) {
    return { receivers, twins: [this.twin] };
  }

  async run(command: string): Promise<void> {
    expect(await this.primary.agent.exec(command)).toBe(0);
  }

  cut(keepStopped: boolean): Promise<CutEpoch> {
    return cutEpoch(this.primary, this.source, keepStopped, () => {}, false, null, this.epochs);
  }

  async commit(cut: CutEpoch): Promise<CommitResult> {
    const when = { generation: 0, cutAtWallMs: cut.cutAtMs, cutAtNs: cut.cutAtNs };
    const result = await this.source.commit(when, cut.deviceState, null, this.disks(cut.disks?.receivers ?? []));
    await cut.disks?.settle();
    return result;
  }

  /** The head as a file that was something else before. */
  async restored(): Promise<Buffer> {
    copyFileSync(this.path('disk'), this.path('restored'));
    const fd = openSync(this.path('restored'), 'r+');
    const { firstPage, bytes } = this.places[0] as DiskPlace;
    await this.image.fillDisk(fd, firstPage, bytes);
    closeSync(fd);
    return readFileSync(this.path('restored'));
  }

  async close(): Promise<void> {
    this.epochs.close();
    this.twin.close();
    await this.primary.dispose();
    this.source.close();
    await this.image.close();
  }
}

function sized(path: string): number {
  const fd = openSync(path, 'w+');
  ftruncateSync(fd, DISK_BYTES);
  return fd;
}

/** Connects to an abstract socket when it is told to, which Node can not, and passes on what it hears and what it reads. */
const CLIENT = `
  socket(S, PF_UNIX, SOCK_STREAM, 0); sysread(STDIN, $go, 1); connect(S, pack_sockaddr_un("\\0$ARGV[0]")) or exit 1;
  $me = $$; if (!fork) { while (sysread(S, $b, 65536)) { syswrite(STDOUT, $b) } kill "KILL", $me; exit }
  while (sysread(STDIN, $b, 65536)) { syswrite(S, $b) or last } sleep 60`;

class Client {
  said = Buffer.alloc(0);
  hungUp = false;
  private begun = false;
  private readonly child: ChildProcessWithoutNullStreams;

  constructor(socketName: string) {
    this.child = spawn('perl', ['-MSocket', '-e', CLIENT, socketName]);
    this.child.stdout.on('data', (chunk: Buffer) => {
      this.said = Buffer.concat([this.said, chunk]);
    });
    this.child.stdin.on('error', () => {});
    this.child.on('exit', () => {
      this.hungUp = true;
    });
  }

  get pid(): number {
    return this.child.pid as number;
  }

  async say(...parts: Buffer[]): Promise<this> {
    const go = this.begun ? [] : [Buffer.from('!')];
    this.begun = true;
    for (const part of [...go, ...parts]) this.child.stdin.write(part);
    await sleep(300);
    return this;
  }

  end(): void {
    this.child.kill('SIGKILL');
  }
}

describe('a receiver', () => {
  const socketName = `shadowvm-test-${process.pid}`;
  let receiver: DiskReceiver | null = null;
  const clients: Client[] = [];
  afterEach(() => {
    for (const client of clients.splice(0)) client.end();
    receiver?.close();
  });

  /** A client of a receiver that waits for one. */
  function client(begin: (receiver: DiskReceiver) => void = () => {}): Client {
    receiver?.close();
    const made = new Client(socketName);
    clients.push(made);
    receiver = new DiskReceiver({ socketName, pid: made.pid, bytes: MIB, firstPage: 256 });
    begin(receiver);
    return made;
  }

  const FLAGS = Buffer.from([0, 0, 0, 3]);
  const option = (number: number, data = Buffer.alloc(0)) => {
    const head = Buffer.alloc(16);
    head.write('IHAVEOPT');
    head.writeUInt32BE(number, 8);
    head.writeUInt32BE(data.length, 12);
    return Buffer.concat([head, data]);
  };
  const GO = option(7, Buffer.alloc(6));
  const request = (command: number, offset: number, bytes: number, payload = Buffer.alloc(0)) => {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(0x25609513, 0);
    head.writeUInt16BE(command, 6);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(bytes, 24);
    return Buffer.concat([head, payload]);
  };
  const errorOf = (said: Buffer) => said.readUInt32BE(said.length - 12);

  test('hangs up on whoever speaks nonsense', async () => {
    const tooLong = option(7);
    tooLong.writeUInt32BE(2 ** 30, 12);
    const noise = Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 7919) % 256));
    const tooBig = request(1, 0, 2 ** 31);
    for (const words of [[noise], [FLAGS, noise], [FLAGS, tooLong], [FLAGS, GO, noise], [FLAGS, GO, tooBig]])
      expect((await client().say(...words)).hungUp).toBe(true);
    expect((await client().say(FLAGS, GO)).hungUp).toBe(false);
  });

  test('refuses writes outside of an epoch, of the disk, and across pages', async () => {
    const page = Buffer.alloc(4096, 7);
    expect(errorOf((await client().say(FLAGS, GO, request(1, 0, 4096, page))).said)).toBe(5);
    const expecting = () => client((each) => each.expect());
    expect(errorOf((await expecting().say(FLAGS, GO, request(1, 0, 4096, page))).said)).toBe(0);
    for (const [offset, bytes] of [
      [MIB, 4096],
      [100, 4096],
      [MIB - 4096, 8192],
    ] as const)
      expect(errorOf((await expecting().say(FLAGS, GO, request(1, offset, bytes, Buffer.alloc(bytes)))).said)).toBe(22);
    expect(errorOf((await expecting().say(FLAGS, GO, request(0, 0, 4096))).said)).toBe(22);
  });

  test('turns other processes away', async () => {
    const stranger = new Client(socketName);
    clients.push(stranger);
    client();
    await stranger.say(FLAGS, GO);
    expect(stranger).toMatchObject({ said: Buffer.alloc(0), hungUp: true });
  });

  test('whose connection ends takes the epoch with it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'shadowvm-receiver-'));
    const image = await ShadowImage.create(join(folder, 'image'), { vm: 'test', ramBytes: MIB, diskBytes: MIB });
    const ram = new GuestRam('test', MIB);
    const source = checksumSource(ram, image);
    await source.sync();
    const sender = client((each) => each.expect());
    const when = { generation: 0, cutAtWallMs: 0, cutAtNs: 0n };
    const disks = { receivers: [receiver as unknown as DiskReceiver], twins: [] };
    const committed = source.commit(when, Buffer.from('devices'), null, disks);
    committed.catch(() => {});
    await sender.say(FLAGS, GO, request(1, 0, 4096, Buffer.alloc(4096, 7)));
    await sender.say(Buffer.alloc(28));
    await expect(committed).rejects.toMatchObject({ code: 'ERR_DISK_LOST' });
    expect(image.describe().headEpoch).toBe(0);
    source.close();
    await image.close();
    rmSync(folder, { recursive: true });
  }, 20_000);
});

test('a disk is not lent to readers while somebody writes it', () => {
  const path = join('/tmp', `shadowvm-lock-${process.pid}`);
  const fd = openSync(path, 'w+');
  lockDisk(fd);
  const other = openSync(path, 'r+');
  lockDisk(other); // readers do not mind each other
  closeSync(fd);
  closeSync(other);
});
