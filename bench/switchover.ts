/** Kill → first heartbeat from the shadow, against a restore from a migrate file and a cold boot; and who notices first. */
import { nowMs, sleep } from '../harness/daemon.js';
import { InProcessManager } from '../harness/in-process.js';
import { onInterrupt } from '../harness/interrupt.js';
import { ProcessHandle } from '../src/native/memory.js';
import { MIB } from '../src/vm/spec.js';
import { type BenchGuests, firstBeat, LOAD_SETTLE_MS, loadCommand } from './guest.js';
import { measureRestore } from './migrate.js';
import { p50, p99, round } from './statistics.js';

export interface SwitchoverResult {
  oursMsP50: number;
  oursMsP99: number;
  /** Decision → vCPUs run. */
  resumeMsP50: number;
  restoreFileMsP50: number;
  coldBootMsP50: number;
  timesFasterThanColdBoot: number;
}

export interface DetectResult {
  futexMsP50: number;
  futexMsP99: number;
  pidfdMsP50: number;
  /** SIGSTOP → decision. */
  hangMsP50: number;
  hangMsMax: number;
}

/** Kills at random moments of an epoch, which lasts about a tenth of a second. */
const JITTER_MS = 200;
const SETTLE_AFTER_READY_MS = 700;

export async function benchSwitchover(
  guests: BenchGuests,
  ramMiB: number,
  rounds: number,
  hangRounds: number,
): Promise<{ switchover: SwitchoverResult; detect: DetectResult }> {
  const kills = await measureKills(ramMiB, rounds, hangRounds);
  const restore = await measureRestore(guests, ramMiB, rounds);
  const boot = await measureBoot(guests, ramMiB, rounds);
  return {
    switchover: {
      oursMsP50: p50(kills.firstBeat),
      oursMsP99: p99(kills.firstBeat),
      resumeMsP50: p50(kills.resume),
      restoreFileMsP50: p50(restore),
      coldBootMsP50: p50(boot),
      timesFasterThanColdBoot: round(p50(boot) / p50(kills.firstBeat)),
    },
    detect: {
      futexMsP50: p50(kills.futex),
      futexMsP99: p99(kills.futex),
      pidfdMsP50: p50(kills.pidfd),
      hangMsP50: p50(kills.hang),
      hangMsMax: round(Math.max(...kills.hang)),
    },
  };
}

async function measureKills(ramMiB: number, rounds: number, hangRounds: number) {
  const manager = await InProcessManager.open();
  const forget = onInterrupt(() => manager.close());
  const result = {
    firstBeat: [] as number[],
    resume: [] as number[],
    futex: [] as number[],
    pidfd: [] as number[],
    hang: [] as number[],
  };
  try {
    await manager.runVm({ name: 'bench', ramBytes: ramMiB * MIB, shadow: { kind: 'always' } });
    await manager.port.guestExec('bench', loadCommand(ramMiB));
    await sleep(LOAD_SETTLE_MS);
    for (let i = 0; i < rounds + hangRounds; i++) {
      await manager.shadowReady('bench');
      await sleep(SETTLE_AFTER_READY_MS + Math.random() * JITTER_MS);
      const { primary } = manager.processes('bench');
      const hang = i >= rounds;
      const handle = new ProcessHandle(primary.pid);
      let exitMs: number | null = null;
      handle.watchExit((atNs) => {
        exitMs = Number(atNs) / 1e6;
      });
      const deathMs = primary.died.then((atNs) => Number(atNs) / 1e6);
      const faultMs = nowMs();
      hang ? primary.freeze() : primary.kill();
      const promotion = await manager.nextPromotion('bench');
      if (hang) {
        result.hang.push(Number(promotion.decidedAtNs) / 1e6 - faultMs);
      } else {
        result.futex.push((await deathMs) - faultMs);
        while (exitMs === null) await sleep(1);
        result.pidfd.push(exitMs - faultMs);
        result.resume.push(promotion.resumeMs);
        result.firstBeat.push((await firstBeat(manager.processes('bench').primary)) - faultMs);
      }
      handle.close();
    }
    return result;
  } finally {
    forget();
    await manager.close();
  }
}

/** What one does without a shadow and without a file of its state. */
async function measureBoot(guests: BenchGuests, ramMiB: number, rounds: number): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i < rounds; i++) {
    const startMs = nowMs();
    const vm = await guests.launch(ramMiB, false);
    times.push((await firstBeat(vm)) - startMs);
    await vm.dispose();
  }
  return times;
}
