/** Images built from the real archive, and the guest that they hold. */
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildImage } from '../src/image/builder.js';
import { findImage, type Image, listImages, pinImage, recordBoot, removeImage } from '../src/image/store.js';
import { GuestVm } from './guest-vm.js';

const imagesDir = join(import.meta.dirname, '../.cache/images');
const cacheDir = join(imagesDir, '.debs');
const scratch = mkdtempSync(join(tmpdir(), 'shadowvm-image-'));
let image: Image;

beforeAll(async () => {
  image = (await buildImage({ imagesDir, packages: ['redis-server'] })).image;
});

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

describe('an image', () => {
  test('says what it was built from', () => {
    expect(image.name).toBe('default');
    expect(image.key).toMatch(/^[0-9a-f]{64}$/);
    expect(image.kernelVersion).toMatch(/^\d+\.\d+/);
    expect(image.services).toEqual(['redis-server']);
    const names = image.packages.map((each) => each.name);
    for (const name of ['redis-server', 'redis-tools', 'busybox-static', 'libc6']) expect(names).toContain(name);
    expect(names).not.toContain('adduser');
    expect(statSync(image.kernelPath).size).toBe(image.kernelBytes);
    expect(statSync(image.initrdPath).size).toBe(image.initrdBytes);
    expect(image.imageMiB).toBeLessThan(32);
  });

  test('is not built again while nothing has changed', async () => {
    const before = statSync(image.initrdPath).mtimeMs;
    const again = await buildImage({ imagesDir, packages: ['redis-server'] });
    expect(again.cached).toBe(true);
    expect(again.elapsedMs).toBeLessThan(1000);
    expect(statSync(again.image.initrdPath).mtimeMs).toBe(before);
  });

  test('comes out the same, byte by byte, wherever it is built', async () => {
    const other = await buildImage({ imagesDir: join(scratch, 'same'), cacheDir });
    expect(other.cached).toBe(false);
    expect(other.image.key).toBe(image.key);
    expect(readFileSync(other.image.initrdPath).equals(readFileSync(image.initrdPath))).toBe(true);
  });

  test('remembers how long it boots', async () => {
    const dir = join(scratch, 'same');
    await recordBoot(dir, 'default', 1234);
    expect((await findImage(dir, 'default')).bootMs).toBe(1234);
    expect((await buildImage({ imagesDir: dir, cacheDir })).cached).toBe(true);
  });

  test('stays with a VM that has pinned it', async () => {
    const dir = join(scratch, 'pinned');
    const { image: mine } = await buildImage({ imagesDir: dir, cacheDir, packages: [] });
    await pinImage(mine, join(scratch, 'vm'));
    const pinned = await pinImage(mine, join(scratch, 'vm'));
    await removeImage(dir, 'default');
    expect(existsSync(mine.initrdPath)).toBe(false);
    expect(statSync(pinned.initrdPath).size).toBe(mine.initrdBytes);
    expect(readdirSync(join(scratch, 'vm')).sort()).toEqual(['initrd', 'vmlinuz']);
    await expect(pinImage(mine, join(scratch, 'vm'))).rejects.toMatchObject({ code: 'IMAGE_NOT_FOUND' });
  });
});

describe('the folder of images', () => {
  const dir = join(scratch, 'store');
  const build = (name: string, force = false) => buildImage({ imagesDir: dir, cacheDir, name, packages: [], force });

  test('survives two builders of one name', async () => {
    const results = await Promise.all([build('twin', true), build('twin', true)]);
    const found = await findImage(dir, 'twin');
    expect(found.key).toBe(results[0]!.image.key);
    expect(statSync(found.initrdPath).size).toBe(found.initrdBytes);
  });

  test('holds an image at every moment while it is replaced', async () => {
    let done = false;
    const rebuilt = build('twin', true).finally(() => {
      done = true;
    });
    let looks = 0;
    for (; !done; looks++) {
      readFileSync(join(dir, 'twin/manifest.json'));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await rebuilt;
    expect(looks).toBeGreaterThan(100);
  });

  test('is rid of what dead builders left, and of nothing else', async () => {
    const stale = join(dir, '.builds', 'twin.999999.1.abcdef');
    const underWay = readdirSync(join(dir, '.builds'));
    mkdirSync(stale);
    writeFileSync(join(stale, 'initrd'), 'half');
    expect((await listImages(dir)).map((each) => each.name)).toEqual(['twin']);
    await build('other');
    expect(existsSync(stale)).toBe(false);
    for (const name of underWay) expect(existsSync(join(dir, '.builds', name))).toBe(true);
    expect((await listImages(dir)).map((each) => each.name)).toEqual(['other', 'twin']);
  });

  test('counts a damaged image as none, and builds it again', async () => {
    const damaged = await findImage(dir, 'other');
    writeFileSync(damaged.initrdPath, 'short');
    await expect(findImage(dir, 'other')).rejects.toMatchObject({ code: 'IMAGE_NOT_FOUND' });
    expect((await build('other')).cached).toBe(false);
  });

  test('removes an image, once, and never what a stranger linked', async () => {
    await removeImage(dir, 'other');
    await expect(removeImage(dir, 'other')).rejects.toMatchObject({ code: 'IMAGE_NOT_FOUND' });
    const precious = join(scratch, 'precious');
    mkdirSync(precious);
    symlinkSync(precious, join(dir, 'linked'));
    await removeImage(dir, 'linked');
    expect(existsSync(precious)).toBe(true);
    await removeImage(dir, 'twin');
    expect(await listImages(dir)).toEqual([]);
  });

  test('refuses names that are none', async () => {
    for (const name of ['', '.builds', '../up', 'Upper', 'a/b'])
      await expect(findImage(dir, name)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(buildImage({ imagesDir: dir, name: '../up' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(buildImage({ imagesDir: dir, packages: ['-o=x'] })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });

  test('says which package does not exist, and is left as it was', async () => {
    const failed = buildImage({ imagesDir: dir, cacheDir, name: 'odd', packages: ['no-such-package-anywhere'] });
    await expect(failed).rejects.toMatchObject({ code: 'PACKAGE_MISSING', subject: 'no-such-package-anywhere' });
    const kernel = buildImage({ imagesDir: dir, cacheDir, name: 'odd', kernelPackage: 'no-such-kernel' });
    await expect(kernel).rejects.toMatchObject({ code: 'PACKAGE_MISSING', subject: 'no-such-kernel' });
    expect(existsSync(join(dir, 'odd'))).toBe(false);
  });

  test('does not keep a damaged download', async () => {
    const own = join(scratch, 'debs');
    const deb = readdirSync(cacheDir).find((name) => name.startsWith('busybox-static_'))!;
    execFileSync('cp', ['-r', cacheDir, own]);
    writeFileSync(join(own, deb), 'not a package');
    await buildImage({ imagesDir: dir, cacheDir: own, packages: [] });
    expect(readFileSync(join(own, deb)).equals(readFileSync(join(cacheDir, deb)))).toBe(true);
  });
});

describe('the guest', () => {
  test('boots to its first heartbeat, with network, redis and a console', async () => {
    const vm = await GuestVm.start(image);
    try {
      const bootMs = await vm.booted();
      await recordBoot(imagesDir, 'default', Math.round(bootMs));
      expect(vm.beats[0]).toMatch(/^beat \d+ \d+ \d+ \d+ -$/);
      // The first beat comes before the network does.
      const network = 'until ip addr show eth0 | grep -q 10.0.2.15/24 && ping -c 1 -W 5 10.0.2.2; do sleep 0.1; done';
      expect(await vm.exec('net', network)).toBe(0);
      expect(await vm.exec('host', '[ "$(hostname)" = tester ]')).toBe(0);
      expect(await vm.exec('redis', 'until redis-cli ping | grep -q PONG; do sleep 0.2; done')).toBe(0);
    } finally {
      await vm.end();
    }
  }, 60_000);
});
