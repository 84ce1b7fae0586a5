/** Waiting for a guest's first sign of life. */
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { monotonicMs } from '../clock.js';
import { type ErrorCode, ShadowVmError } from '../errors.js';
import type { QemuProcess } from '../qemu/process.js';

/** A boot under emulation on a loaded host takes some ten seconds; this is for those that never end. */
const BOOT_TIMEOUT_MS = 120_000;

/** Resolves when a booting guest beats. @throws GUEST_BOOT_TIMEOUT, QEMU_START_FAILED, the reason of `signal` */
export function bootBeat(primary: QemuProcess, consoleLogPath: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (act: () => void) => {
      clearTimeout(timer);
      primary.agent.onBeat = undefined;
      signal.removeEventListener('abort', cancel);
      act();
    };
    const cancel = () => settle(() => reject(signal.reason as ShadowVmError));
    const fail = (code: ErrorCode, reason: string) =>
      settle(() =>
        reject(
          new ShadowVmError(code, {
            attempted: 'boot the VM',
            subject: primary.vm,
            reason,
            remedy: `The end of its console: ${lastWords(consoleLogPath)}`,
          }),
        ),
      );
    const timer = setTimeout(
      () => fail('GUEST_BOOT_TIMEOUT', `no heartbeat within ${BOOT_TIMEOUT_MS / 1000} s`),
      BOOT_TIMEOUT_MS,
    );
    primary.agent.onBeat = () => settle(resolve);
    signal.addEventListener('abort', cancel);
    if (signal.aborted) cancel();
    void primary.exited.then(() => fail('QEMU_START_FAILED', 'the VM ended before its first heartbeat'));
  });
}

/** Resolves when a promoted guest beats, when its QEMU has died, or after `timeoutMs`. */
export async function awakening(qemu: QemuProcess, timeoutMs: number): Promise<void> {
  const untilMs = monotonicMs() + timeoutMs;
  while (qemu.agent.firstSignAtNs === null && !qemu.hasDied && monotonicMs() < untilMs) await sleep(2);
}

/** How a console ended: with the line that says why the kernel panicked, not with the trace that follows it. */
function lastWords(path: string): string {
  try {
    const lines = fs.readFileSync(path, 'latin1').trim().split('\n');
    const line = lines.findLast((each) => each.includes('Kernel panic')) ?? lines.at(-1);
    return line?.trim().slice(0, 200) || '(empty)';
  } catch {
    return '(none)';
  }
}
