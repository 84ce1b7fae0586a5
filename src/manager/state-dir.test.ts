import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { z } from 'zod';
import { NATIVE_BUILD_DIR } from '../native/index.js';
import { vmSpecSchema } from '../vm/spec.js';
import {
  defaultStatePath,
  readJson,
  STATE_PATH_BYTES_MAX,
  StateDir,
  stateLayout,
  type VmRecord,
  writeFileAtomic,
} from './state-dir.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'svm-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const record = (name: string, generation = 1): VmRecord => ({
  version: 1,
  spec: vmSpecSchema.parse({ name }),
  generation,
  createdAt: '2026-01-01T00:00:00.000Z',
  state: 'running',
  address: '10.213.0.2',
  accelerator: 'tcg',
  origin: 'golden',
  snapshot: null,
  slot: 0,
  side: 'p',
  process: [{ pid: 4711, startTicks: 99, role: 'primary', side: 'p', tag: `${name}_1` }],
  taps: ['svt0'],
  cgroups: [],
  bridge: null,
});
const noEvents = { append: () => expect.unreachable() } as never;

test('the default depends on who asks', () => {
  expect(defaultStatePath({}, 0)).toBe('/var/lib/shadowvm');
  expect(defaultStatePath({ XDG_STATE_HOME: '/x' }, 1000)).toBe('/x/shadowvm');
  expect(defaultStatePath({}, 1000)).toMatch(/\/\.local\/state\/shadowvm$/);
  expect(defaultStatePath({ SHADOWVM_STATE: '/y' }, 0)).toBe('/y');
});

test('opening makes the layout for its owner only; sockets of QEMUs that may live stay', async () => {
  const root = join(dir, 'state');
  mkdirSync(join(root, 'run'), { recursive: true });
  writeFileSync(join(root, 'run', 'old.qmp'), '');
  writeFileSync(join(root, 'shadowvm.sock'), '');
  const state = StateDir.open(root);
  expect(statSync(root).mode & 0o777).toBe(0o700);
  expect(readdirSync(root).sort()).toEqual(['daemon.lock', 'log', 'run', 'vms']);
  expect(readdirSync(state.runDir)).toEqual(['old.qmp']);
  expect(state).toMatchObject(stateLayout(root));
  await state.close();
  await state.close();
});

test('a second daemon is refused with the pid of the first, and let in when that ends', async () => {
  const first = StateDir.open(dir);
  expect(() => StateDir.open(dir)).toThrow(
    expect.objectContaining({
      code: 'STATE_LOCKED',
      subject: dir,
      reason: `another daemon has it, process ${process.pid}`,
    }),
  );
  await first.close();
  await StateDir.open(dir).close();
});

test('the lock ends with its process, however that ends', async () => {
  const program = `require(process.argv[1]).lockFile(process.argv[2]); console.log('locked'); setTimeout(() => {}, 60_000)`;
  const holder = spawn(
    process.execPath,
    ['-e', program, `${NATIVE_BUILD_DIR}shadowvm.node`, stateLayout(dir).lockPath],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  await once(holder.stdout, 'data');
  expect(() => StateDir.open(dir)).toThrow(expect.objectContaining({ code: 'STATE_LOCKED' }));
  holder.kill('SIGKILL');
  await once(holder, 'exit');
  await StateDir.open(dir).close();
});

test('a path that leaves no room for sockets is refused before anything is made', () => {
  const long = join(dir, 'x'.repeat(STATE_PATH_BYTES_MAX));
  expect(() => StateDir.open(long)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', reason: expect.stringContaining('leave room for 54') }),
  );
  expect(existsSync(long)).toBe(false);
});

test('a directory with other things in it is neither closed to others nor used', () => {
  chmodSync(dir, 0o755);
  writeFileSync(join(dir, 'thesis.tex'), '');
  expect(() => StateDir.open(dir)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', reason: expect.stringContaining('thesis.tex') }),
  );
  expect(statSync(dir).mode & 0o777).toBe(0o755);
  expect(readdirSync(dir)).toEqual(['thesis.tex']);
});

test('a file in place of the directory is a clear error', () => {
  writeFileSync(join(dir, 'state'), '');
  expect(() => StateDir.open(join(dir, 'state'))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
});

test('records come back as they were saved, and go when removed', async () => {
  const state = StateDir.open(dir);
  await state.saveVmRecord(record('web'));
  await state.saveVmRecord(record('db', 3));
  expect(await state.loadVmRecords(noEvents)).toEqual([record('db', 3), record('web')]);
  writeFileSync(state.consoleLogPath('db'), 'boot');
  await state.removeVmRecord('db');
  expect(existsSync(state.vmDir('db'))).toBe(false);
  expect(await state.loadVmRecords(noEvents)).toEqual([record('web')]);
  await state.close();
});

test('saves of one VM that overlap end with the newest, and a removal after them wins', async () => {
  const state = StateDir.open(dir);
  const saves = Array.from({ length: 20 }, (_, i) => state.saveVmRecord(record('web', i)));
  await Promise.all(saves);
  expect((await state.loadVmRecords(noEvents))[0]!.generation).toBe(19);
  void state.saveVmRecord(record('web', 20));
  await state.removeVmRecord('web');
  expect(await state.loadVmRecords(noEvents)).toEqual([]);
  await state.close();
});

test('a note is found by the next manager until it is saved; one that is not whole counts as none', async () => {
  const state = StateDir.open(dir);
  await state.saveVmRecord(record('web'));
  state.noteVmRecord(record('web', 2));
  await state.close();
  const next = StateDir.open(dir);
  expect(await next.loadVmRecords(noEvents)).toEqual([record('web', 2)]);
  const older = next.saveVmRecord(record('web', 2));
  next.noteVmRecord(record('web', 3)); // while a save is under way that does not know of it
  await older;
  expect(await next.loadVmRecords(noEvents)).toEqual([record('web', 3)]);
  await next.saveVmRecord(record('web', 3));
  expect(existsSync(next.notePath('web'))).toBe(false);
  for (const text of ['', '{"version":1,"spe', JSON.stringify(record('db', 9)), JSON.stringify(record('web', 2))]) {
    writeFileSync(next.notePath('web'), text);
    expect(await next.loadVmRecords(noEvents)).toEqual([record('web', 3)]);
  }
  await next.saveVmRecord(record('web', 3));
  expect(existsSync(next.notePath('web'))).toBe(false);
  await next.close();
});

test.each([
  ['half a file', '{"version":1,"spe'],
  ['another version', JSON.stringify({ ...record('web'), version: 2 })],
  ["another VM's", JSON.stringify(record('db'))],
])('%s is set aside with an event, and the other VMs go on', async (_, text) => {
  const state = StateDir.open(dir);
  await state.saveVmRecord(record('web'));
  await state.saveVmRecord(record('good'));
  writeFileSync(state.recordPath('web'), text);
  const told: unknown[][] = [];
  const events = { append: (...args: unknown[]) => told.push(args) } as never;
  expect(await state.loadVmRecords(events)).toEqual([record('good')]);
  expect(told).toEqual([
    ['error', 'state.corrupt', 'web', expect.stringContaining('vm.json.corrupt'), expect.anything()],
  ]);
  expect(readFileSync(`${state.recordPath('web')}.corrupt`, 'utf8')).toBe(text);
  // Told once; what was set aside is kept for its owner.
  expect(await state.loadVmRecords(noEvents)).toEqual([record('good')]);
  expect(existsSync(`${state.recordPath('web')}.corrupt`)).toBe(true);
  await state.close();
});

test('what a cut-short creation left is cleared, what is not ours is left alone', async () => {
  const state = StateDir.open(dir);
  mkdirSync(join(state.vmsDir, 'half'));
  writeFileSync(join(state.vmsDir, 'half', 'qemu.log'), '');
  mkdirSync(join(state.vmsDir, 'Not A Name'));
  expect(await state.loadVmRecords(noEvents)).toEqual([]);
  expect(readdirSync(state.vmsDir)).toEqual(['Not A Name']);
  await state.close();
});

test('no name leads out of the directory', async () => {
  const state = StateDir.open(dir);
  expect(() => state.vmDir('../../etc')).toThrow();
  expect(() => state.runPath('x'.repeat(49))).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
  await state.close();
});

test('a write that fails leaves the old content and no scraps', async () => {
  const path = join(dir, 'a.json');
  await writeFileAtomic(path, 'old');
  mkdirSync(join(dir, 'taken'));
  await expect(writeFileAtomic(join(dir, 'taken'), 'new')).rejects.toMatchObject({ attempted: 'write the file' });
  await expect(writeFileAtomic(join(dir, 'missing', 'a'), 'new')).rejects.toMatchObject({ code: 'INTERNAL' });
  expect(readdirSync(dir).sort()).toEqual(['a.json', 'taken']);
  expect(readFileSync(path, 'utf8')).toBe('old');
});

test('reading JSON tells apart missing, spoiled and good', async () => {
  const schema = z.object({ n: z.number() });
  const path = join(dir, 'a.json');
  expect(await readJson(path, schema)).toBeNull();
  writeFileSync(path, '{"n":1}');
  expect(await readJson(path, schema)).toEqual({ n: 1 });
  writeFileSync(path, '{"n":"1"}');
  await expect(readJson(path, schema)).rejects.toMatchObject({ code: 'STATE_CORRUPT', subject: path });
});
