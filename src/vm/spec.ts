/** What a user declares about a VM. One schema for the API, the CLI and the state files. */
import { z } from 'zod';
import { DEFAULT_NETWORK, networkNameSchema } from './network.js';
import { probeSchema } from './probe.js';

export const MIB = 1024 * 1024;
export const RAM_BYTES_MIN = 64 * MIB;
export const RAM_BYTES_MAX = 64 * 1024 * MIB;
export const VCPUS_MAX = 8;

/** Lower-case DNS label: it becomes a host name, a file name and part of a cgroup's name. */
export const vmNameSchema = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$/,
    'a name has 1 to 32 characters: lower-case letters, digits and hyphens, beginning with a letter',
  );

/** A whole number from `min` to `max`, and one sentence for whatever else it is. */
function wholeNumber(min: number, max: number, told: string) {
  return z.number(told).int(told).min(min, told).max(max, told);
}

/** A resource threshold held for a time: `cpu>60%/5s`. */
export const triggerSchema = z
  .object({
    metric: z.enum(['cpu', 'memory', 'network']),
    /**
     * cpu: percent of all the VM's vCPUs together, so that 100 is all of them busy. memory: percent of its RAM.
     * network: bytes per second, both directions together. auto: what moves with the VM's history and forecast.
     */
    above: z.union(
      [z.number().positive('a trigger is above 0'), z.literal('auto')],
      'a trigger is above a number, or auto',
    ),
    heldMs: wholeNumber(0, 3_600_000, 'a trigger is held for 0 to 3600000 ms, which is an hour'),
  })
  .refine(({ metric, above }) => metric === 'network' || above === 'auto' || above <= 100, {
    path: ['above'],
    error: (issue) =>
      (issue.input as { metric: string }).metric === 'cpu'
        ? 'a cpu trigger is at most 100, which is all vCPUs of the VM busy'
        : 'a memory trigger is at most 100, which is all of the RAM',
  });
export type Trigger = z.infer<typeof triggerSchema>;

export const shadowRuleSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('manual') }),
  z.object({ kind: z.literal('always') }),
  z.object({
    kind: z.literal('when'),
    triggers: z.array(triggerSchema).min(1, 'a rule has a trigger').max(8, 'a rule has at most 8 triggers'),
  }),
]);
export type ShadowRule = z.infer<typeof shadowRuleSchema>;

function share(max: number, told: string) {
  return z.number(told).positive(told).max(max, told);
}

export const pacingSchema = z.object({
  /** Upper bound wished for the age of the newest committed epoch. */
  maxLagMs: wholeNumber(20, 60_000, 'the lag wished for is 20 to 60000 ms').default(500),
  /** Share of time the guest may stand still for epochs, 0–1. */
  maxPausedShare: share(0.5, 'the share of time paused is above 0 and at most 0.5').default(0.03),
  /** Share of one host core the manager may spend on this VM's epochs, 0–1. */
  cpuBudget: share(1, 'the CPU budget is a share of one host CPU, above 0 and at most 1').default(0.15),
});
export type PacingLimits = z.infer<typeof pacingSchema>;

/**
 * How much of a shadow is resident, beside its image on disk. `image`: nothing runs, a promotion starts a QEMU first.
 * `process`: a QEMU waits without any RAM. `resident`: so many percent of the RAM, the most recently written, are in it.
 */
export const standbyLevelSchema = z.discriminatedUnion('level', [
  z.object({ level: z.literal('image') }),
  z.object({ level: z.literal('process') }),
  z.object({ level: z.literal('resident'), percent: wholeNumber(1, 100, 'a resident standby holds 1 to 100 percent') }),
]);
export type StandbyLevel = z.infer<typeof standbyLevelSchema>;

/**
 * async: what the guest sends leaves at once, and a failover rolls back at most the lag. strict: it leaves when the epoch
 * in which it was sent is committed, so that nothing that the outside saw is ever rolled back.
 */
export const modeSchema = z.enum(['async', 'strict']);
export type Mode = z.infer<typeof modeSchema>;

/** When a committed epoch is on the disk for certain: never asked for, within a second, or before it counts. */
export const durabilitySchema = z.enum(['none', 'interval', 'epoch']);
export type Durability = z.infer<typeof durabilitySchema>;

export const IMAGE_BYTES_MIN = 64 * MIB;
const KEEP_MS_MAX = 7 * 24 * 3_600_000;
export const retentionSchema = z.object({
  /** Epochs so young can be gone back to, ms. */
  keepMs: wholeNumber(0, KEEP_MS_MAX, 'epochs are kept for 0 to 604800000 ms, which is a week').default(60_000),
  /** What the shadow image may take on the disk; null for twice the RAM and 512 MiB. */
  maxBytes: z
    .number('the size of a shadow image is a number of bytes')
    .int('the size of a shadow image is a whole number of bytes')
    .min(IMAGE_BYTES_MIN, `a shadow image may take ${IMAGE_BYTES_MIN / MIB} MiB or more`)
    .nullable()
    .default(null),
});
export type Retention = z.infer<typeof retentionSchema>;

/** What `maxBytes` means where it is not said: the newest state, as much again while it is compacted, and a window. */
export function imageBytesMax(spec: { ramBytes: number; retention: Retention; disks: readonly DiskSpec[] }): number {
  return spec.retention.maxBytes ?? 2 * (spec.ramBytes + diskBytes(spec.disks)) + 512 * MIB;
}

export const ALLOCATION_MODES = ['off', 'recommend', 'auto'] as const;
export type AllocationMode = (typeof ALLOCATION_MODES)[number];
export const PRIORITY_MAX = 10;
export const CPU_PERCENT_MAX = 100 * (VCPUS_MAX + 1);
const CPU_TOLD = `a share of CPU is 1 to ${CPU_PERCENT_MAX} percent of one CPU`;
const MEMORY_TOLD = `the memory of a VM is ${RAM_BYTES_MIN / MIB} MiB or more, in bytes`;
const memoryBytesSchema = z.number(MEMORY_TOLD).int(MEMORY_TOLD).min(RAM_BYTES_MIN, MEMORY_TOLD);

/** What the VM is given of the host, and who decides that. */
export const allocationSchema = z.object({
  /** off: what is declared, always. recommend: what would be changed is told. auto: it is changed. */
  mode: z.enum(ALLOCATION_MODES).default('recommend'),
  /** Of what is short, a VM gets a part by this. */
  priority: wholeNumber(1, PRIORITY_MAX, `a priority is 1 to ${PRIORITY_MAX}`).default(5),
  /** Percent of one CPU. */
  cpuMinPercent: wholeNumber(1, CPU_PERCENT_MAX, CPU_TOLD).default(10),
  /** null: all that its vCPUs can use. In every mode it never gets more. */
  cpuMaxPercent: wholeNumber(1, CPU_PERCENT_MAX, CPU_TOLD).nullable().default(null),
  /** What the balloon leaves to the guest at least. */
  memoryMinBytes: memoryBytesSchema.default(RAM_BYTES_MIN),
  /** null: all of its RAM. */
  memoryMaxBytes: memoryBytesSchema.nullable().default(null),
});
export type AllocationSpec = z.infer<typeof allocationSchema>;

export const DISKS_MAX = 4;
export const DISK_BYTES_MAX = 1024 ** 4;
const DISK_TOLD = `a disk has 1 MiB to ${DISK_BYTES_MAX / 1024 ** 4} TiB, in whole MiB`;

/** The guest sees it as the disk's serial number, and as /dev/disk/NAME. */
export const diskNameSchema = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,14}[a-z0-9])?$/,
    'the name of a disk has 1 to 16 characters: lower-case letters, digits and hyphens, beginning with a letter',
  );

export const diskSpecSchema = z
  .object({
    name: diskNameSchema,
    /** null: that of the file at `path`, found out when the VM is made. */
    sizeBytes: wholeNumber(MIB, DISK_BYTES_MAX, DISK_TOLD).multipleOf(MIB, DISK_TOLD).nullable().default(null),
    /** Absolute, on the manager's host. A read-only disk is used in place; of a writable one the VM gets a copy. */
    path: z.string().min(1).max(4096).nullable().default(null),
    readOnly: z.boolean().default(false),
  })
  .refine(
    ({ sizeBytes, path }) => sizeBytes !== null || path !== null,
    'a disk has a size, or a file that it is made of',
  )
  .refine(({ readOnly, path }) => !readOnly || path !== null, 'a read-only disk is a file that is there already');
export type DiskSpec = z.infer<typeof diskSpecSchema>;

/** What a VM's image has to hold of its disks: the writable ones. */
export function diskBytes(disks: readonly Pick<DiskSpec, 'readOnly' | 'sizeBytes'>[]): number {
  return disks.reduce((sum, { readOnly, sizeBytes }) => sum + (readOnly ? 0 : (sizeBytes ?? 0)), 0);
}

/**
 * What the guest's flushes mean. writeback: what it flushed is on the host's disk. none: the same, and past the host's
 * page cache. unsafe: flushes do nothing; a failover loses no more than with the others, a power loss of the host does.
 */
export const diskCacheSchema = z.enum(['writeback', 'none', 'unsafe']);
export type DiskCache = z.infer<typeof diskCacheSchema>;

const PREFETCH_BYTES_MAX = 1024 ** 4;
const PREFETCH_TOLD = 'what is read ahead for a promotion is 0 to 1 TiB, in bytes';
const RAM_TOLD = `a VM has ${RAM_BYTES_MIN} to ${RAM_BYTES_MAX} bytes of RAM (${RAM_BYTES_MIN / MIB} MiB to ${RAM_BYTES_MAX / MIB / 1024} GiB), in whole MiB`;
/** 4 GiB/s is the most that the kernel's plain rates can say. */
const BANDWIDTH_MIN = 64_000;
const BANDWIDTH_MAX = 32_000_000_000;
const BANDWIDTH_TOLD = 'a bandwidth is 64000 to 32000000000 bits per second (64K to 32G)';
const PUBLISH_MAX = 32;
const PROBES_MAX = 8;
const portSchema = wholeNumber(1, 65_535, 'a port is 1 to 65535');

export const vmSpecSchema = z.object({
  name: vmNameSchema,
  image: z.string().min(1).default('default'),
  ramBytes: wholeNumber(RAM_BYTES_MIN, RAM_BYTES_MAX, RAM_TOLD)
    .multipleOf(MIB, RAM_TOLD)
    .default(256 * MIB),
  vcpus: wholeNumber(1, VCPUS_MAX, `a VM has 1 to ${VCPUS_MAX} vCPUs`).default(1),
  /** auto: a tap where taps are permitted, else QEMU's user-mode network. */
  network: z.enum(['auto', 'tap', 'user', 'none']).default('auto'),
  /** The network that its tap is on: the default one, or one that was declared. */
  net: networkNameSchema.default(DEFAULT_NETWORK),
  /** In each direction, tap only. null: no limit. */
  bandwidthBitsPerSecond: wholeNumber(BANDWIDTH_MIN, BANDWIDTH_MAX, BANDWIDTH_TOLD).nullable().default(null),
  /** Host port → guest port, TCP. On a tap on all addresses of the host, in user mode on 127.0.0.1. */
  publish: z
    .array(z.object({ hostPort: portSchema, guestPort: portSchema }))
    .max(PUBLISH_MAX, `a VM publishes at most ${PUBLISH_MAX} ports`)
    .refine((ports) => new Set(ports.map((port) => port.hostPort)).size === ports.length, {
      error: 'a port of the host is published once',
    })
    .default([]),
  disks: z
    .array(diskSpecSchema)
    .max(DISKS_MAX, `a VM has at most ${DISKS_MAX} disks`)
    .refine((disks) => new Set(disks.map(({ name }) => name)).size === disks.length, 'two disks have the same name')
    .default([]),
  diskCache: diskCacheSchema.default('writeback'),
  /** How much of what it uses of its disks is kept in the host's page cache for a promotion; 0: nothing. */
  prefetchBytes: wholeNumber(0, PREFETCH_BYTES_MAX, PREFETCH_TOLD).default(256 * MIB),
  accelerator: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
  /** How changed pages are found: write-protection tracking, checksums alone, or the better one that works here. */
  tracking: z.enum(['auto', 'write', 'checksum']).default('auto'),
  shadow: shadowRuleSchema.default({ kind: 'manual' }),
  mode: modeSchema.default('async'),
  /** What tells whether the guest does what it is for. One that fails is a failure of the guest. */
  probes: z.array(probeSchema).max(PROBES_MAX, `a VM has at most ${PROBES_MAX} probes`).default([]),
  standby: standbyLevelSchema.default({ level: 'process' }),
  durability: durabilitySchema.default('interval'),
  retention: retentionSchema.default(retentionSchema.parse({})),
  /** golden: from the snapshot of its image's first boot, which is taken when it is missing. boot: from power-on. */
  start: z.enum(['golden', 'boot']).default('golden'),
  pacing: pacingSchema.default(pacingSchema.parse({})),
  allocation: allocationSchema.default(allocationSchema.parse({})),
});
/** A complete specification, every default filled in. */
export type VmSpec = z.infer<typeof vmSpecSchema>;
/** What a caller may write: everything but the name has a default. */
export type VmSpecInput = z.input<typeof vmSpecSchema>;
