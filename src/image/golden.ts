/**
 * Where golden snapshots are: in the folder of the image's build, one for each shape of machine that was ever asked for.
 * A device state fits only a QEMU of the shape that it was saved in.
 *
 *     <build>/golden-<shape>.fold   a shadow image in one file: RAM and devices of the freshly booted guest
 *     <build>/golden-<shape>.hot    the pages of it that its guests need first when they wake up (native/hot_pages.h)
 *     <build>/golden-<shape>.hot-later  and then
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { QemuVersion } from '../qemu/argv.js';
import type { DiskSpec } from '../vm/spec.js';
import type { Image } from './store.js';

/** Raised when guests would find other devices, or devices that can do more: older snapshots are made anew. */
const DEVICES = 3;

export interface GoldenShape {
  ramBytes: number;
  vcpus: number;
  network: 'tap' | 'user' | 'none';
  accelerator: 'kvm' | 'tcg';
  qemu: QemuVersion;
  /** Empty ones. */
  disks: readonly DiskSpec[];
}

/** The file of the golden snapshot; whether it is there is another question. */
export function goldenPath(image: Image, shape: GoldenShape): string {
  const { ramBytes, vcpus, network, accelerator, qemu, disks } = shape;
  const diskTexts = disks.map(({ name, sizeBytes }) => `${name}=${sizeBytes}`);
  // Written out, and not the object as it is: the order of its fields is nobody's promise.
  const text = [ramBytes, vcpus, network, accelerator, qemu.major, qemu.minor, qemu.micro, DEVICES, ...diskTexts].join(
    ' ',
  );
  return join(image.dir, `golden-${createHash('sha256').update(text).digest('hex').slice(0, 16)}.fold`);
}

/** Beside it; made by the first guest that woke up from it. */
export function goldenHotPath(goldenPath: string): string {
  return goldenPath.replace(/\.fold$/, '.hot');
}
