/** What a user declares about a VM. One schema for the API, the CLI and the state files. */
import { z } from 'zod';

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

/** A resource threshold held for a time: `cpu>60%/5s`. Units: percent of the VM's vCPUs, percent of RAM, bytes/s. */
export const triggerSchema = z.object({
  metric: z.enum(['cpu', 'memory', 'network']),
  /** cpu, memory: percent 0–100. network: bytes per second, both directions together. */
  above: z.number().positive(),
  heldMs: z.number().int().min(0).max(3_600_000),
});
export type Trigger = z.infer<typeof triggerSchema>;

export const shadowRuleSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('manual') }),
  z.object({ kind: z.literal('always') }),
  z.object({ kind: z.literal('when'), triggers: z.array(triggerSchema).min(1).max(8) }),
]);
export type ShadowRule = z.infer<typeof shadowRuleSchema>;

export const pacingSchema = z.object({
  /** Upper bound wished for the age of the newest committed epoch. */
  maxLagMs: z.number().int().min(20).max(60_000).default(500),
  /** Share of time the guest may stand still for epochs, 0–1. */
  maxPausedShare: z.number().positive().max(0.5).default(0.03),
  /** Share of one host core the manager may spend on this VM's epochs, 0–1. */
  cpuBudget: z.number().positive().max(1).default(0.15),
});
export type PacingLimits = z.infer<typeof pacingSchema>;

export const vmSpecSchema = z.object({
  name: vmNameSchema,
  image: z.string().min(1).default('default'),
  ramBytes: z
    .number()
    .int()
    .min(RAM_BYTES_MIN)
    .max(RAM_BYTES_MAX)
    .multipleOf(MIB, 'RAM must be whole MiB')
    .default(256 * MIB),
  vcpus: z.number().int().min(1).max(VCPUS_MAX).default(1),
  /** auto: a tap where taps are permitted, else QEMU's user-mode network. */
  network: z.enum(['auto', 'tap', 'user', 'none']).default('auto'),
  /** Host port → guest port; user-mode network only (on a tap the guest has an address of its own). */
  publish: z
    .array(z.object({ hostPort: z.number().int().min(1).max(65535), guestPort: z.number().int().min(1).max(65535) }))
    .max(32)
    .default([]),
  accelerator: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
  /** How changed pages are found: write-protection tracking, checksums alone, or the better one that works here. */
  tracking: z.enum(['auto', 'write', 'checksum']).default('auto'),
  shadow: shadowRuleSchema.default({ kind: 'manual' }),
  pacing: pacingSchema.default(pacingSchema.parse({})),
});
/** A complete specification, every default filled in. */
export type VmSpec = z.infer<typeof vmSpecSchema>;
/** What a caller may write: everything but the name has a default. */
export type VmSpecInput = z.input<typeof vmSpecSchema>;
