/** What a run may leave on the host, so that demo and tests can show that they leave nothing. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';

/** Names of QEMU processes, interfaces, network namespaces, cgroups and shared-memory files that exist now. */
export function leftovers(): string[] {
  return [...qemus(), ...interfaces(), ...list('/var/run/netns', 'netns'), ...cgroups(), ...list('/dev/shm', 'shm')];
}

function qemus(): string[] {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu-system');
      } catch {
        return false; // it ended meanwhile
      }
    })
    .map((pid) => `qemu ${pid}`);
}

function interfaces(): string[] {
  return readdirSync('/sys/class/net')
    .filter((name) => /^(sv|shadowvm)/.test(name))
    .map((name) => `interface ${name}`);
}

function cgroups(): string[] {
  const roots = ['/sys/fs/cgroup', ...['cpu', 'memory', 'cpuacct', 'unified'].map((c) => `/sys/fs/cgroup/${c}`)];
  return roots.flatMap((root) =>
    list(root, 'cgroup')
      .filter((name) => name.includes('shadowvm'))
      .map((name) => `${name} (${root})`),
  );
}

function list(dir: string, kind: string): string[] {
  return existsSync(dir) ? readdirSync(dir).map((name) => `${kind} ${name}`) : [];
}
