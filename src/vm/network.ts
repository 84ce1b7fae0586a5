/** What a user declares about a network, and what is told about it. One schema for the API, the CLI and the state files. */
import { z } from 'zod';

/** Of VMs that name none. It is there without being declared. */
export const DEFAULT_NETWORK = 'default';

export const networkNameSchema = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$/,
    'a network’s name has 1 to 32 characters: lower-case letters, digits and hyphens, beginning with a letter',
  );

export const networkSpecSchema = z.object({
  name: networkNameSchema,
  /** "10.1.0.0/24", /8 to /29. The host takes the first address, guests get the others. */
  subnet: z.string().min(1).max(64),
  /** "fd00:1::/64": each guest has the same place in both. null: IPv4 only. */
  subnet6: z.string().min(1).max(64).nullable().default(null),
  /** Guests reach what the host reaches, under the host's address; from outside only published ports are reached. */
  nat: z.boolean().default(false),
  /** Name of its bridge on the host, 1 to 15 bytes; null: one is made up. */
  bridge: z.string().min(1).max(64).nullable().default(null),
});
export type NetworkSpec = z.infer<typeof networkSpecSchema>;
export type NetworkSpecInput = z.input<typeof networkSpecSchema>;

export const networkViewSchema = z.object({
  name: z.string(),
  subnet: z.string(),
  subnet6: z.string().nullable(),
  nat: z.boolean(),
  bridge: z.string(),
  /** The host's own addresses there, which are the guests' gateways. */
  hostAddress: z.string(),
  hostAddress6: z.string().nullable(),
  /** Whether its bridge is there: the default network's is made for its first VM. */
  up: z.boolean(),
  /** VMs that are on it and have not ended. */
  vms: z.array(z.string()),
});
export type NetworkView = z.infer<typeof networkViewSchema>;
