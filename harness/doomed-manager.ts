/**
 * A manager of one QEMU, to be killed in the middle of its work: a program of its own for tests of what comes after.
 * Its task is its only argument, as JSON; it says in one line of JSON which QEMU it has, and works until its end.
 */
import { readFileSync } from 'node:fs';
import { ShadowImage } from '../src/native/image.js';
import { EpochSource, GuestRam } from '../src/native/memory.js';
import { Pager, RamPageSource } from '../src/native/pager.js';
import { type AdoptOptions, type LaunchOptions, QemuProcess } from '../src/qemu/process.js';

export type DoomedTask =
  | {
      /** Starts a lazy QEMU and fills it from a memory that another process has open; lets its guest run. */
      kind: 'fill';
      launch: LaunchOptions;
      source: { pid: number; fd: number };
      deviceStatePath: string;
      fillBytesPerSecond: number;
    }
  | {
      /** Stops the guest and lets it go, as often as it can. */
      kind: 'pause';
      adopt: AdoptOptions;
    }
  | {
      /** Collects what the guest writes, while it stands, as often as it can; says with which codes that failed. */
      kind: 'collect';
      adopt: AdoptOptions;
      /** A folder for its image. */
      imagePath: string;
    };

const task = JSON.parse(process.argv[2] as string) as DoomedTask;
const say = (pid: number) => process.stdout.write(`${JSON.stringify({ pid })}\n`);

if (task.kind === 'fill') {
  const qemu = await QemuProcess.launch(task.launch);
  const { control, pid, ram } = qemu;
  const source = new RamPageSource(GuestRam.adopt(task.source.pid, task.source.fd));
  const onTrouble = () => process.exit(1);
  const pager = new Pager({ control, pid, ram, source, onTrouble });
  pager.throttle(task.fillBytesPerSecond);
  const filled = pager.start();
  await qemu.loadDevices(readFileSync(task.deviceStatePath), 10_000);
  await qemu.qmp.execute('cont');
  say(pid);
  await filled;
} else if (task.kind === 'collect') {
  const { vm, pid, control, ram } = await QemuProcess.adopt(task.adopt);
  const image = await ShadowImage.create(task.imagePath, { vm, ramBytes: ram.bytes });
  const source = new EpochSource({ ram, control, pid, tracking: 'write', image: image.native });
  await source.sync();
  say(pid);
  for (;;) {
    await source.collectPaused({ timeoutMs: 2000 }).catch(({ code }: { code: string }) => console.log(code));
    await source.abort();
  }
} else {
  const qemu = await QemuProcess.adopt(task.adopt);
  for (let pauses = 0; ; pauses++) {
    qemu.control.setPausedForEpoch(true);
    const stopped = qemu.qmp.execute('stop');
    await qemu.saveDevices(5000);
    await stopped;
    await qemu.qmp.execute('cont');
    qemu.control.setPausedForEpoch(false);
    if (pauses === 0) say(qemu.pid);
  }
}
