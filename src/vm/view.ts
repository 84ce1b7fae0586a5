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
  standby: z.literal('resident'),
  /** Why it was made: "by hand", "always", or the trigger with its measured value: "cpu 97% > 60% for 5 s". */
  createdBecause: z.string(),
  pid: z.number().int().nullable(),
  tracking: z.enum(['write', 'checksum']),
  /** Newest committed epoch of the present protection, 0 before the first. */
  epoch: z.number().int(),
  /** Age of that epoch now, ms; null before the first. */
  lagMs: z.number().nullable(),
  pauseMs: quantilesSchema,
  /** Lag just before each commit: what a failover at that moment would have rolled back. */
  lagMsAtCommit: quantilesSchema,
  pagesScanned: z.number().int(),
  pagesChanged: z.number().int(),
  pagesDroppedByChecksum: z.number().int(),
  bytesCopied: z.number().int(),
  epochsAborted: z.number().int(),
  intervalMs: z.number(),
});
export type ShadowView = z.infer<typeof shadowViewSchema>;

export const vmViewSchema = z.object({
  name: z.string(),
  state: vmStateSchema,
  /** Counts promotions; the fencing token. */
  generation: z.number().int(),
  spec: vmSpecSchema,
  accelerator: z.enum(['kvm', 'tcg']).nullable(),
  pid: z.number().int().nullable(),
  address: z.string().nullable(),
  /** On a network with IPv6. */
  address6: z.string().nullable(),
  mac: z.string().nullable(),
  tap: z.string().nullable(),
  networkMode: z.enum(['tap', 'user', 'none']),
  createdAt: z.string(),
  /** Power-on of QEMU → first heartbeat, ms. */
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
