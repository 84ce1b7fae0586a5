/**
 * What an epoch needs of a primary's disks: which were written, and their blocks as they were in its pause.
 *
 *   guest stands │ a new dirty bitmap takes over from the one of this epoch; a backup job of what that one marks starts
 *   guest runs   │ QEMU's job sends those blocks to our receiver; one that the guest is about to overwrite goes first
 *                │ committed: the old bitmap goes. Given up: it takes the marks of the new one back, and nothing is lost
 *
 * Bitmaps live in QEMU and outlive this process. While a job is under way a guest's write can depend on us: QEMU first
 * sends what is overwritten. Should we die then, QEMU stops the guest (`werror=stop`) and the shim lets it go on.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, fdatasync as fdatasyncCallback } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { monotonicMs } from '../clock.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { DiskReceiver } from '../native/disk.js';
import type { ImageDescription } from '../native/image.js';
import { diskDevice, diskNode } from '../qemu/argv.js';
import type { QemuProcess } from '../qemu/process.js';
import type { BlockAction, QmpEvent } from '../qemu/qmp.js';
import { isMark, markName, usableMarks } from './dirty-marks.js';
import type { DiskPlace } from './place.js';

const fdatasync = promisify(fdatasyncCallback);
/** A backup job copies no less at once; finer marks would only cost more. */
const GRANULARITY_BYTES = 65536;
/** QEMU's own 64 would all want a CPU at the moment at which the guest is to run again. */
const JOB_WORKERS = 4;
/**
 * Until the guest runs again; then there is no limit. Not less: a job whose manager dies in between has to find out soon
 * that nobody takes its blocks.
 */
const FIRST_BYTES_PER_SECOND = 1024 * 1024;
const JOB_END_TIMEOUT_MS = 5000;
const FLUSHES_MAX = 3;
const QUICK_FLUSH_MS = 4;
const JOB_LOOK_EVERY_MS = 20;
const TRANSACTION_TIMEOUT_MS = 2000;

/** What was written to each disk so far, by its guest's device: two that are equal mean that nothing was in between. */
export type WriteCounts = ReadonlyMap<string, number>;

interface Disk extends DiskPlace {
  node: string;
  target: string;
  receiver: DiskReceiver;
  /** The primary's file. */
  fd: number;
  /** Marks what was written since the last committed epoch; null: everything counts as written. */
  mark: string | null;
  /** At the last committed epoch; null: it counts as written. */
  writes: number | null;
}

/** The disks of one epoch that was cut, until it is committed or given up. */
export interface DiskCut {
  receivers: DiskReceiver[];
  /** The epoch is committed. */
  settle(): Promise<void>;
  /** The epoch is given up: what it had is in the next one. */
  giveBack(): Promise<void>;
}

export class DiskEpochs {
  private jobs = 0;
  /** Why QEMU's marks are not known to be whole any more: a new protection has to read everything. */
  private broken: string | null = null;

  private constructor(
    private readonly primary: QemuProcess,
    private readonly describe: () => ImageDescription,
    private readonly disks: Disk[],
  ) {
    void primary.qmp.closed.then(({ reason }) => {
      for (const { receiver } of this.disks) receiver.fail(reason);
    });
  }

  /** Looks up what QEMU marks already, and connects it to receivers of our own. @throws QMP_*, native failures */
  static async attach(
    primary: QemuProcess,
    places: readonly DiskPlace[],
    describe: () => ImageDescription,
    openPrimary: (name: string) => number,
  ): Promise<DiskEpochs> {
    const disks: Disk[] = [];
    await endJobs(primary, places);
    const nodes = await primary.qmp.execute('query-named-block-nodes', { flat: true });
    try {
      for (const place of places) {
        const node = diskNode(place.name);
        const target = `${node}-epochs`;
        const known = nodes.find((each) => each['node-name'] === node)?.['dirty-bitmaps'] ?? [];
        const mark = await takeMarks(
          primary,
          node,
          known.map(({ name }) => name),
          describe(),
        );
        // Of an earlier protection; its connection has ended.
        if (nodes.some((each) => each['node-name'] === target))
          await primary.qmp.execute('blockdev-del', { 'node-name': target });
        const socketName = `shadowvm-disk-${randomBytes(12).toString('hex')}`;
        const receiver = new DiskReceiver({ ...place, socketName, pid: primary.pid });
        disks.push({ ...place, node, target, receiver, mark, writes: null, fd: openPrimary(place.name) });
        const server = { type: 'unix', path: socketName, abstract: true, tight: true } as const;
        await primary.qmp.execute('blockdev-add', { driver: 'nbd', 'node-name': target, server, export: place.name });
      }
    } catch (error) {
      release(disks);
      throw error;
    }
    return new DiskEpochs(primary, describe, disks);
  }

  /**
   * Before the guest stands. QEMU flushes its disks whenever it stops a guest, and what the guest has written without
   * asking for that would be written in the pause. Twice where the first took so long that much was written meanwhile.
   */
  async flush(): Promise<void> {
    if (!this.busy) return;
    for (let pass = 0; pass < FLUSHES_MAX; pass++) {
      const startedMs = monotonicMs();
      await Promise.all(this.disks.map(({ fd }) => fdatasync(fd)));
      if (monotonicMs() - startedMs < QUICK_FLUSH_MS) return;
    }
  }
  /** A disk was written in the last epoch. */
  private busy = false;

  /** Pipelines behind a `stop`: what was under way then is done when it is answered. */
  async countWrites(): Promise<WriteCounts> {
    const devices = await this.primary.qmp.execute('query-blockstats');
    const counts = new Map<string, number>();
    for (const { qdev, stats } of devices)
      if (qdev !== undefined)
        counts.set(qdev, stats.wr_operations + stats.unmap_operations + stats.failed_wr_operations);
    return counts;
  }

  /** While the guest stands: the disks that were written begin to send. Nothing is sent when none was. @throws QMP_* */
  async cut(counts: WriteCounts): Promise<DiskCut | null> {
    const written = this.disks.filter(
      ({ mark, writes, name }) => mark === null || writes === null || writes !== countOf(counts, name),
    );
    this.busy = written.length > 0;
    if (!this.busy) return null;
    if (this.broken !== null) throw this.failed(this.broken);
    const image = this.describe();
    const next = markName({ imageId: image.id, epoch: image.lastEpoch + 1 });
    const sending = written.map((disk) => ({ disk, job: `${disk.node}-${++this.jobs}` }));
    const ended = sending.map(({ disk, job }) => this.watch(disk, job));
    const revoke = (why: string) => {
      for (const { disk } of sending) disk.receiver.fail(why);
    };
    for (const { disk } of sending) disk.receiver.expect();
    try {
      const actions = sending.flatMap(({ disk, job }) => backup(disk, job, next));
      await this.primary.qmp.execute('transaction', { actions }, { timeoutMs: TRANSACTION_TIMEOUT_MS });
    } catch (error) {
      // Unanswered, it may have been done all the same.
      if (error instanceof ShadowVmError && error.code === 'QMP_TIMEOUT') this.broken = error.reason;
      revoke(messageOf(error));
      for (const { forget } of ended) forget();
      throw error;
    }
    // `cont` was sent meanwhile.
    for (const [i, { disk, job }] of sending.entries())
      this.primary.qmp.execute('block-job-set-speed', { device: job, speed: 0 }).catch((error: unknown) => {
        if (!ended[i]?.isOver()) disk.receiver.fail(messageOf(error));
      });
    return {
      receivers: sending.map(({ disk }) => disk.receiver),
      settle: async () => {
        for (const { disk } of sending) {
          const old = disk.mark;
          disk.mark = next;
          disk.writes = countOf(counts, disk.name);
          if (old !== null) await this.transact([remove(disk.node, old)]);
        }
        this.jobsEnded();
      },
      giveBack: async () => {
        revoke('the epoch was given up');
        for (const { job } of sending)
          await this.primary.qmp.execute('block-job-cancel', { device: job, force: true }).catch(() => {}); // it has ended
        const ends = Promise.all(ended.map(({ end }) => end));
        await Promise.race([ends, sleep(JOB_END_TIMEOUT_MS, undefined, { ref: false })]);
        for (const { disk } of sending) {
          disk.writes = null;
          await this.transact(disk.mark === null ? [remove(disk.node, next)] : merge(disk.node, disk.mark, [next]));
        }
        this.jobsEnded();
      },
    };
  }

  /** Ends what is received. QEMU goes on to mark what is written. Idempotent. */
  close(): void {
    release(this.disks.splice(0));
  }

  /** Tells a disk's receiver of its job's end. */
  private watch(disk: Disk, job: string): { end: Promise<void>; isOver: () => boolean; forget: () => void } {
    let over = false;
    let ended!: () => void;
    const end = new Promise<void>((resolve) => {
      ended = resolve;
    });
    const off = this.primary.qmp.onEvent(({ event, data }: QmpEvent) => {
      if (data?.device !== job || (event !== 'BLOCK_JOB_COMPLETED' && event !== 'BLOCK_JOB_CANCELLED')) return;
      if (event === 'BLOCK_JOB_COMPLETED' && data.error === undefined) disk.receiver.finish();
      else disk.receiver.fail(typeof data.error === 'string' ? data.error : 'its job was cancelled');
      forget();
    });
    const forget = () => {
      over = true;
      off();
      ended();
    };
    void this.primary.qmp.closed.then(forget);
    return { end, isOver: () => over, forget };
  }

  /** No write of the guest depends on us any more: see cutEpoch(). */
  private jobsEnded(): void {
    if (!this.primary.hasDied) this.primary.control.setPausedForEpoch(false);
  }

  /** What QEMU would not do ends this protection at its next epoch; a dead one is the detector's business. */
  private async transact(actions: BlockAction[]): Promise<void> {
    await this.primary.qmp.execute('transaction', { actions }).catch((error: unknown) => {
      this.broken = messageOf(error);
    });
  }

  private failed(reason: string): ShadowVmError {
    const attempted = 'keep track of what is written to the disks';
    return new ShadowVmError('EPOCH_FAILED', { attempted, subject: this.primary.vm, reason });
  }
}

function release(disks: readonly Disk[]): void {
  for (const { receiver, fd } of disks) {
    receiver.close();
    closeSync(fd);
  }
}

/** Jobs whose manager has died fail by themselves, but perhaps not yet. */
async function endJobs({ qmp }: QemuProcess, places: readonly DiskPlace[]): Promise<void> {
  const nodes = places.map(({ name }) => diskNode(name));
  for (const untilMs = Date.now() + JOB_END_TIMEOUT_MS; Date.now() < untilMs; await sleep(JOB_LOOK_EVERY_MS)) {
    const jobs = (await qmp.execute('query-block-jobs')).filter(({ device }) =>
      nodes.some((node) => device.startsWith(`${node}-`)),
    );
    if (jobs.length === 0) return;
    for (const { device } of jobs) await qmp.execute('block-job-cancel', { device, force: true }).catch(() => {});
  }
}

/** Before the guest runs from an epoch: everything that it will write is marked from the first on. */
export function markActions(places: readonly DiskPlace[], name: string): BlockAction[] {
  return places.map((place) => add(diskNode(place.name), name));
}

function countOf(counts: WriteCounts, name: string): number | null {
  // By its id, or by the path of the part that QEMU has put into it.
  const device = diskDevice(name);
  return counts.get(device) ?? counts.get(`/machine/peripheral/${device}/virtio-backend`) ?? null;
}

/** One bitmap of those that are there, or null when only a read of everything will do. */
async function takeMarks(
  { qmp }: QemuProcess,
  node: string,
  names: string[],
  image: ImageDescription,
): Promise<string | null> {
  const usable = usableMarks(names, image);
  const [oldest, ...others] = usable ?? [];
  if (oldest !== undefined) {
    if (others.length > 0) await qmp.execute('transaction', { actions: merge(node, oldest, others) });
    return oldest;
  }
  const actions = names.filter(isMark).map((name) => remove(node, name));
  if (actions.length > 0) await qmp.execute('transaction', { actions });
  return null;
}

function backup(disk: Disk, job: string, next: string): BlockAction[] {
  const { node, target, mark } = disk;
  const common = {
    'job-id': job,
    device: node,
    target,
    speed: FIRST_BYTES_PER_SECOND,
    'x-perf': { 'max-workers': JOB_WORKERS },
  };
  if (mark === null) return [add(node, next), { type: 'blockdev-backup', data: { ...common, sync: 'full' } }];
  return [
    add(node, next),
    { type: 'block-dirty-bitmap-disable', data: { node, name: mark } },
    { type: 'blockdev-backup', data: { ...common, sync: 'bitmap', bitmap: mark, 'bitmap-mode': 'never' } },
  ];
}

const add = (node: string, name: string): BlockAction => ({
  type: 'block-dirty-bitmap-add',
  data: { node, name, granularity: GRANULARITY_BYTES },
});
const remove = (node: string, name: string): BlockAction => ({
  type: 'block-dirty-bitmap-remove',
  data: { node, name },
});

/** `into` takes the marks of the others, which go, and marks on. */
function merge(node: string, into: string, others: string[]): BlockAction[] {
  return [
    { type: 'block-dirty-bitmap-enable', data: { node, name: into } },
    { type: 'block-dirty-bitmap-merge', data: { node, target: into, bitmaps: others } },
    ...others.map((name) => remove(node, name)),
  ];
}
