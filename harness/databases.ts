/**
 * Two databases in a guest that keep all they have on its disks: SQLite (WAL, full sync) on ext4 and Redis (an append-only
 * file that is synced for each write) on xfs. Both take transactions without a break; what they lose, or break, is found.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { buildImage } from '../src/image/builder.js';
import { MIB, type VmSpecInput } from '../src/vm/spec.js';
import type { PromotionView } from '../src/vm/view.js';
import { IMAGES_DIR } from './checkout.js';
import type { InProcessManager } from './in-process.js';
import { RedisConnection } from './redis.js';
import { Writer } from './writer.js';

export const DATABASE_IMAGE = 'databases';
export const DATABASE_PACKAGES = ['e2fsprogs', 'redis-server', 'sqlite3', 'xfsprogs'];
const REDIS_PORT = 6380;
const DISK_BYTES = 320 * MIB;
const RAW_DISK_BYTES = 16 * MIB;
const GOES_ON_TIMEOUT_MS = 30_000;

/** A VM for these databases. */
export function databaseSpec(name: string): VmSpecInput {
  const disks = [
    ...['sql', 'kv'].map((disk) => ({ name: disk, sizeBytes: DISK_BYTES })),
    { name: 'raw', sizeBytes: RAW_DISK_BYTES },
  ];
  return { name, image: DATABASE_IMAGE, ramBytes: 384 * MIB, network: 'tap', disks };
}

export async function buildDatabaseImage(): Promise<void> {
  await buildImage({ imagesDir: IMAGES_DIR, name: DATABASE_IMAGE, packages: DATABASE_PACKAGES });
}

const MOUNT = 'mkdir -p /sql /kv && mount /dev/disk/sql /sql && mount /dev/disk/kv /kv';
const REDIS = `redis-server --bind 0.0.0.0 --port ${REDIS_PORT} --protected-mode no --save '' --appendonly yes --appendfsync always --auto-aof-rewrite-percentage 0 --dir /kv --logfile /kv/log --daemonize yes`;
/** Waits for a lock, should another one of these have it. */
const SQL = `sqlite3 -cmd '.timeout 10000'`;
const SQLITE_ERRORS = '/run/sqlite-errors';
/** So many are kept: a check reads them all, through an emulated disk. */
const ROWS = 4000;
/** One process and one transaction for each number, which is told through the heartbeat once it is committed. */
const SQLITE_WRITER = [
  `n=$(${SQL} /sql/db 'select max(n) from t')`,
  `(while :; do n=$((n+1)); echo "begin; insert into t values($n, randomblob(700)); delete from t where n = $n - ${ROWS}; commit;"; echo .once /run/app-status; echo "select 'n='||$n;"; done)`,
].join('; ');
// It ends at the first error: a number that was not written must not be told, nor any after it.
const SQLITE = `(${SQLITE_WRITER} | ${SQL} -bail -cmd 'pragma synchronous=full' /sql/db) > /dev/null 2> ${SQLITE_ERRORS} &`;
/** Of Redis, which a promotion may cost; all of them are looked at in checkRedisFile(). */
const RECENT_WRITES = 20_000;
/** Knows each sector of a disk, and whether it is of the same moment as its own memory. */
const RAW_STATUS = '/run/raw-status';
const RAW = `shadowvm-guest diskcheck /dev/disk/raw ${RAW_STATUS} 300 &`;
/** Resolves after two rounds over all of it, and fails when something was wrong. */
const RAW_IS_SOUND = [
  `of() { sed "s/.*$1=0*\\([0-9]\\)/\\1/; s/ .*//" ${RAW_STATUS}; }`,
  'end=$(($(of rounds) + 2))',
  'for i in $(seq 600); do [ $(of rounds) -ge $end ] && break; sleep 0.05; done',
  `cat ${RAW_STATUS}; [ $(of rounds) -ge $end ] && [ $(of bad) = 0 ]`,
].join('; ');
/** What an examination found, for the console where it is not what was wanted. */
const FOUND = '/run/found';
const CONSOLE_BYTES = 2000;

export class Databases {
  /** Numbers that SQLite had committed, and when that was heard. */
  private committed: { number: number; atNs: bigint }[] = [];
  private written: { number: number; atNs: bigint }[] = [];
  private writer: Writer | null = null;
  private readonly timer: NodeJS.Timeout;

  private constructor(
    private readonly manager: InProcessManager,
    private readonly vm: string,
  ) {
    this.timer = setInterval(() => this.look(), 10);
  }

  /** Makes file systems and databases, and begins to write. */
  static async start(manager: InProcessManager, vm: string): Promise<Databases> {
    const databases = new Databases(manager, vm);
    await databases.exec('mkfs.ext4 -q /dev/disk/sql && mkfs.xfs -q /dev/disk/kv');
    await databases.exec(MOUNT);
    await databases.exec(
      `sqlite3 /sql/db 'pragma journal_mode=wal; create table t(n integer primary key, pad blob); insert into t values(0, null)'`,
    );
    databases.write(await databases.serve());
    const begun = () => databases.counts.committed > 0 && databases.counts.written > 0;
    await manager.until('the first transactions', begun);
    return databases;
  }

  /** After a boot: the file systems may have to replay their journals, and nothing more. */
  async startAgain(): Promise<void> {
    await this.exec('until [ -e /dev/disk/sql ] && [ -e /dev/disk/kv ] && [ -e /dev/disk/raw ]; do sleep 0.1; done'); // its first beat comes earlier
    await this.exec(MOUNT);
    await this.exec('umount /sql /kv && e2fsck -fn /dev/disk/sql && xfs_repair -n /dev/disk/kv');
    await this.exec(MOUNT);
    await this.serve();
  }

  private async serve(): Promise<string> {
    await this.exec(REDIS);
    await this.exec(SQLITE);
    await this.exec(RAW);
    return this.manager.port.showVm(this.vm).address as string;
  }

  private write(host: string): void {
    this.writer = new Writer({
      host,
      port: REDIS_PORT,
      command: (number) => ['SET', `key:${number}`, `${number}`],
      onAcknowledged: ({ number, atMs }) => this.written.push({ number, atNs: BigInt(Math.round(atMs * 1e6)) }),
      writesPerSecondMax: 400,
    });
    this.writer.start();
  }

  private look(): void {
    const beat = this.manager.port.vmForTest(this.vm).core.primary?.agent.last;
    const number = Number(/^n=(\d+)$/.exec(beat?.app ?? '')?.[1]);
    if (beat == null || Number.isNaN(number) || number === this.committed.at(-1)?.number) return;
    this.committed.push({ number, atNs: beat.atNs });
  }

  get counts(): { committed: number; written: number } {
    return { committed: this.committed.at(-1)?.number ?? 0, written: this.written.length };
  }

  /**
   * After a promotion: both databases are sound, read from the disk, and have everything from before its epoch was cut.
   * @param strict what a client was told is committed: Redis has all of it
   * @returns what is wrong; empty when nothing is
   */
  async check(promotion: Pick<PromotionView, 'cutAtNs'>, strict = false): Promise<string[]> {
    const cutAtNs = BigInt(promotion.cutAtNs);
    const wrong: string[] = [];
    const must = async (what: string, command: string) => {
      const told = `(${command}) > ${FOUND} 2>&1 || { cat ${FOUND} ${SQLITE_ERRORS} > /dev/console; false; }`;
      const { exitCode } = await this.manager.port.guestExec(this.vm, told);
      if (exitCode !== 0) wrong.push(`${what}; last on the console: ${await this.lastOnConsole()}`);
    };
    const answers = (what: string, query: string, answer: string) =>
      must(what, `${SQL} /sql/db "${query}" 2>&1 | tee /dev/stderr | grep -qxF ${answer}`);
    const newest = (list: { number: number; atNs: bigint }[]) =>
      list.findLast(({ atNs }) => atNs < cutAtNs)?.number ?? 0;
    const sql = newest(this.committed);
    const kv = this.written.filter(({ atNs }) => strict || atNs < cutAtNs);
    // Those that were rolled back may be written anew with other numbers heard since.
    this.committed = this.committed.filter(({ atNs }) => atNs < cutAtNs);
    this.written = kv;
    await must('a disk is not of the moment of the memory', RAW_IS_SOUND);
    await must('the caches could not be dropped', 'echo 3 > /proc/sys/vm/drop_caches');
    await answers('SQLite finds its database damaged', 'pragma integrity_check', 'ok');
    const whole = `count(*) = max(n) - min(n) + 1 and min(n) = max(0, max(n) - ${ROWS - 1}) and max(n) >= ${sql}`;
    const found = `'from '||min(n)||' to '||max(n)||': '||count(*)`;
    const what = `SQLite does not have all its rows to ${sql}`;
    await answers(what, `select case when ${whole} then 'whole' else ${found} end from t`, 'whole');
    await must('a file system has gone read-only', 'touch /sql/x /kv/x && rm /sql/x /kv/x');
    wrong.push(...(await this.checkRedis(kv.slice(-RECENT_WRITES).map(({ number }) => number))));
    if (!(await this.goesOn())) await must('SQLite commits nothing any more', 'false');
    return wrong;
  }

  private async lastOnConsole(): Promise<string> {
    await sleep(200); // it comes through an emulated serial port
    return (await this.manager.port.readLog(this.vm, 'console', { maxBytes: CONSOLE_BYTES })).text.trim();
  }

  /** What is not written can not be lost. */
  private async goesOn(): Promise<boolean> {
    const before = this.committed.at(-1);
    for (const untilMs = Date.now() + GOES_ON_TIMEOUT_MS; Date.now() < untilMs; await sleep(20))
      if (this.committed.at(-1) !== before) return true;
    return false;
  }

  /** Redis is killed and has to read its file anew. */
  async checkRedisFile(): Promise<string[]> {
    await this.writer?.stop();
    await this.exec(`kill -9 $(pgrep -f ':${REDIS_PORT}'); sleep 1; ${REDIS}`);
    return this.checkRedis(this.written.map(({ number }) => number));
  }

  private async checkRedis(numbers: number[]): Promise<string[]> {
    const { address } = this.manager.port.showVm(this.vm);
    const connection = await this.connect(address as string);
    try {
      const replies = await Promise.all(numbers.map((number) => connection.send('GET', `key:${number}`)));
      const lost = numbers.filter((number, i) => replies[i] !== `${number}`);
      return lost.length === 0
        ? []
        : [`Redis has lost ${lost.length} of ${numbers.length} writes, the first ${lost[0]}`];
    } finally {
      connection.close();
    }
  }

  private async connect(host: string): Promise<RedisConnection> {
    for (let tries = 0; ; tries++) {
      try {
        const connection = await RedisConnection.connect(host, REDIS_PORT, 1000);
        await connection.send('PING');
        return connection;
      } catch (error) {
        if (tries > 20) throw error;
        await sleep(200);
      }
    }
  }

  private async exec(command: string): Promise<void> {
    const { exitCode } = await this.manager.port.guestExec(this.vm, command);
    if (exitCode !== 0) throw new Error(`"${command}" ended with ${exitCode} in the guest`);
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
    await this.writer?.stop();
  }
}
