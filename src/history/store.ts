/**
 * Usage of every VM in one SQLite file: a row per VM and second for an hour, per minute for a week, per 5 minutes for 90
 * days. A row holds all metrics, mean and maximum, as 4-byte floats: a tenth of one row per metric.
 *
 * Rows are counted, not aged: a clock that jumps ahead must not take the history away. A crash loses what was not yet
 * flushed (a second); buckets that were open are filled again from the finer rows.
 * SQLite is `libsql`, whose binary comes inside its npm package. Lost: better-sqlite3, which downloads one or compiles.
 */
import Database from 'libsql';
import { ShadowVmError } from '../errors.js';
import { isUsage } from '../monitor/usage-value.js';
import { METRICS, type Metric, type UsageSample } from './metrics.js';

export interface HistoryPoint {
  /** Unix time of the bucket's begin, in seconds. */
  atS: number;
  mean: number;
  max: number;
}

interface Tier {
  stepS: number;
  rowsMax: number;
}

export const TIERS: readonly Tier[] = [
  { stepS: 1, rowsMax: 3600 },
  { stepS: 60, rowsMax: 7 * 24 * 60 },
  { stepS: 300, rowsMax: 90 * 24 * 12 },
];
/** "SVMH": other programs' databases do not have it. */
const APPLICATION_ID = 0x53564d48;
const FORMAT = 1;
/** A VM's oldest rows are taken away once it has so many more: a search through all that it has. */
const PRUNE_EVERY_ROWS = 600;

/** One bucket being filled: per metric the sum, the maximum and the count. */
interface Bucket {
  startS: number;
  sum: Float64Array;
  max: Float64Array;
  count: Float64Array;
}

interface Row {
  t: number;
  data: ArrayBuffer;
}

export class HistoryStore {
  private readonly open = new Map<string, (Bucket | null)[]>();
  private readonly pending = new Map<string, { tier: number; vm: string; bucket: Bucket }>();
  private readonly ids = new Map<string, number>();
  /** Rows that were written of each VM since it was pruned. */
  private readonly unpruned = new Map<string, number>();

  private constructor(private readonly database: Database.Database) {}

  /** Opens or makes the file. @throws STATE_CORRUPT when it is not a history or of a newer format */
  static open(path: string): HistoryStore {
    const refuse = (reason: string, cause?: unknown) =>
      new ShadowVmError('STATE_CORRUPT', {
        attempted: 'open the usage history',
        subject: path,
        reason,
        remedy: 'Move the file away; a new history begins without it',
        cause,
      });
    let database: Database.Database | undefined;
    try {
      database = new Database(path);
      const tables = database.prepare('SELECT count(*) AS n FROM sqlite_master').get() as { n: number };
      const [id] = database.prepare('PRAGMA application_id').raw().get() as number[];
      const [format] = database.prepare('PRAGMA user_version').raw().get() as number[];
      if (tables.n > 0 && id !== APPLICATION_ID) throw refuse('it is a database of another program');
      if (format! > FORMAT) throw refuse(`its format ${format} is newer than ${FORMAT}`);
      database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA auto_vacuum = INCREMENTAL');
      database.exec(`PRAGMA application_id = ${APPLICATION_ID}; PRAGMA user_version = ${FORMAT};
        CREATE TABLE IF NOT EXISTS vm (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
        CREATE TABLE IF NOT EXISTS usage (vm INTEGER, tier INTEGER, t INTEGER, data BLOB NOT NULL,
          PRIMARY KEY (vm, tier, t)) WITHOUT ROWID;`);
      return new HistoryStore(database);
    } catch (error) {
      database?.close();
      throw error instanceof ShadowVmError ? error : refuse((error as Error).message, error);
    }
  }

  /**
   * Takes what a VM used in the second that begins at `atS`. A second that was taken before is replaced by it; numbers
   * that can not be a usage (NaN, negative, absurd) count as not measured. Durable after {@link flush}.
   */
  append(vm: string, atS: number, usage: UsageSample): void {
    const values = METRICS.map((metric) => {
      const value = usage[metric] ?? Number.NaN;
      return isUsage(value) ? value : Number.NaN;
    });
    const buckets = this.open.get(vm) ?? TIERS.map(() => null);
    this.open.set(vm, buckets);
    // A second that comes again, or a clock that went back: what was summed up has to be read anew without it.
    if (atS <= (buckets[0]?.startS ?? Number.NEGATIVE_INFINITY)) {
      this.flushOpen(vm);
      buckets.fill(null);
    }
    TIERS.forEach(({ stepS }, tier) => {
      const startS = Math.floor(atS / stepS) * stepS;
      let bucket = buckets[tier]!;
      if (bucket === null || bucket.startS !== startS || tier === 0) {
        if (bucket !== null && tier > 0) this.toWrite(vm, tier, bucket);
        bucket = tier === 0 ? emptyBucket(startS) : this.refilled(vm, startS, startS + stepS, atS);
        buckets[tier] = bucket;
      }
      addTo(bucket, values, values);
      // Coarser buckets are written when they are full: until then they are in the seconds.
      if (tier === 0) this.toWrite(vm, tier, bucket);
    });
  }

  /** Writes everything taken so far in one transaction. What can not be written is lost: it must not pile up. */
  flush(): void {
    if (this.pending.size === 0) return;
    const rows = [...this.pending.values()];
    this.pending.clear();
    const put = this.database.prepare('INSERT OR REPLACE INTO usage (vm, tier, t, data) VALUES (?, ?, ?, ?)');
    this.database.transaction(() => {
      for (const { tier, vm, bucket } of rows) put.run(this.idOf(vm), tier, bucket.startS, pack(bucket));
    })();
    const full = new Set<string>();
    for (const { vm } of rows) {
      // They begin at different counts, so that not all are full in the same second.
      const written = (this.unpruned.get(vm) ?? this.idOf(vm) % PRUNE_EVERY_ROWS) + 1;
      this.unpruned.set(vm, written);
      if (written >= PRUNE_EVERY_ROWS) full.add(vm);
    }
    this.prune([...full]);
  }

  private toWrite(vm: string, tier: number, bucket: Bucket): void {
    this.pending.set(`${tier} ${bucket.startS} ${vm}`, { tier, vm, bucket });
  }

  /** Also what is not full yet, so that readers see it. */
  private flushOpen(vm: string): void {
    this.open.get(vm)?.forEach((bucket, tier) => {
      if (bucket !== null) this.toWrite(vm, tier, bucket);
    });
    this.flush();
  }

  /** The points of a metric in [sinceS, untilS), from the finest rows that still reach back so far. */
  query(vm: string, metric: Metric, sinceS: number, untilS: number): HistoryPoint[] {
    this.flushOpen(vm);
    const id = this.ids.get(vm) ?? this.lookUp(vm);
    if (id === undefined) return [];
    const oldest = this.database.prepare('SELECT min(t) AS t FROM usage WHERE vm = ? AND tier = ?');
    const begins = TIERS.map((_, tier) => (oldest.get(id, tier) as { t: number | null }).t ?? Number.POSITIVE_INFINITY);
    // What a coarse row holds may begin anywhere in it: the finer ones do not reach less far for beginning in its middle.
    const furthest = Math.max(sinceS, Math.min(...TIERS.map(({ stepS }, tier) => begins[tier]! + stepS)));
    const tier = Math.max(
      0,
      begins.findIndex((begin) => begin <= furthest),
    );
    const rows = this.database
      .prepare('SELECT t, data FROM usage WHERE vm = ? AND tier = ? AND t >= ? AND t < ? ORDER BY t')
      .all(id, tier, sinceS, untilS) as Row[];
    const at = METRICS.indexOf(metric);
    return rows
      .map(({ t, data }) => ({ atS: t, mean: floatOf(data, 2 * at), max: floatOf(data, 2 * at + 1) }))
      .filter(({ mean }) => !Number.isNaN(mean));
  }

  /**
   * Every metric's maxima in [sinceS, untilS), oldest first, from the coarsest rows that are not longer than `stepS`:
   * what forecasters learn from after a restart.
   */
  rows(vm: string, sinceS: number, untilS: number, stepS: number): { atS: number; max: (metric: Metric) => number }[] {
    this.flushOpen(vm);
    const id = this.ids.get(vm) ?? this.lookUp(vm);
    if (id === undefined) return [];
    const tier = TIERS.findLastIndex((each) => each.stepS <= stepS);
    const rows = this.database
      .prepare('SELECT t, data FROM usage WHERE vm = ? AND tier = ? AND t >= ? AND t < ? ORDER BY t')
      .all(id, Math.max(0, tier), sinceS, untilS) as Row[];
    return rows.map(({ t, data }) => ({ atS: t, max: (metric) => floatOf(data, 2 * METRICS.indexOf(metric) + 1) }));
  }

  remove(vm: string): void {
    this.flush();
    this.open.delete(vm);
    this.unpruned.delete(vm);
    const id = this.lookUp(vm);
    if (id === undefined) return;
    this.database.prepare('DELETE FROM usage WHERE vm = ?').run(id);
    this.database.prepare('DELETE FROM vm WHERE id = ?').run(id);
    this.ids.delete(vm);
  }

  close(): void {
    for (const vm of this.open.keys()) this.flushOpen(vm);
    this.prune([...this.open.keys()]);
    this.database.close();
  }

  private prune(vms: readonly string[]): void {
    if (vms.length === 0) return;
    const cut = this.database.prepare(
      `DELETE FROM usage WHERE vm = ?1 AND tier = ?2 AND t <=
        (SELECT t FROM usage WHERE vm = ?1 AND tier = ?2 ORDER BY t DESC LIMIT 1 OFFSET ?3)`,
    );
    this.database.transaction(() => {
      for (const vm of vms) {
        this.unpruned.set(vm, 0);
        TIERS.forEach(({ rowsMax }, tier) => void cut.run(this.idOf(vm), tier, rowsMax));
      }
    })();
  }

  /** A bucket as the seconds in the file have it: after a start, or when the clock went back into it. */
  private refilled(vm: string, fromS: number, toS: number, exceptS: number): Bucket {
    const bucket = emptyBucket(fromS);
    // In steady running a bucket begins with its first second: nothing of it is in the file yet.
    if (exceptS === fromS) return bucket;
    this.flush();
    const id = this.ids.get(vm) ?? this.lookUp(vm);
    if (id === undefined) return bucket;
    const rows = this.database
      .prepare('SELECT t, data FROM usage WHERE vm = ? AND tier = 0 AND t >= ? AND t < ? AND t != ? ORDER BY t')
      .all(id, fromS, toS, exceptS) as Row[];
    for (const { data } of rows)
      addTo(
        bucket,
        METRICS.map((_, i) => floatOf(data, 2 * i)),
        METRICS.map((_, i) => floatOf(data, 2 * i + 1)),
      );
    return bucket;
  }

  private lookUp(vm: string): number | undefined {
    const row = this.database.prepare('SELECT id FROM vm WHERE name = ?').get(vm) as { id: number } | undefined;
    if (row !== undefined) this.ids.set(vm, row.id);
    return row?.id;
  }

  private idOf(vm: string): number {
    const known = this.ids.get(vm) ?? this.lookUp(vm);
    if (known !== undefined) return known;
    this.database.prepare('INSERT INTO vm (name) VALUES (?)').run(vm);
    return this.lookUp(vm)!;
  }
}

function emptyBucket(startS: number): Bucket {
  const zeros = () => new Float64Array(METRICS.length);
  return { startS, sum: zeros(), max: zeros(), count: zeros() };
}

function addTo(bucket: Bucket, means: readonly number[], maxima: readonly number[]): void {
  means.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    bucket.sum[i] = bucket.sum[i]! + value;
    bucket.max[i] = Math.max(bucket.max[i]!, maxima[i]!);
    bucket.count[i] = bucket.count[i]! + 1;
  });
}

/** A row of an older list of metrics is shorter: what it does not have was not measured. */
function floatOf(data: ArrayBuffer, index: number): number {
  const from = 4 * index;
  if (from + 4 > data.byteLength) return Number.NaN;
  return new DataView(data).getFloat32(from, true);
}

/** Per metric mean and maximum; NaN where nothing was measured. */
function pack({ sum, max, count }: Bucket): Buffer {
  const data = Buffer.alloc(8 * METRICS.length);
  METRICS.forEach((_, i) => {
    const measured = count[i]! > 0;
    data.writeFloatLE(measured ? sum[i]! / count[i]! : Number.NaN, 8 * i);
    data.writeFloatLE(measured ? max[i]! : Number.NaN, 8 * i + 4);
  });
  return data;
}
