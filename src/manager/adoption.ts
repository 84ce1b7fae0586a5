/**
 * What a new manager makes of the VMs of one that was killed. Their guests went on meanwhile: those are taken over, and
 * protected again. One whose QEMU has died since is woken up from its shadow image, like after any death.
 */
import fs from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../errors.js';
import { isRunning, type ProcessIdentity, processesWith } from '../host/process-stat.js';
import { QemuProcess } from '../qemu/process.js';
import { faultPoint } from './fault-point.js';
import type { Host } from './host.js';
import { other, type Side } from './sides.js';
import type { VmRecord } from './state-dir.js';
import { ManagedVm } from './vm.js';

export interface Recovered {
  vm: ManagedVm;
  /** To be started from its image: its primary died while no manager was there. */
  revive: boolean;
}

const WAIT_FOR_END_MS = 5000;

/** Takes the VMs of an earlier manager over, and takes away everything else that it left. */
export async function recoverVms(host: Host): Promise<Recovered[]> {
  const { stateDir, events } = host.options;
  await host.networks.load();
  const records = await stateDir.loadVmRecords(events);
  const recovered: Recovered[] = [];
  const adopted: ManagedVm[] = [];
  const leftovers: (ProcessIdentity & { vm: string | null; role: string })[] = [];
  for (const record of records) {
    const live = record.process.filter(isRunning);
    const primary = await adoptPrimary(host, record, live);
    if (primary === null) {
      leftovers.push(...live.map((process) => ({ ...process, vm: record.spec.name })));
      recovered.push(outlived(host, record));
      continue;
    }
    const rest = live.filter(({ pid }) => pid !== primary.qemu.pid);
    leftovers.push(...rest.map((process) => ({ ...process, vm: record.spec.name })));
    let vm: ManagedVm;
    try {
      vm = ManagedVm.adopted(host, record, primary.side, primary.qemu);
    } catch (error) {
      // Its network is not declared any more, or can not be made: it can not be run as it was declared.
      notAdopted(host, record, primary.qemu.pid, error);
      leftovers.push(...live.map((process) => ({ ...process, vm: record.spec.name })));
      recovered.push(outlived(host, record));
      continue;
    }
    adopted.push(vm);
    recovered.push({ vm, revive: false });
  }
  // Killed between the start of a QEMU and the record of it, the manager left one that no record has.
  const known = new Set([...leftovers, ...adopted.map((vm) => ({ pid: vm.core.primary?.pid }))].map(({ pid }) => pid));
  const unknown = processesWith(`socket,id=qmp,path=${stateDir.runDir}/`).filter(({ pid }) => !known.has(pid));
  await end(host, [...leftovers, ...unknown.map((process) => ({ ...process, vm: null, role: 'QEMU' }))]);
  await sweep(host, adopted);
  faultPoint('adoption', 3);
  for (const vm of adopted) vm.goOn();
  return recovered;
}

/** The QEMU in which the guest runs, taken over; null when there is none. */
async function adoptPrimary(
  host: Host,
  record: VmRecord,
  live: VmRecord['process'],
): Promise<{ qemu: QemuProcess; side: Side } | null> {
  const { stateDir } = host.options;
  if (!['running', 'promoting', 'stopping'].includes(record.state)) return null;
  // Where the last promotion got: the old primary lives, or the new one runs already.
  for (const side of [record.side, other(record.side)]) {
    const process = live.find((each) => each.side === side);
    if (process === undefined || process.tag === '') continue;
    try {
      faultPoint('adoption', 1);
      const qemu = await QemuProcess.adopt({
        vm: record.spec.name,
        pid: process.pid,
        runDir: stateDir.runDir,
        tag: process.tag,
      });
      const { status } = await qemu.qmp.execute('query-status');
      faultPoint('adoption', 2);
      // The primary's guest stands still only when its manager died in the middle of a switchover by hand.
      if (side === record.side && status === 'paused') await qemu.qmp.execute('cont');
      else if (status !== 'running') {
        await qemu.dispose();
        continue;
      }
      return { qemu, side };
    } catch (error) {
      notAdopted(host, record, process.pid, error);
    }
  }
  return null;
}

function notAdopted(host: Host, record: VmRecord, pid: number, error: unknown): void {
  const told = `its process ${pid} could not be taken over: ${messageOf(error)}`;
  host.options.events.append('warn', 'vm.not-adopted', record.spec.name, told, { pid });
}

/** A VM of which no process is left that could be taken over. */
function outlived(host: Host, record: VmRecord): Recovered {
  const ended = record.state === 'stopped' || record.state === 'failed';
  if (ended) return { vm: ManagedVm.ended(host, record, null), revive: false };
  const vm = ManagedVm.ended(host, record, 'the manager ended without stopping it');
  // Also one that was just being woken up; not one that was meant to end.
  const revive = record.state !== 'stopping' && vm.core.shadowImage.exists();
  return { vm, revive };
}

async function end(host: Host, processes: (ProcessIdentity & { vm: string | null; role: string })[]): Promise<void> {
  for (const { vm, pid, role } of processes) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      continue; // it has ended since
    }
    host.options.events.append(
      'warn',
      'vm.orphan-killed',
      vm,
      `killed the ${role} (pid ${pid}) that an earlier manager left`,
      {
        pid,
        role,
      },
    );
  }
  const untilMs = Date.now() + WAIT_FOR_END_MS;
  while (processes.some(isRunning) && Date.now() < untilMs) await sleep(10);
}

/** Takes away what no adopted VM needs: taps, cgroups, sockets. */
async function sweep(host: Host, adopted: ManagedVm[]): Promise<void> {
  const { stateDir, events } = host.options;
  const kept = adopted.map((vm) => vm.core.sides.runTag(vm.core.side));
  const swept = await host.sweep(adopted.flatMap((vm) => vm.core.sides.admitted(vm.core.side) ?? []));
  for (const file of fs.readdirSync(stateDir.runDir))
    if (!kept.some((tag) => file.startsWith(`${tag}.`))) fs.rmSync(join(stateDir.runDir, file), { force: true });
  if (swept.length > 0)
    events.append('warn', 'host.swept', null, `took away what an earlier manager left: ${swept.join(', ')}`, { swept });
}
