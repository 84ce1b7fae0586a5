/** What the manager tells about VMs, shadows and events: the JSON of the API and of `--json`. Fields are stable. */
import { z } from 'zod';
import { probeViewSchema } from './probe.js';
import { vmSpecSchema } from './spec.js';

/** Where a VM is in its life. `promoting`: the shadow is taking over. `failed`: it died and nothing could take over. */
export const vmStateSchema = z.enum(['starting', 'booting', 'running', 'promoting', 'stopping', 'stopped', 'failed']);
export type VmState = z.infer<typeof vmStateSchema>;

/**
 * Where a shadow is in its life. `starting`: its QEMU comes up. `syncing`: first full copy. `ready`: promotable.
 * `behind`: promotable, but its newest epoch is older than it should be. `promoting`. `failed`: to be made anew.
 */
export const shadowStateSchema = z.enum(['starting', 'syncing', 'ready', 'behind', 'promoting', 'failed']);
export type ShadowState = z.infer<typeof shadowStateSchema>;

/** Quantiles in ms over the last samples (at most 4096) and the number of all samples ever taken. */
export const quantilesSchema = z.object({
  count: z.number().int(),
  p50: z.number().nullable(),
  p99: z.number().nullable(),
  max: z.number().nullable(),
});
export type Quantiles = z.infer<typeof quantilesSchema>;

export const shadowViewSchema = z.object({
  vm: z.string(),
  state: shadowStateSchema,
  /** What waits beside the image: 'image' (nothing), 'process', 'resident', 'resident=50'. */
  standby: z.string(),
  /** Why it was made: "by hand", "always", or the trigger with its measured value: "cpu 97% > 60% for 5 s". */
  createdBecause: z.string(),
  pid: z.number().int().nullable(),
  tracking: z.enum(['write', 'checksum']),
  /** Newest committed epoch, 0 before the first. They are numbered through promotions, stops and starts. */
  epoch: z.number().int(),
  /** Age of that epoch now, ms; null before the first. */
  lagMs: z.number().nullable(),
  pauseMs: quantilesSchema,
  /** Lag just before each commit: what a failover at that moment would have rolled back. */
  lagMsAtCommit: quantilesSchema,
  pagesScanned: z.number().int(),
  pagesChanged: z.number().int(),
  pagesDroppedByChecksum: z.number().int(),
  /** Of its disks, in 4 KiB. */
  diskPagesChanged: z.number().int(),
  /** Differed from the shadow although no write had been reported; found by the scrub and repaired. */
  pagesRepaired: z.number().int(),
  bytesCopied: z.number().int(),
  /** What the epochs of the present protection took in the shadow image. */
  bytesStored: z.number().int(),
  epochsAborted: z.number().int(),
  intervalMs: z.number(),
  /** The image on disk; null before it is open. */
  image: z
    .object({
      bytesOnDisk: z.number().int(),
      /** What the newest epoch needs of that. */
      liveBytes: z.number().int(),
      /** In memory: where each page is, and its checksum. */
      indexBytes: z.number().int(),
      oldestEpoch: z.number().int(),
      headEpoch: z.number().int(),
    })
    .nullable(),
});
export type ShadowView = z.infer<typeof shadowViewSchema>;

/** What the VM woke up from: power-on, its image's golden snapshot, a snapshot of its own, or another VM's epoch. */
export const vmOriginSchema = z.enum(['boot', 'golden', 'snapshot', 'clone']);
export type VmOrigin = z.infer<typeof vmOriginSchema>;

/** An epoch that can be gone back to. */
export const epochViewSchema = z.object({
  epoch: z.number().int(),
  /** Of the primary that it was cut from. */
  generation: z.number().int(),
  /** When it was cut, ISO 8601. */
  cutAt: z.string(),
  changedPages: z.number().int(),
  storedBytes: z.number().int(),
  /** Whether it would survive a power loss. */
  durable: z.boolean(),
});
export type EpochView = z.infer<typeof epochViewSchema>;

/** An epoch is named by its number, or by a moment that it is to be older than. */
export type WantedEpoch = { epoch: number } | { beforeMs: number };

/** The state that a stopped VM starts again from. */
export const snapshotViewSchema = z.object({
  vm: z.string(),
  epoch: z.number().int(),
  cutAt: z.string(),
  bytesOnDisk: z.number().int(),
  /** Pages that are neither zero nor those of the golden snapshot. */
  storedPages: z.number().int(),
});
export type SnapshotView = z.infer<typeof snapshotViewSchema>;

/** A snapshot that was written into a file of its own. */
export const exportViewSchema = z.object({
  vm: z.string(),
  path: z.string(),
  epoch: z.number().int(),
  bytes: z.number().int(),
  pages: z.number().int(),
});
export type ExportView = z.infer<typeof exportViewSchema>;

/** What reading a whole snapshot or shadow found. */
export const verifyViewSchema = z.object({
  vm: z.string(),
  epoch: z.number().int(),
  /** Read, and right by their checksums. */
  pages: z.number().int(),
  damagedPages: z.number().int(),
  /** Of a shadow that was really started, in isolation: time to its first heartbeat; null where none was. */
  firstBeatMs: z.number().nullable(),
  ms: z.number(),
});
export type VerifyView = z.infer<typeof verifyViewSchema>;

export const vmViewSchema = z.object({
  name: z.string(),
  state: vmStateSchema,
  /** Counts promotions; the fencing token. */
  generation: z.number().int(),
  spec: vmSpecSchema,
  /** Whether only what is committed leaves the guest at this moment; null in async mode. */
  strict: z.enum(['active', 'suspended']).nullable(),
  accelerator: z.enum(['kvm', 'tcg']).nullable(),
  pid: z.number().int().nullable(),
  address: z.string().nullable(),
  /** On a network with IPv6. */
  address6: z.string().nullable(),
  mac: z.string().nullable(),
  tap: z.string().nullable(),
  networkMode: z.enum(['tap', 'user', 'none']),
  createdAt: z.string(),
  origin: vmOriginSchema,
  /** Start of QEMU → the guest answers, ms. */
  bootMs: z.number().nullable(),
  guest: z
    .object({
      beats: z.number().int(),
      uptimeMs: z.number(),
      memTotalKiB: z.number(),
      memAvailableKiB: z.number(),
      /** What a program in the guest wrote into /run/app-status; '-' for nothing. */
      app: z.string(),
    })
    .nullable(),
  usage: z.object({ cpuPercent: z.number(), memoryPercent: z.number(), networkBytesPerSecond: z.number() }).nullable(),
  /** As they stand since the VM runs, or was promoted. */
  probes: z.array(probeViewSchema),
  shadow: shadowViewSchema.nullable(),
  /** Of a VM that has ended: what `vm start` would wake it from. */
  snapshot: snapshotViewSchema.nullable(),
  failure: z.string().nullable(),
});
export type VmView = z.infer<typeof vmViewSchema>;

/** One promotion, as it went. Times in ms; `cutAtNs` etc. are CLOCK_MONOTONIC nanoseconds as decimal strings. */
export const promotionViewSchema = z.object({
  vm: z.string(),
  reason: z.string(),
  /** Asked for, by hand: the guest stood still before its last epoch was cut, and nothing of it is rolled back. */
  planned: z.boolean(),
  generation: z.number().int(),
  epoch: z.number().int(),
  /** When the promoted epoch was cut: guest writes after this moment are rolled back. */
  cutAtNs: z.string(),
  decidedAtNs: z.string(),
  fencedAtNs: z.string(),
  resumedAtNs: z.string(),
  /** Decision → vCPUs run. */
  resumeMs: z.number(),
  /** Age of the promoted epoch at the decision: what was rolled back. 0 where it was cut after that, as when planned. */
  lagMs: z.number(),
});
export type PromotionView = z.infer<typeof promotionViewSchema>;

export const eventSchema = z.object({
  /** Rises by one; unique within a state directory. */
  seq: z.number().int(),
  at: z.string(),
  /** CLOCK_MONOTONIC nanoseconds as a decimal string, comparable between processes of this host. */
  atNs: z.string(),
  level: z.enum(['info', 'warn', 'error']),
  /** Dotted, stable: "vm.started", "shadow.ready", "failure.detected", "promotion.done". */
  type: z.string(),
  vm: z.string().nullable(),
  /** One sentence for people. */
  message: z.string(),
  data: z.record(z.string(), z.unknown()),
});
export type Event = z.infer<typeof eventSchema>;

/** One step of a long operation, for people who wait. */
export interface Progress {
  message: string;
  /** 0–1 where it is known. */
  done?: number;
}
export type OnProgress = (progress: Progress) => void;
