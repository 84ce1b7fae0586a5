/** A manager is killed while a disk grows: the next one has it grown, protected, and with all that was on it. */
import { afterEach, expect, test } from 'vitest';
import { MIB } from '../src/vm/spec.js';
import { MortalDaemon } from './mortal-daemon.js';

const daemon = new MortalDaemon({ bridge: 'svtdkr1', subnet: '10.233.4.0/24' });
afterEach(() => daemon.stop());

test('a disk that is too small for its record grows when its VM is taken over', async () => {
  await daemon.start('resize:1');
  await daemon.client.runVm({
    ...{ name: 'web', ramBytes: 128 * MIB, network: 'none', shadow: { kind: 'always' } },
    disks: [
      { name: 'data', sizeBytes: 16 * MIB },
      { name: 'more', sizeBytes: 16 * MIB },
    ],
  });
  await daemon.untilProtected();
  await daemon.run(
    'for d in data more; do echo $d | dd of=/dev/disk/$d bs=4k seek=3 conv=notrunc,fsync 2>/dev/null; done',
  );
  await expect(daemon.client.resizeDisk('web', 'data', 32 * MIB)).rejects.toThrow();
  await daemon.kill();
  await daemon.start();
  await daemon.untilProtected();
  await daemon.run(`[ $(blockdev --getsize64 /dev/disk/data) = ${32 * MIB} ]`);
  await daemon.run('echo behind | dd of=/dev/disk/data bs=1M seek=31 conv=notrunc,fsync 2>/dev/null');
  await daemon.failOver(2);
  const word = (disk: string, at: string) =>
    `"$(dd if=/dev/disk/${disk} ${at} count=1 iflag=direct 2>/dev/null | head -n1)"`;
  await daemon.run(`[ ${word('data', 'bs=1M skip=31')} = behind ]`);
  for (const disk of ['data', 'more']) await daemon.run(`[ ${word(disk, 'bs=4k skip=3')} = ${disk} ]`);
}, 120_000);
