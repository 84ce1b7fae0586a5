/** Whether a guest has something to do: its vCPUs are threads of its QEMU, which sleep when it has not. */
import { ThreadWatch } from '../native/memory.js';
import type { QemuProcess } from '../qemu/process.js';

/** null when QEMU does not tell, or is gone. */
export async function watchVcpus({ pid, qmp }: QemuProcess): Promise<ThreadWatch | null> {
  try {
    const vcpus = await qmp.execute('query-cpus-fast');
    return new ThreadWatch(
      pid,
      vcpus.map((vcpu) => vcpu['thread-id']),
    );
  } catch {
    return null;
  }
}
