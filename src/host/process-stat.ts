/** /proc/PID/stat, read in one place. Field numbers are those of proc_pid_stat(5). */
import fs from 'node:fs';

const STATE = 3;
const UTIME = 14;
const STIME = 15;
const START_TICKS = 22;
const EXIT_CODE = 52;
/** USER_HZ: fixed at 100 for every architecture that ShadowVM runs on. */
const TICKS_PER_SECOND = 100;
const SIGKILL = 9;
const PAGE_BYTES = 4096;

/** A process and when it began, in clock ticks since boot: tells it from a later one with its number. */
export interface ProcessIdentity {
  pid: number;
  startTicks: number;
}

/** The fields of a stat line by their number; undefined behind its end. */
type StatFields = (field: number) => string | undefined;

/** null when there is no such process. @param path of a process or one of its threads */
function readStat(path: string): StatFields | null {
  try {
    return parseStat(fs.readFileSync(`${path}/stat`, 'latin1'));
  } catch {
    return null;
  }
}

/** The second field, the program's name, may hold anything, brackets and spaces too; those after it are plain. */
export function parseStat(text: string): StatFields {
  const rest = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (field) => rest[field - STATE];
}

/** State letter ("R", "S", "D", "T", "Z"); null when it is gone. @param tid one of its threads */
export function processState(pid: number, tid = pid): string | null {
  return readStat(`/proc/${pid}/task/${tid}`)?.(STATE) ?? null;
}

/** null when there is no such process. */
export function startTicks(pid: number): number | null {
  const fields = readStat(`/proc/${pid}`);
  return fields === null ? null : Number(fields(START_TICKS));
}

/** CPU time that the process has used, all threads; null when it is gone. */
export function cpuSeconds(pid: number): number | null {
  const fields = readStat(`/proc/${pid}`);
  return fields === null ? null : (Number(fields(UTIME)) + Number(fields(STIME))) / TICKS_PER_SECOND;
}

/** Memory of its own, that no file and no other process shares: its heap above all; null when it is gone. */
export function privateBytes(pid: number): number | null {
  try {
    const [, resident, shared] = fs.readFileSync(`/proc/${pid}/statm`, 'latin1').split(' ').map(Number);
    return ((resident as number) - (shared as number)) * PAGE_BYTES;
  } catch {
    return null;
  }
}

/** Time that its threads could have run and waited for a CPU, all of those that live; null when it is gone. */
export function waitedMs(pid: number): number | null {
  let ns = 0;
  try {
    for (const tid of fs.readdirSync(`/proc/${pid}/task`)) ns += threadWaitedNs(pid, tid);
  } catch {
    return null;
  }
  return ns / 1e6;
}

function threadWaitedNs(pid: number, tid: string): number {
  try {
    return Number(fs.readFileSync(`/proc/${pid}/task/${tid}/schedstat`, 'latin1').split(' ')[1]);
  } catch {
    return 0; // it ended between the listing and the reading
  }
}

/** Whether it is still the process that was recorded, and not a later one with its number. */
export function isRunning({ pid, startTicks }: ProcessIdentity): boolean {
  const fields = readStat(`/proc/${pid}`);
  return fields !== null && Number(fields(START_TICKS)) === startTicks && fields(STATE) !== 'Z';
}

/**
 * Whether a dying process dies of SIGKILL, which nothing that it did itself can cause. The kernel tells before it takes the memory apart, and only to who may look into the process. Unknown is false.
 */
export function diesOfSigkill(pid: number): boolean {
  const code = Number(readStat(`/proc/${pid}`)?.(EXIT_CODE));
  return (code & 0x7f) === SIGKILL;
}

/** Processes whose command line contains a text. */
export function processesWith(text: string): ProcessIdentity[] {
  return fs
    .readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && commandLine(pid).includes(text))
    .map((pid) => ({ pid, startTicks: startTicks(pid) ?? -1 }))
    .filter(isRunning);
}

/** Empty when it went away. */
function commandLine(pid: number): string {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
}
