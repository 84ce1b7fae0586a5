/** Databases on a VM's disks under constant transactions, and its QEMU killed at random: nothing breaks, nothing is lost. */
import { setTimeout as sleep } from 'node:timers/promises';
import { buildDatabaseImage, Databases, databaseSpec } from '../harness/databases.js';
import { InProcessManager } from '../harness/in-process.js';
import { type Distribution, distribution } from './distribution.js';
import { planRound } from './plan.js';

export interface DisksOptions {
  seed: number;
  rounds: number;
  bridge: string;
  subnet: string;
  signal: AbortSignal;
  onProgress: (line: string) => void;
}

export interface DisksResult {
  rounds: number;
  /** Of those, in strict mode: nothing that a client was told may be missing. */
  strictRounds: number;
  sqliteTransactions: number;
  redisWrites: number;
  resumeMs: Distribution;
  lagMs: Distribution;
  /** Medians of each shadow's pauses. */
  pauseMs: Distribution;
  failures: { round: number; what: string }[];
}

const VM = 'databases';

export async function soakDisks(options: DisksOptions): Promise<DisksResult> {
  const { seed, rounds, signal, onProgress, bridge, subnet } = options;
  onProgress('disks: building the image with databases, where it is missing');
  await buildDatabaseImage();
  const manager = await InProcessManager.open({ bridge, subnet });
  const failures: DisksResult['failures'] = [];
  const [resumeMs, lagMs, pauseMs]: [number[], number[], number[]] = [[], [], []];
  let databases: Databases | null = null;
  let [round, strictRounds] = [0, 0];
  try {
    await manager.runVm({ ...databaseSpec(VM), shadow: { kind: 'always' } });
    databases = await Databases.start(manager, VM);
    while (round < rounds && !signal.aborted && failures.length === 0) {
      round++;
      await manager.shadowReady(VM);
      if (round === Math.ceil(rounds / 2)) await manager.makeStrict(VM);
      await sleep(planRound(seed, round).delayMs);
      pauseMs.push(manager.port.showVm(VM).shadow?.pauseMs.p50 ?? 0);
      const promoted = manager.nextPromotion(VM);
      await manager.port.injectFault(VM, 'kill');
      const promotion = await promoted;
      resumeMs.push(promotion.resumeMs);
      lagMs.push(promotion.lagMs);
      const strict = manager.wasStrict(VM);
      if (strict) strictRounds++;
      for (const what of await databases.check(promotion, strict)) failures.push({ round, what });
      if (round % 10 === 0) onProgress(`disks: ${round} of ${rounds} kills`);
    }
    for (const what of await databases.checkRedisFile()) failures.push({ round, what });
    await manager.port.killVm(VM);
    await manager.port.startVm(VM, { boot: true }, () => {});
    await databases.startAgain();
  } catch (error) {
    failures.push({ round, what: `${error instanceof Error ? error.message : String(error)}; ${manager.recent()}` });
  } finally {
    await databases?.stop();
    await manager.close();
  }
  const { committed, written } = databases?.counts ?? { committed: 0, written: 0 };
  return {
    rounds: round,
    strictRounds,
    sqliteTransactions: committed,
    redisWrites: written,
    resumeMs: distribution(resumeMs),
    lagMs: distribution(lagMs),
    pauseMs: distribution(pauseMs),
    failures,
  };
}
