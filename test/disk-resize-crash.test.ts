/** A manager is killed while a disk grows: the next one has it grown, protected, and with all that was on it. */
import { expect, test } from 'vitest';
import { Daemon } from '../harness/daemon.js';
import { leftovers } from '../harness/leftovers.js';
import { MIB } from '../src/vm/spec.js';
import type { VmView } from '../src/vm/view.js';

const network = { bridge: 'svtdkr1', subnet: '10.233.4.0/24' };

test('a disk that is too small for its record grows when its VM is taken over', async () => {
  let daemon = await Daemon.start({ ...network, env: { ...process.env, SHADOWVM_FAULT: 'resize:1' } });
  const { stateDir } = daemon;
  const run = async (command: string) => {
    expect({ command, ...(await daemon.client.guestExec('web', command)) }).toEqual({ command, exitCode: 0 });
  };
  const until = async (holds: (vm: VmView) => boolean) => {
    for (const untilMs = performance.now() + 30_000; performance.now() < untilMs; ) {
      if (holds(await daemon.client.showVm('web'))) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`it did not come: ${JSON.stringify(await daemon.client.listEvents({ limit: 8 }))}`);
  };
  try {
    await daemon.client.runVm({
      ...{ name: 'web', ramBytes: 128 * MIB, network: 'none', shadow: { kind: 'always' } },
      disks: [
        { name: 'data', sizeBytes: 16 * MIB },
        { name: 'more', sizeBytes: 16 * MIB },
      ],
    });
    await until(({ shadow }) => shadow?.state === 'ready');
    await run('for d in data more; do echo $d | dd of=/dev/disk/$d bs=4k seek=3 conv=notrunc,fsync 2>/dev/null; done');
    await expect(daemon.client.resizeDisk('web', 'data', 32 * MIB)).rejects.toThrow();
    await daemon.kill();
    daemon = await Daemon.start({ ...network, stateDir, env: { ...process.env, SHADOWVM_FAULT: '' } });
    await until(({ state, shadow }) => state === 'running' && shadow?.state === 'ready');
    await run(`[ $(blockdev --getsize64 /dev/disk/data) = ${32 * MIB} ]`);
    await run('echo behind | dd of=/dev/disk/data bs=1M seek=31 conv=notrunc,fsync 2>/dev/null');
    const { generation, shadow } = await daemon.client.showVm('web');
    await until((vm) => (vm.shadow?.epoch ?? 0) > (shadow?.epoch ?? 0) + 2);
    await daemon.client.injectFault('web', 'kill');
    await until((vm) => vm.generation > generation && vm.state === 'running');
    const word = (disk: string, at: string) =>
      `"$(dd if=/dev/disk/${disk} ${at} count=1 iflag=direct 2>/dev/null | head -n1)"`;
    await run(`[ ${word('data', 'bs=1M skip=31')} = behind ]`);
    for (const disk of ['data', 'more']) await run(`[ ${word(disk, 'bs=4k skip=3')} = ${disk} ]`);
  } finally {
    await daemon.stop();
  }
  expect(leftovers(stateDir)).toEqual([]);
}, 120_000);
