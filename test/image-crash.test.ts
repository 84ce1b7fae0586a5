/** The shadow image under a process that dies at every numbered step, and under files that somebody mutated. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ShadowImage } from '../src/native/image.js';
import { NATIVE_BUILD_DIR } from '../src/native/index.js';
import { GuestRam } from '../src/native/memory.js';

const PAGE = 4096;
const PAGES = 64;
const RAM_BYTES = PAGES * PAGE;
const folder = mkdtempSync(join(tmpdir(), 'shadowvm-crash-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What page `page` holds in epoch `epoch`: every child and every check can tell without asking the other. */
const SHARED = `
const PAGE = ${PAGE}, PAGES = ${PAGES};
function pageOf(epoch, page) {
  const bytes = Buffer.alloc(PAGE);
  const last = page % 4 === 0 ? epoch : Math.min(epoch, 1 + (page % 7));
  for (let i = 0; i < PAGE; i += 4) bytes.writeUInt32LE((Math.imul(last * 977 + page + 1, i + 12345) >>> (page % 3 === 0 ? 0 : 20)), i);
  return bytes;
}`;
const pageOf = new Function(`${SHARED}; return pageOf;`)() as (epoch: number, page: number) => Buffer;

/** Commits, flushes, folds, rewinds and packs; says on stdout what is certain. */
const CHILD = `${SHARED}
const { ShadowImage, GuestRam } = require(process.argv[1]);
const fs = require('node:fs');
const say = (text) => fs.writeSync(1, text + '\\n');
(async () => {
  const image = new ShadowImage();
  const ram = new GuestRam('crash', PAGE * PAGES);
  await image.open(process.argv[2], null);
  for (let turn = 0; turn < 12; turn++) {
    const { headEpoch, lastEpoch } = image.describe();
    const epoch = lastEpoch + 1;
    for (let page = 0; page < PAGES; page++) fs.writeSync(ram.fd, pageOf(epoch, page), 0, PAGE, page * PAGE);
    say('begin ' + epoch);
    await image.append({ epoch, parent: headEpoch, generation: 1, cutAtWallMs: epoch * 1000, cutAtMonotonicNs: 1n }, Buffer.from('device ' + epoch), ram);
    say('committed ' + epoch);
    if (turn % 4 === 3) {
      say('rewinding ' + (epoch - 1) + ' from ' + epoch);
      await image.rewind(epoch - 1);
      say('rewound ' + (epoch - 1));
    }
    if (turn % 3 === 2) await image.compact({ force: true, keepFromWallMs: (epoch - 2) * 1000 });
    if (turn === 6) await image.pack({ path: process.argv[2] + '.packed' });
  }
  say('done');
})().catch((error) => { say('failed ' + error.code + ' ' + error.message); process.exit(1); });
`;

async function run(script: string, args: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, ['-e', script, `${NATIVE_BUILD_DIR}shadowvm.node`, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  return { code, signal, lines: said.split('\n').filter((line) => line !== '') };
}

async function checkEpoch(image: ShadowImage, epoch: number): Promise<void> {
  for (let page = 0; page < PAGES; page++)
    expect((await image.readPage(page)).equals(pageOf(epoch, page)), `epoch ${epoch}, page ${page}`).toBe(true);
  expect((await image.deviceState(epoch)).toString()).toBe(`device ${epoch}`);
}

describe('a process that dies', () => {
  const steps = [
    ...[1, 2, 3, 4, 5].flatMap((step) => [`append:${step}`, `append:${step}:7`, `append:${step}:11`]),
    ...[1, 2, 3].flatMap((step) => [`rewind:${step}`, `rewind:${step}:2`]),
    ...[1, 2, 3, 4, 5].flatMap((step) => [`compact:${step}`, `compact:${step}:2`, `compact:${step}:3`]),
    ...[1, 2, 3, 4].map((step) => `pack:${step}`),
  ];

  test.each(steps)('at step %s loses no committed epoch', async (fault) => {
    const path = join(folder, fault.replaceAll(':', '-'));
    const made = await ShadowImage.create(path, { vm: 'vm', ramBytes: RAM_BYTES, segmentBytes: 150_000 });
    await made.close();
    const { signal, lines } = await run(CHILD, [path], { SHADOWVM_FAULT: fault });
    expect(signal, lines.at(-1)).toBe('SIGKILL');
    const { image, report } = await ShadowImage.open(path);
    // A step may lie after the point at which the operation counts: both heads are right then, and no other.
    const [word, epoch, , from] = lines.at(-1)!.split(' ');
    const certain =
      lines
        .filter((line) => /^(committed|rewound) /.test(line))
        .at(-1)
        ?.split(' ')[1] ?? '0';
    const allowed = [
      Number(certain),
      ...(word === 'begin' || word === 'rewinding' ? [Number(epoch), Number(from)] : []),
    ];
    expect(allowed).toContain(report.headEpoch);
    expect(report.lostEpochs).toBe(0);
    for (const { epoch } of image.epochs().reverse()) {
      await image.rewind(epoch);
      await checkEpoch(image, epoch);
    }
    await image.close();
    expect(readdirSync(path).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    // And it goes on from there.
    expect((await run(CHILD, [path])).lines.at(-1)).toMatch(/^(done|failed EEXIST)/);
  });
});

describe('mutated files', () => {
  let seed: string;
  let epochs: number[];
  beforeAll(async () => {
    seed = join(folder, 'seed');
    const image = await ShadowImage.create(seed, { vm: 'vm', ramBytes: RAM_BYTES, segmentBytes: 300_000 });
    const ram = new GuestRam('seed', RAM_BYTES);
    for (let epoch = 1; epoch <= 8; epoch++) {
      for (let page = 0; page < PAGES; page++) writeSync(ram.fd, pageOf(epoch, page), 0, PAGE, page * PAGE);
      await image.append(
        { epoch, parent: epoch - 1, generation: 1, cutAtWallMs: epoch * 1000, cutAtMonotonicNs: 1n },
        Buffer.from(`device ${epoch}`),
        ram,
      );
      if (epoch === 5) await image.compact({ force: true, keepFromWallMs: 4000 });
    }
    epochs = image.epochs().map((e) => e.epoch);
    await image.flush();
    await image.close();
  });

  /** Opens and reads everything; a crash of it is a crash of this process alone. */
  const READER = `${SHARED}
  const { ShadowImage } = require(process.argv[1]);
  (async () => {
    for (const path of process.argv.slice(2)) {
      const image = new ShadowImage();
      try {
        const report = await image.open(path, null);
        let wrong = 0, refused = 0;
        for (const { epoch } of image.epochs().reverse()) {
          try { await image.rewind(epoch); } catch (error) { if (error.code !== 'ERR_IMAGE_CORRUPT') throw error; continue; }
          for (let page = 0; page < PAGES; page++) {
            const read = await image.readPage(page).catch((error) => { if (error.code !== 'ERR_IMAGE_CORRUPT') throw error; return null; });
            if (read === null) refused++;
            else if (!read.equals(pageOf(epoch, page))) wrong++;
          }
        }
        await image.verify({});
        console.log(JSON.stringify({ path, head: report.headEpoch, wrong, refused }));
      } catch (error) {
        console.log(JSON.stringify({ path, code: error.code ?? String(error) }));
      }
      image.close();
    }
  })();`;

  test('are refused or read right: no crash, no hang, no wrong page', async () => {
    expect(epochs.length).toBeGreaterThan(3);
    let state = 42;
    const random = (below: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state % below;
    };
    const paths: string[] = [];
    for (let n = 0; n < 300; n++) {
      const path = join(folder, `fuzz-${n}`);
      cpSync(seed, path, { recursive: true });
      const names = readdirSync(path);
      for (let many = 1 + random(3); many > 0; many--) {
        const file = join(path, names[random(names.length)]!);
        let bytes = readFileSync(file);
        // Near the end lie the tables, near the beginning the header; the rest is payload.
        const at = [random(bytes.length), bytes.length - 1 - random(Math.min(3000, bytes.length)), random(400)][
          random(3)
        ]!;
        const kind = random(5);
        if (kind === 0) bytes[at]! ^= 1 << random(8);
        else if (kind === 1) bytes.fill(random(256), at, Math.min(bytes.length, at + 1 + random(200)));
        else if (kind === 2)
          bytes.writeUInt32LE([0, 1, 0xffffffff, 0x7fffffff, 65536][random(5)]!, Math.min(at, bytes.length - 4));
        else if (kind === 3) bytes = bytes.subarray(0, at);
        else bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(random(bytes.length))]);
        writeFileSync(file, bytes);
      }
      paths.push(path);
    }
    const { code, signal, lines } = await run(READER, paths);
    expect([code, signal]).toEqual([0, null]);
    const results = lines.map((line) => JSON.parse(line) as { head?: number; wrong?: number; code?: string });
    expect(results).toHaveLength(paths.length);
    expect(results.filter((each) => (each.wrong ?? 0) > 0)).toEqual([]);
    const codes = new Set(results.map((each) => each.code).filter((each) => each !== undefined));
    for (const each of codes) expect(each).toMatch(/^ERR_IMAGE_/);
    // Not all of them were damaged beyond use.
    expect(results.filter((each) => each.head !== undefined).length).toBeGreaterThan(30);
  });
});
