/** What a snapshot says of itself, and what can be wrong with one. */
import { z } from 'zod';
import { storedHeatSchema } from '../disk/heat-map.js';
import { messageOf, ShadowVmError } from '../errors.js';
import { isNativeFailure } from '../native/index.js';
import { vmSpecSchema } from '../vm/spec.js';

/** Kept in the file beside the pages: enough to make a VM of it on another host. */
export const snapshotLabelSchema = z.object({
  spec: vmSpecSchema,
  createdAt: z.string(),
  generation: z.number().int().min(0),
  cutAt: z.string(),
  /** A device state fits only the QEMU release and accelerator that saved it. */
  qemu: z.string(),
  accelerator: z.enum(['kvm', 'tcg']),
  /** What its guest uses of each disk. */
  heat: z.record(z.string(), storedHeatSchema).optional(),
});
export type SnapshotLabel = z.infer<typeof snapshotLabelSchema>;

/** @throws SNAPSHOT_FOREIGN when it is a shadow image, and not one that was exported */
export function parseLabel(text: string, path: string): SnapshotLabel {
  let value: unknown = null;
  try {
    value = JSON.parse(text);
  } catch {
    // told below: no label is as foreign as a strange one
  }
  const parsed = snapshotLabelSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new ShadowVmError('SNAPSHOT_FOREIGN', {
    attempted: 'import the snapshot',
    subject: path,
    reason: 'it does not say which VM it is of: it was not written by `snapshot export`',
    remedy: 'Export the snapshot anew on its host',
  });
}

export function noSnapshot(attempted: string, vm: string): ShadowVmError {
  return new ShadowVmError('SNAPSHOT_NOT_FOUND', {
    attempted,
    subject: vm,
    reason: 'it has none: it was stopped without saving one, or has never had a shadow',
    remedy: `See which there are: shadowvm snapshot ls. To boot it from power-on: shadowvm vm start ${vm} --boot`,
  });
}

const REMEDIES = {
  ERR_IMAGE_FOREIGN: ['SNAPSHOT_FOREIGN', 'Name a file that `shadowvm snapshot export` has written'],
  ERR_IMAGE_NEWER: ['SNAPSHOT_NEWER', 'Use a ShadowVM that is as new as the one that wrote it'],
  ERR_IMAGE_CORRUPT: ['SNAPSHOT_CORRUPT', 'Copy or export the file anew; what is damaged is not used'],
  ERR_IMAGE_BASE: ['SNAPSHOT_BASE_MISSING', 'Put the golden snapshot (base.fold) back into the folder of the VM'],
  ERR_IMAGE_NOT_FOUND: ['SNAPSHOT_NOT_FOUND', 'See which there are: shadowvm snapshot ls'],
  ERR_IMAGE_IN_USE: ['VM_BUSY', 'Another process has it open; wait until it has ended'],
  ERR_NO_EPOCH: ['EPOCH_NOT_FOUND', 'See which there are: shadowvm shadow epochs VM'],
  ENOENT: ['SNAPSHOT_NOT_FOUND', 'Check the path: it is one on the host of the manager'],
  EEXIST: ['INVALID_ARGUMENT', 'Choose another path: no file is overwritten'],
  ENOSPC: ['NO_SPACE', 'Make room on the file system of this path'],
  EDQUOT: ['NO_SPACE', 'Make room on the file system of this path'],
  EACCES: ['NOT_ROOT', 'Choose a path that the manager may use'],
  EPERM: ['NOT_ROOT', 'Choose a path that the manager may use'],
  ENOTDIR: ['INVALID_ARGUMENT', 'Choose another path'],
  EISDIR: ['INVALID_ARGUMENT', 'Name a file, not a folder'],
} as const;

/** Gives what the image's reader or writer said the code that tells the user what to do. */
export function imageError(error: unknown, attempted: string, subject: string): ShadowVmError {
  if (error instanceof ShadowVmError) return error;
  const reason = messageOf(error);
  const code = isNativeFailure(error) ? error.code : '';
  const known = code in REMEDIES ? REMEDIES[code as keyof typeof REMEDIES] : null;
  if (known !== null)
    return new ShadowVmError(known[0], { attempted, subject, reason, remedy: known[1], cause: error });
  return new ShadowVmError('NATIVE_ERROR', { attempted, subject, reason, cause: error });
}
